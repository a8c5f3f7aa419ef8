//! The cluster's state as its nodes see it: a directory of Kubernetes YAML, and an API server with the same objects if there is one.

use std::{
    fmt, fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};
use shunt::{cluster::FileSource, model::Model};

/// A cluster state directory. Files appear by rename, as a careful writer does it.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    staging: PathBuf,
    api: Option<Arc<dyn Api>>,
}

/// An API server that is written to.
pub trait Api: fmt::Debug + Send + Sync {
    /// Creates or replaces an object.
    ///
    /// # Errors
    /// It is refused.
    fn put(&self, object: &Value) -> Result<()>;

    /// An object as the server has it, known by its kind and names.
    ///
    /// # Errors
    /// The server doesn't answer.
    fn get(&self, object: &Value) -> Result<Option<Value>>;

    /// Deletes an object, known by its kind and names.
    ///
    /// # Errors
    /// It is not there.
    fn delete(&self, object: &Value) -> Result<()>;

    /// Is not to be reached any more, and breaks every connection. Objects stay.
    fn down(&self);

    /// Can be reached again.
    ///
    /// # Errors
    /// Its address in the lab is taken.
    fn up(&self) -> Result<()>;
}

/// A Service port and the port of its backends.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// On the virtual IP.
    pub port: u16,
    /// On the backends.
    pub target: u16,
}

impl Port {
    /// A TCP port.
    #[must_use]
    pub const fn tcp(port: u16, target: u16) -> Self {
        Self { protocol: "TCP", port, target }
    }

    /// A UDP port.
    #[must_use]
    pub const fn udp(port: u16, target: u16) -> Self {
        Self { protocol: "UDP", port, target }
    }

    /// Its name in Services and EndpointSlices.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{}", self.protocol.to_lowercase(), self.port)
    }

    /// As it stands in a Service.
    fn object(&self) -> Value {
        json!({ "name": self.name(), "protocol": self.protocol, "port": self.port, "targetPort": self.target })
    }

    /// As it stands in a Service that has a port at every node too.
    #[must_use]
    pub fn at_nodes(&self, node_port: u16) -> Value {
        let mut object = self.object();
        object["nodePort"] = json!(node_port);
        object
    }
}

/// One endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address.
    pub address: Ipv4Addr,
    /// The node it is on.
    pub node: String,
    /// Whether it gets new connections.
    pub ready: bool,
    /// Whether it is going away.
    pub terminating: bool,
}

impl Endpoint {
    /// A ready one.
    #[must_use]
    pub fn ready(address: Ipv4Addr, node: &str) -> Self {
        Self { address, node: node.to_owned(), ready: true, terminating: false }
    }

    /// One that serves what it has and is going away.
    #[must_use]
    pub fn terminating(address: Ipv4Addr, node: &str) -> Self {
        Self { address, node: node.to_owned(), ready: false, terminating: true }
    }
}

impl Cluster {
    /// An empty state in a directory that exists; files are prepared beside it.
    ///
    /// # Errors
    /// The directories could not be made.
    pub fn new(dir: &Path) -> Result<Self> {
        let staging = dir.with_extension("staging");
        fs::create_dir_all(dir)?;
        fs::create_dir_all(&staging)?;
        Ok(Self { dir: dir.to_owned(), staging, api: None })
    }

    /// Gives all objects there are to an API server too, and those that come.
    ///
    /// # Errors
    /// One is refused.
    pub fn attach(&mut self, api: Arc<dyn Api>) -> Result<()> {
        self.objects()?.iter().try_for_each(|object| api.put(object))?;
        self.api = Some(api);
        Ok(())
    }

    /// All objects there are.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let mut files: Vec<_> = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.file_name()).collect();
        files.sort();
        let mut objects = Vec::new();
        for file in files {
            objects.extend(self.documents(Path::new(&file))?);
        }
        Ok(objects)
    }

    fn documents(&self, file: &Path) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.dir.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        serde_yaml::Deserializer::from_str(&text).map(|document| Ok(Value::deserialize(document)?)).collect()
    }

    /// What it means, as an agent would understand it.
    ///
    /// # Errors
    /// Something in it is refused.
    pub fn model(&self) -> Result<Model> {
        // A source watches its directory, which takes a reactor.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _inside = runtime.enter();
        let (source, _) = FileSource::open(&self.dir)?;
        ensure!(source.problems().is_empty(), "{:#?}", source.problems());
        Ok(source.model().clone())
    }

    /// Gives a label to a Node that is there.
    ///
    /// # Errors
    /// It is not there, or the file could not be written.
    pub fn label_node(&self, name: &str, key: &str, value: &str) -> Result<()> {
        let file = format!("node-{name}.yaml");
        let mut documents = self.documents(Path::new(&file))?;
        for node in &mut documents {
            node["metadata"]["labels"][key] = json!(value);
        }
        self.put(&file, &documents)
    }

    /// Writes on a Node that is there what its agent does where there is an API server; without `direct_return` what flanneld does, whose nodes
    /// answer no other node's clients.
    ///
    /// # Errors
    /// It is not there, or the file could not be written.
    pub fn annotate_node(&self, name: &str, vtep_mac: &str, direct_return: bool) -> Result<()> {
        let file = format!("node-{name}.yaml");
        let mut documents = self.documents(Path::new(&file))?;
        let mut data = json!({ "VNI": crate::topology::VNI, "VtepMAC": vtep_mac });
        if direct_return {
            data["DirectReturn"] = json!(true);
        }
        for node in &mut documents {
            node["metadata"]["annotations"] = json!({
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": data.to_string(),
            });
        }
        self.put(&file, &documents)
    }

    /// Where the files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file of several documents, atomically.
    ///
    /// # Errors
    /// It could not be written.
    pub fn put(&self, file: &str, documents: &[Value]) -> Result<()> {
        let yaml: Vec<_> = documents.iter().map(serde_yaml::to_string).collect::<Result<_, _>>()?;
        self.put_text(file, &yaml.join("---\n"))?;
        self.api.iter().try_for_each(|api| documents.iter().try_for_each(|object| api.put(object)))
    }

    /// Writes a file as it is, atomically. An API server is not told.
    ///
    /// # Errors
    /// It could not be written.
    pub fn put_text(&self, file: &str, text: &str) -> Result<()> {
        let staged = self.staging.join(file);
        fs::write(&staged, text).with_context(|| format!("cannot write {}", staged.display()))?;
        fs::rename(&staged, self.dir.join(file)).with_context(|| format!("cannot place {file}"))
    }

    /// Removes a file, and its objects from the API server.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn remove(&self, file: &str) -> Result<()> {
        if let Some(api) = &self.api {
            self.documents(Path::new(file))?.iter().try_for_each(|object| api.delete(object))?;
        }
        fs::remove_file(self.dir.join(file)).with_context(|| format!("cannot remove {file}"))
    }

    /// A Node; the VTEP MAC, if given, as flannel writes it.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn put_node(&self, name: &str, address: Ipv4Addr, pod_range: (Ipv4Addr, u8), vtep_mac: Option<&str>) -> Result<()> {
        let range = format!("{}/{}", pod_range.0, pod_range.1);
        let mut node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": address },
                { "type": "Hostname", "address": name },
            ] },
        });
        if let Some(mac) = vtep_mac {
            node["metadata"]["annotations"] = json!({
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": json!({ "VNI": crate::topology::VNI, "VtepMAC": mac }).to_string(),
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/public-ip": address,
            });
        }
        self.put(&format!("node-{name}.yaml"), &[node])
    }

    /// A Service with a virtual IP.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn put_service(&self, name: &str, ip: Ipv4Addr, ports: &[Port]) -> Result<()> {
        self.put_typed(name, "ClusterIP", ip, ports.iter().map(Port::object).collect())
    }

    /// A Service of type NodePort: one port of every node for all of these, which differ by protocol.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn put_node_port(&self, name: &str, ip: Ipv4Addr, ports: &[Port], node_port: u16) -> Result<()> {
        self.put_typed(name, "NodePort", ip, ports.iter().map(|port| port.at_nodes(node_port)).collect())
    }

    /// A Service of type NodePort whose ports have the same numbers at every node as at its virtual IP.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn put_same_ports(&self, name: &str, ip: Ipv4Addr, ports: &[Port]) -> Result<()> {
        self.put_typed(name, "NodePort", ip, ports.iter().map(|port| port.at_nodes(port.port)).collect())
    }

    fn put_typed(&self, name: &str, kind: &str, ip: Ipv4Addr, ports: Vec<Value>) -> Result<()> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "type": kind, "clusterIP": ip, "clusterIPs": [ip], "selector": { "app": name }, "ports": ports },
        });
        self.put(&format!("service-{name}.yaml"), &[service])
    }

    /// The one EndpointSlice of a Service.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn put_endpoints(&self, service: &str, ports: &[Port], endpoints: &[Endpoint]) -> Result<()> {
        let named: Vec<_> = ports.iter().map(|port| (port.name(), *port)).collect();
        let named: Vec<_> = named.iter().map(|(name, port)| (name.as_str(), *port)).collect();
        self.put_named_endpoints(service, &named, endpoints)
    }

    /// The one EndpointSlice of a Service whose ports have names of their own.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn put_named_endpoints(&self, service: &str, ports: &[(&str, Port)], endpoints: &[Endpoint]) -> Result<()> {
        let ports: Vec<_> =
            ports.iter().map(|(name, port)| json!({ "name": name, "protocol": port.protocol, "port": port.target })).collect();
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                json!({
                    "addresses": [endpoint.address],
                    "nodeName": endpoint.node,
                    "conditions": { "ready": endpoint.ready, "serving": true, "terminating": endpoint.terminating },
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": format!("{service}-1"), "namespace": "default", "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        });
        self.put(&format!("endpoints-{service}.yaml"), &[slice])
    }
}
