//! One port of a Service as kube-proxy on one node sees it (`pkg/proxy/serviceport.go`, `topology.go`, `endpointslicecache.go`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
};

use data_encoding::BASE32;
use ipnet::{IpNet, Ipv4Net};
use sha2::{Digest as _, Sha256};
use shunt::model::{Endpoint, Model, Node, Protocol, Service};

/// How many characters of a hash name a chain of iptables, which takes 28 at most.
const HASH_LEN: usize = 16;
/// How many are in front of a name that nftables takes whole.
const SHORT_HASH_LEN: usize = 8;

/// A port that kube-proxy serves.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// `NAMESPACE/NAME`, and `:PORT` where the port has a name.
    pub name: String,
    /// `NAMESPACE/NAME/PROTOCOL/PORT`, by which the nftables mode names chains.
    path: String,
    /// As iptables and nft write it.
    pub protocol: &'static str,
    /// The ClusterIP.
    pub cluster_ip: Ipv4Addr,
    /// The port at every virtual address.
    pub port: u16,
    /// The port at the node's address.
    pub node_port: Option<u16>,
    /// Addresses of load balancers whose packets come with that destination.
    pub load_balancer_ips: Vec<Ipv4Addr>,
    /// `externalIPs`.
    pub external_ips: Vec<Ipv4Addr>,
    /// Who may ask at addresses of load balancers; everybody if empty.
    pub source_ranges: Vec<Ipv4Net>,
    /// `healthCheckNodePort`.
    pub health_check_port: Option<u16>,
    /// Session affinity, in seconds.
    pub affinity_secs: Option<u32>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Who serves it.
    pub endpoints: Endpoints,
}

/// The endpoints of a port by policy, in ascending order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Those for the policy `Cluster`, as far as topology hints allow; none if no policy of the Service is that.
    pub cluster: Vec<SocketAddrV4>,
    /// Those for the policy `Local`; none if no policy of the Service is that.
    pub local: Vec<SocketAddrV4>,
    /// Those of both that are on this node.
    pub here: BTreeSet<SocketAddrV4>,
    /// Whether any endpoint anywhere can serve.
    pub any: bool,
}

impl Endpoints {
    /// Those that can be reached under any policy.
    pub(super) fn all(&self) -> BTreeSet<SocketAddrV4> {
        self.cluster.iter().chain(&self.local).copied().collect()
    }
}

/// Why nobody serves a port under one of its policies.
#[derive(Clone, Copy)]
pub(super) enum Nobody {
    /// There is nobody anywhere: the client is refused.
    AtAll,
    /// There is nobody here, and the policy is Local: silence.
    Here,
}

impl ServicePort {
    /// The ports of a Service as a node sees them.
    pub(super) fn of<'a>(service: &'a Service, model: &'a Model, node: &'a Node) -> impl Iterator<Item = Self> + 'a {
        let cluster_ip = v4(&service.cluster_ips).next();
        let exposure = service.exposure.as_deref();
        service.ports.iter().filter_map(move |port| {
            let suffix = if port.name.is_empty() { String::new() } else { format!(":{}", port.name) };
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let mut this = Self {
                name: format!("{}{suffix}", service.name),
                path: format!("{}/{protocol}/{}", service.name, port.name),
                protocol,
                cluster_ip: cluster_ip?,
                port: port.port,
                node_port: port.node_port,
                load_balancer_ips: exposure.map(|it| v4(&it.load_balancer_ips).collect()).unwrap_or_default(),
                external_ips: exposure.map(|it| v4(&it.external_ips).collect()).unwrap_or_default(),
                source_ranges: exposure.map(|it| ranges(&it.source_ranges)).unwrap_or_default(),
                health_check_port: exposure.and_then(|it| it.health_check_port),
                affinity_secs: service.affinity_secs,
                internal_local: service.internal_local,
                external_local: exposure.is_some_and(|it| it.local),
                endpoints: Endpoints::default(),
            };
            // Slices in the order of their names; of two endpoints with one address, the one that stays is believed.
            let mut known: BTreeMap<SocketAddrV4, &Endpoint> = BTreeMap::new();
            for (_, slice) in model.slices_of(&service.name) {
                let targets = slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol);
                for target in targets {
                    for endpoint in &slice.endpoints {
                        let IpAddr::V4(address) = endpoint.address else { continue };
                        let at = SocketAddrV4::new(address, target.port);
                        if !known.contains_key(&at) || !endpoint.terminating {
                            known.insert(at, endpoint);
                        }
                    }
                }
            }
            this.endpoints = this.categorize(&known, node);
            Some(this)
        })
    }

    /// Whether there is a way in besides the ClusterIP.
    pub(super) fn is_exposed(&self) -> bool {
        self.node_port.is_some() || !self.load_balancer_ips.is_empty() || !self.external_ips.is_empty()
    }

    /// Whether nobody serves it under one of its policies, and why.
    pub(super) fn nobody(&self, is_local: bool) -> Option<Nobody> {
        if !self.endpoints.any {
            Some(Nobody::AtAll)
        } else if is_local && self.endpoints.local.is_empty() {
            Some(Nobody::Here)
        } else {
            None
        }
    }

    /// `CategorizeEndpoints`. Whatever is exposed needs the endpoints of the whole cluster: clients on the node have them under any policy.
    fn categorize(&self, known: &BTreeMap<SocketAddrV4, &Endpoint>, node: &Node) -> Endpoints {
        let select = |is_wanted: &dyn Fn(&Endpoint) -> bool| -> Vec<SocketAddrV4> {
            known.iter().filter(|(_, endpoint)| is_wanted(endpoint)).map(|(at, _)| *at).collect()
        };
        let is_here = |endpoint: &Endpoint| endpoint.node.as_ref() == Some(&node.name);
        let may_end = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
        let mut endpoints = Endpoints::default();
        if !self.internal_local || self.is_exposed() {
            let topology = Topology::of(known, node);
            endpoints.cluster = select(&|endpoint| endpoint.ready && topology.allows(endpoint, node));
            if endpoints.cluster.is_empty() {
                endpoints.cluster = select(&may_end);
            }
            endpoints.any = !endpoints.cluster.is_empty();
        }
        if self.internal_local || (self.external_local && self.is_exposed()) {
            endpoints.local = select(&|endpoint| is_here(endpoint) && endpoint.ready);
            if endpoints.local.is_empty() {
                endpoints.local = select(&|endpoint| is_here(endpoint) && may_end(endpoint));
            }
            endpoints.any |= known.values().any(|endpoint| endpoint.ready || may_end(endpoint));
        }
        endpoints.here = endpoints.all();
        endpoints.here.retain(|at| known.get(at).is_some_and(|endpoint| is_here(endpoint)));
        endpoints
    }

    /// `PREFIX-` and the hash that kube-proxy gives to this port.
    pub(super) fn chain(&self, prefix: &str) -> String {
        chain(prefix, &[&self.name, self.protocol])
    }

    /// The nftables mode's chain `PREFIX`.
    pub(super) fn nft_chain(&self, prefix: &str) -> String {
        nft_name(prefix, &self.path)
    }

    /// The nftables mode's chain that chooses an endpoint under a policy.
    pub(super) fn policy_chain(&self, is_local: bool) -> String {
        self.nft_chain(if is_local { "local" } else { "service" })
    }

    /// What the nftables mode has for one endpoint.
    pub(super) fn nft_endpoint(&self, prefix: &str, endpoint: SocketAddrV4) -> String {
        nft_name(prefix, &format!("{}__{}/{}", self.path, endpoint.ip(), endpoint.port()))
    }

    /// The chain of one endpoint.
    pub(super) fn endpoint_chain(&self, endpoint: SocketAddrV4) -> String {
        chain("KUBE-SEP", &[&self.name, self.protocol, &endpoint.to_string()])
    }
}

fn chain(prefix: &str, of: &[&str]) -> String {
    format!("{prefix}-{}", &hash(&of.concat())[..HASH_LEN])
}

fn nft_name(prefix: &str, path: &str) -> String {
    format!("{prefix}-{}-{path}", &hash(path)[..SHORT_HASH_LEN])
}

fn hash(of: &str) -> String {
    BASE32.encode(&Sha256::digest(of))
}

/// The IPv4 addresses among some.
pub(super) fn v4(addresses: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> {
    addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// IPv4 ranges; one that has everybody in it is as good as none.
fn ranges(given: &[IpNet]) -> Vec<Ipv4Net> {
    let of_v4: Vec<_> = given
        .iter()
        .filter_map(|range| match range {
            IpNet::V4(range) => Some(*range),
            IpNet::V6(_) => None,
        })
        .collect();
    if of_v4.iter().any(|range| range.prefix_len() == 0) { Vec::new() } else { of_v4 }
}

/// How far hints count: only those which every ready endpoint has, and some for this node.
#[derive(Clone, Copy)]
enum Topology {
    Ignored,
    Zone,
    Node,
}

impl Topology {
    fn of(known: &BTreeMap<SocketAddrV4, &Endpoint>, node: &Node) -> Self {
        let hints = || known.values().filter(|endpoint| endpoint.ready).map(|endpoint| endpoint.hints.as_deref());
        let counts = |mode: Self| {
            let has_any = |hints: &_| match mode {
                Self::Ignored => false,
                Self::Zone => Option::<&shunt::model::Hints>::is_some_and(*hints, |hints| !hints.zones.is_empty()),
                Self::Node => Option::<&shunt::model::Hints>::is_some_and(*hints, |hints| !hints.nodes.is_empty()),
            };
            let is_meant = |endpoint: &&Endpoint| endpoint.ready && mode.allows(endpoint, node);
            hints().all(|hints| has_any(&hints)) && known.values().copied().any(|endpoint| is_meant(&endpoint))
        };
        [Self::Node, Self::Zone].into_iter().find(|mode| counts(*mode)).unwrap_or(Self::Ignored)
    }

    fn allows(self, endpoint: &Endpoint, node: &Node) -> bool {
        let hints = endpoint.hints.as_deref();
        match self {
            Self::Ignored => true,
            Self::Zone => hints.zip(node.zone.as_ref()).is_some_and(|(hints, zone)| hints.zones.contains(zone)),
            Self::Node => hints.is_some_and(|hints| hints.nodes.contains(&node.name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that every cluster with kubeadm's defaults has, and some that kube-proxy 1.36.1 gave in its nftables mode.
    #[test]
    fn chains_are_named_as_kube_proxy_names_them() {
        let svc = |name: &str, protocol: &str| chain("KUBE-SVC", &[name, protocol]);
        assert_eq!(svc("default/kubernetes:https", "tcp"), "KUBE-SVC-NPX46M4PTMTKRN6Y");
        assert_eq!(svc("kube-system/kube-dns:dns-tcp", "tcp"), "KUBE-SVC-ERIFXISQEP7F7OF4");
        assert_eq!(svc("kube-system/kube-dns:dns", "udp"), "KUBE-SVC-TCOU7JCQXEZGVUNU");
        assert_eq!(nft_name("service", "kp/plain/tcp/http"), "service-MXGMN3YE-kp/plain/tcp/http");
        let endpoint = "kp/affine/tcp/__10.244.1.11/8080";
        assert_eq!(nft_name("endpoint", endpoint), format!("endpoint-YUW775IY-{endpoint}"));
    }
}
