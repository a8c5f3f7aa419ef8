//! A made-up cluster of any size: nodes, and Services with endpoints spread over them; as files, or as an API server has them.

mod objects;

use std::{
    fmt::Write as _,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// How many Services a packed file has.
const PACKED: u32 = 1000;

/// How large a cluster to make up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes, at most 16,384: `node-0` at 172.16.0.1 with the pods 10.0.0.0/24, and so on.
    pub nodes: u32,
    /// Services, at most 1,048,576: `service-0` at 10.96.0.1, and so on; one TCP port, 80.
    pub services: u32,
    /// Ready endpoints of each Service, at most 1,000, on port 8080.
    pub endpoints: u32,
}

impl Cluster {
    /// Writes all of it into a directory: the nodes in one file, each Service with its EndpointSlice in one of its own.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let nodes: String = (0..self.nodes).map(node).collect();
        fs::write(dir.join("nodes.yaml"), nodes)?;
        for service in 0..self.services {
            fs::write(Self::file_of(dir, service), self.service(service, self.endpoints))?;
        }
        Ok(())
    }

    /// The same with 1,000 Services in a file: sooner read, for a cluster in which nothing changes.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn write_packed(&self, dir: &Path) -> io::Result<()> {
        fs::write(dir.join("nodes.yaml"), (0..self.nodes).map(node).collect::<String>())?;
        for first in (0..self.services).step_by(PACKED as usize) {
            let services = first..self.services.min(first + PACKED);
            let texts: Vec<_> = services.map(|service| self.service(service, self.endpoints)).collect();
            fs::write(dir.join(format!("services-{first}.yaml")), texts.join("---\n"))?;
        }
        Ok(())
    }

    /// The address of a Service.
    #[must_use]
    pub fn virtual_ip(service: u32) -> Ipv4Addr {
        Ipv4Addr::from(0x0a60_0001 + service)
    }

    /// The file of a Service.
    #[must_use]
    pub fn file_of(dir: &Path, service: u32) -> PathBuf {
        dir.join(format!("service-{service}.yaml"))
    }

    /// A Service and its EndpointSlice with so many endpoints, as the API server would write them.
    #[must_use]
    pub fn service(&self, service: u32, endpoints: u32) -> String {
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: service-{service}\n  namespace: default\n  creationTimestamp: \
             \"2026-01-01T00:00:00Z\"\n  labels:\n    app: app-{service}\nspec:\n  type: ClusterIP\n  clusterIP: {ip}\n  clusterIPs:\n  - \
             {ip}\n  ipFamilies:\n  - IPv4\n  ipFamilyPolicy: SingleStack\n  internalTrafficPolicy: Cluster\n  selector:\n    app: \
             app-{service}\n  sessionAffinity: None\n  ports:\n  - name: http\n    port: 80\n    protocol: TCP\n    targetPort: \
             8080\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: service-{service}-a\n  namespace: \
             default\n  labels:\n    kubernetes.io/service-name: service-{service}\naddressType: IPv4\nports:\n- name: http\n  port: 8080\n  \
             protocol: TCP\nendpoints:\n",
            ip = Self::virtual_ip(service),
        );
        for endpoint in 0..endpoints {
            let (address, node) = self.endpoint(service, endpoint);
            // A String takes whatever is written to it.
            let _ = write!(
                text,
                "- addresses:\n  - {address}\n  conditions:\n    ready: true\n    serving: true\n    terminating: false\n  nodeName: node-{node}\n",
            );
        }
        text
    }
}

/// The first address of a node's pod range.
fn pod_range(node: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + (node << 8))
}

fn node_address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac10_0001 + node)
}

fn node(number: u32) -> String {
    let range = pod_range(number);
    let address = node_address(number);
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: node-{number}\nspec:\n  podCIDR: {range}/24\n  podCIDRs:\n  - \
         {range}/24\nstatus:\n  addresses:\n  - type: InternalIP\n    address: {address}\n  - type: Hostname\n    address: node-{number}\n"
    )
}
