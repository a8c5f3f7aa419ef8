//! A real API server in a lab: the one of the kubeconfig that `SHUNT_TEST_KUBECONFIG` names.
//!
//! The lab's nodes reach it at the address where a double would be: each connection there is carried on, byte for byte, from this
//! process. So the way to it can be cut, and nothing of the machine's own network has to lead into the lab.
//!
//! Agents are somebody who may do what the manifests' ClusterRole says and no more ([`AGENT`], whom the kubeconfig's user impersonates).
//!
//! What a lab writes bears the label [`LABEL`] and is deleted with the lab; what a killed one left, by the next. An object that is there
//! without the label is somebody's, and no lab overwrites it. Labs take turns, for they have the same names.

use std::{
    fmt,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use nix::fcntl::{Flock, FlockArg};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::{net::TcpStream, runtime::Runtime, task::JoinHandle};

use crate::{api_server::LAB_PORT, cluster, lab::Lab, netns::Netns, topology::OUTSIDE};

/// Names the kubeconfig.
pub const VARIABLE: &str = "SHUNT_TEST_KUBECONFIG";
/// On all that labs write.
pub const LABEL: &str = "shunt.net/lab";
/// Who the agents of labs are.
pub const AGENT: &str = "shunt-lab-agent";
/// The role that the manifests give to the agent.
const RBAC: &str = include_str!("../../manifests/base/rbac.yaml");
/// Group, kind and plural; the version is `v1`.
type Kind = (&'static str, &'static str, &'static str);
/// What labs write, in an order in which it can be deleted.
const KINDS: [Kind; 5] = [
    ("discovery.k8s.io", "EndpointSlice", "endpointslices"),
    ("", "Service", "services"),
    ("", "Node", "nodes"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding", "clusterrolebindings"),
    ("rbac.authorization.k8s.io", "ClusterRole", "clusterroles"),
];

/// A real server, and the way to it.
pub struct RealApi {
    runtime: Runtime,
    client: Client,
    netns: Netns,
    /// Host and port, as the kubeconfig has them.
    server: String,
    way: Mutex<Option<JoinHandle<()>>>,
    /// In the order in which it was written.
    written: Mutex<Vec<Value>>,
    /// Held while we live, also against labs of other processes.
    _turn: Flock<File>,
}

impl fmt::Debug for RealApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RealApi").field("server", &self.server).finish_non_exhaustive()
    }
}

impl RealApi {
    /// The kubeconfig, if there is a real server to test with.
    #[must_use]
    pub fn kubeconfig() -> Option<PathBuf> {
        std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    /// Leads a lab's nodes to it and gives it the lab's objects.
    ///
    /// # Errors
    /// It doesn't answer, or refuses an object.
    pub fn of_lab(lab: &mut Lab, kubeconfig: &Path) -> Result<Arc<Self>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut given = Kubeconfig::read_from(kubeconfig).with_context(|| format!("{VARIABLE} {}", kubeconfig.display()))?;
        let turn = Flock::lock(File::open(kubeconfig)?, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("cannot lock {}", kubeconfig.display()))?;
        let (client, server) = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(given.clone(), &KubeConfigOptions::default()).await?;
            let host = config.cluster_url.host().context("the kubeconfig's server has no host")?.to_owned();
            let port = config.cluster_url.port_u16().unwrap_or(443);
            anyhow::Ok((Client::try_from(config)?, (host, port)))
        })?;
        for cluster in given.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
            cluster.server = Some(format!("https://{OUTSIDE}:{LAB_PORT}"));
            // Its certificate is for the name by which we know it.
            cluster.tls_server_name.get_or_insert(server.0.trim_matches(['[', ']']).to_owned());
        }
        for user in given.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
            user.impersonate = Some(AGENT.to_owned());
        }
        let dir = lab.dir().join("api");
        fs::create_dir_all(&dir)?;
        let path = dir.join("kubeconfig");
        fs::write(&path, serde_yaml::to_string(&given)?)?;

        let api = Self {
            runtime,
            client,
            netns: Netns::open(lab.outside().name())?,
            server: format!("{}:{}", server.0, server.1),
            way: Mutex::new(None),
            written: Mutex::new(Vec::new()),
            _turn: turn,
        };
        let api = Arc::new(api);
        api.sweep().context("cannot delete what an earlier lab left")?;
        api.let_agents_in().context("cannot give agents the role of the manifests")?;
        cluster::Api::up(&*api)?;
        lab.cluster.attach(api.clone())?;
        lab.nodes.iter_mut().for_each(|node| node.follow_api(&path));
        Ok(api)
    }

    /// Deletes what labs have written, wherever it is.
    fn sweep(&self) -> Result<()> {
        self.runtime.block_on(async {
            for kind in KINDS {
                for object in self.api(kind, None).list(&ListParams::default().labels(LABEL)).await? {
                    let api = self.api(kind, object.metadata.namespace.as_deref());
                    api.delete(object.metadata.name.as_deref().unwrap_or_default(), &DeleteParams::default()).await?;
                }
            }
            Ok(())
        })
    }

    /// Gives [`AGENT`] the manifests' role, which goes with what else we have written.
    fn let_agents_in(&self) -> Result<()> {
        for document in serde_yaml::Deserializer::from_str(RBAC) {
            let mut object = Value::deserialize(document)?;
            object["metadata"]["name"] = json!(AGENT);
            match object["kind"].as_str() {
                Some("ClusterRole") => {}
                Some("ClusterRoleBinding") => {
                    object["roleRef"]["name"] = json!(AGENT);
                    let group = "rbac.authorization.k8s.io";
                    object["subjects"] = json!([{ "kind": "User", "apiGroup": group, "name": AGENT }]);
                }
                _ => continue,
            }
            cluster::Api::put(self, &object)?;
        }
        Ok(())
    }

    fn api(&self, (group, kind, plural): Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        let described = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &described),
            None => Api::all_with(self.client.clone(), &described),
        }
    }

    /// Where an object is, and its name there.
    fn of(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let metadata = &object["metadata"];
        let kind = KINDS.into_iter().find(|(_, kind, _)| object["kind"] == *kind).context("not a kind of the lab")?;
        Ok((self.api(kind, metadata["namespace"].as_str()), metadata["name"].as_str().unwrap_or_default().to_owned()))
    }
}

impl cluster::Api for RealApi {
    fn put(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object)?;
        let mut object = object.clone();
        object["metadata"]["labels"][LABEL] = json!("");
        // What it was when it was read is of no interest to who replaces it.
        object["metadata"].as_object_mut().context("an object without metadata")?.remove("resourceVersion");
        self.runtime.block_on(async {
            match api.get_opt(&name).await? {
                None => drop(api.create(&PostParams::default(), &serde_json::from_value(object.clone())?).await?),
                Some(there) => {
                    let is_ours = there.metadata.labels.is_some_and(|labels| labels.contains_key(LABEL));
                    let kind = &object["kind"];
                    ensure!(is_ours, "there is a {kind} {name} which no lab has written: give {VARIABLE} a cluster to spare");
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(&object)).await?;
                }
            }
            lock(&self.written).push(object.clone());
            if object["status"].is_object() {
                let status = json!({ "status": object["status"] });
                api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await?;
            }
            Ok(())
        })
    }

    fn get(&self, object: &Value) -> Result<Option<Value>> {
        let (api, name) = self.of(object)?;
        let found = self.runtime.block_on(api.get_opt(&name))?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    fn delete(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object)?;
        self.runtime.block_on(api.delete(&name, &DeleteParams::default()))?;
        Ok(())
    }

    fn down(&self) {
        if let Some(way) = lock(&self.way).take() {
            way.abort();
            // An error says that it was aborted.
            let _ = self.runtime.block_on(way);
        }
    }

    fn up(&self) -> Result<()> {
        let listener = self.netns.inside(|| TcpListener::bind(SocketAddr::from((OUTSIDE, LAB_PORT))))?;
        listener.set_nonblocking(true)?;
        let server = self.server.clone();
        let way = self.runtime.spawn(async move {
            if let Err(error) = carry(listener, &server).await {
                eprintln!("no way to the API server {server}: {error}");
            }
        });
        *lock(&self.way) = Some(way);
        Ok(())
    }
}

impl Drop for RealApi {
    fn drop(&mut self) {
        let written = std::mem::take(&mut *lock(&self.written));
        for object in written.iter().rev() {
            // What the server has deleted with another object is gone.
            if let Ok((api, name)) = self.of(object) {
                let _ = self.runtime.block_on(api.delete(&name, &DeleteParams::default()));
            }
        }
        cluster::Api::down(self);
    }
}

/// Carries every connection on, until it is aborted and all of them break.
async fn carry(listener: TcpListener, server: &str) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let ((mut near, _), server) = (accepted?, server.to_owned());
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(server).await {
                        // Whichever end leaves first ends it.
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
