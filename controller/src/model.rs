//! The cluster as shunt understands it: plain values, validated, free of any Kubernetes type.
//!
//! `cluster/` translates API objects into this and rejects what cannot be meant; `compile/` reads it. Nothing here does I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::SystemTime,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use shunt_common::net::{Mac, proto};

/// A name that many values share: cloning costs a count, not a copy.
pub type Name = Arc<str>;

/// Namespace and name of an object; the namespace of a cluster-scoped one is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: Name,
    /// Name.
    pub name: Name,
}

impl ObjectName {
    /// From its two parts.
    pub fn new(namespace: impl Into<Name>, name: impl Into<Name>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Everything known of the cluster that the dataplane depends on.
///
/// Changed through its methods alone, which record in a [`Changes`] what a compiler has to look at again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    nodes: BTreeMap<Name, Node>,
    services: BTreeMap<ObjectName, Service>,
    /// By Service, then in the order of the slices' own names: the namespace of the two is the same. A Service has few, mostly one.
    slices: BTreeMap<ObjectName, Vec<(Name, EndpointSlice)>>,
    /// The Service under which a slice is kept.
    slice_services: BTreeMap<ObjectName, Name>,
}

/// What has changed in a [`Model`] since somebody looked last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Nodes that came, changed or went.
    pub nodes: BTreeSet<Name>,
    /// Services of which any part did: the Service itself or one of its slices.
    pub services: BTreeSet<ObjectName>,
    /// When what some of this tells of happened, where that is known: one for each change of a slice.
    pub triggers: Vec<SystemTime>,
}

impl Changes {
    /// Everything in a model: what a compiler that starts from nothing must look at.
    #[must_use]
    pub fn all(model: &Model) -> Self {
        Self {
            nodes: model.nodes.keys().cloned().collect(),
            services: model.services.keys().cloned().collect(),
            ..Self::default()
        }
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.services.is_empty()
    }

    /// Takes in what another has recorded.
    pub fn absorb(&mut self, other: Self) {
        self.nodes.extend(other.nodes);
        self.services.extend(other.services);
        self.triggers.extend(other.triggers);
    }
}

impl Model {
    /// Nodes by name.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<Name, Node> {
        &self.nodes
    }

    /// Services by name.
    #[must_use]
    pub fn services(&self) -> &BTreeMap<ObjectName, Service> {
        &self.services
    }

    /// The slices of a Service with their names, in the order of these.
    pub fn slices_of(&self, service: &ObjectName) -> &[(Name, EndpointSlice)] {
        self.slices.get(service).map_or(&[], Vec::as_slice)
    }

    /// Services, whether or not they are there themselves, that have an endpoint at one of these addresses. Looks at all endpoints.
    pub fn services_at(&self, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = &ObjectName> {
        let is_there = |(_, slice): &(Name, EndpointSlice)| slice.endpoints.iter().any(|it| addresses.contains(&it.address));
        self.slices.iter().filter(move |(_, slices)| slices.iter().any(is_there)).map(|(service, _)| service)
    }

    /// A slice by its own name, with the name of its Service.
    #[must_use]
    pub fn slice(&self, name: &ObjectName) -> Option<(&Name, &EndpointSlice)> {
        let service = self.slice_services.get(name)?;
        let owner = ObjectName { namespace: name.namespace.clone(), name: service.clone() };
        let slices = self.slices.get(&owner)?;
        let place = slices.binary_search_by(|(known, _)| known.cmp(&name.name)).ok()?;
        Some((service, &slices[place].1))
    }

    /// How many slices there are.
    #[must_use]
    pub fn slice_count(&self) -> usize {
        self.slice_services.len()
    }

    /// Adds or replaces a node.
    pub fn put_node(&mut self, node: Node, changes: &mut Changes) {
        if self.nodes.get(&node.name) != Some(&node) {
            changes.nodes.insert(node.name.clone());
            self.nodes.insert(node.name.clone(), node);
        }
    }

    /// Removes a node, if it is there.
    pub fn remove_node(&mut self, name: &Name, changes: &mut Changes) {
        if self.nodes.remove(name).is_some() {
            changes.nodes.insert(name.clone());
        }
    }

    /// Adds or replaces a Service.
    pub fn put_service(&mut self, service: Service, changes: &mut Changes) {
        if self.services.get(&service.name) != Some(&service) {
            changes.services.insert(service.name.clone());
            self.services.insert(service.name.clone(), service);
        }
    }

    /// Removes a Service, if it is there.
    pub fn remove_service(&mut self, name: &ObjectName, changes: &mut Changes) {
        if self.services.remove(name).is_some() {
            changes.services.insert(name.clone());
        }
    }

    /// Adds or replaces a slice of the Service with the name `service` in the slice's namespace; the slice may have been another's before.
    pub fn put_slice(&mut self, name: &ObjectName, service: &Name, slice: EndpointSlice, changes: &mut Changes) {
        if self.slice_services.get(name).is_some_and(|before| before != service) {
            self.remove_slice(name, changes);
        }
        let owner = ObjectName { namespace: name.namespace.clone(), name: service.clone() };
        let slices = self.slices.entry(owner.clone()).or_default();
        match slices.binary_search_by(|(known, _)| known.cmp(&name.name)) {
            Ok(place) if slices[place].1 == slice => return,
            Ok(place) => slices[place].1 = slice,
            Err(place) => {
                slices.reserve_exact(1);
                slices.insert(place, (name.name.clone(), slice));
                self.slice_services.insert(name.clone(), service.clone());
            }
        }
        changes.services.insert(owner);
    }

    /// Removes a slice, if it is there.
    pub fn remove_slice(&mut self, name: &ObjectName, changes: &mut Changes) {
        let Some(service) = self.slice_services.remove(name) else { return };
        let owner = ObjectName { namespace: name.namespace.clone(), name: service };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.retain(|(known, _)| *known != name.name);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        changes.services.insert(owner);
    }
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Name,
    /// `status.addresses` of type InternalIP, then ExternalIP, in their order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, host bits zero.
    pub pod_cidrs: Vec<IpNet>,
    /// Where its tunnel ends, if not at the first address with the derived MAC: flannel's annotations.
    pub tunnel: TunnelEnd,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Name>,
}

/// What flannel's Node annotations say of a tunnel end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelEnd {
    /// `flannel.alpha.coreos.com/public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `VtepMAC` of `flannel.alpha.coreos.com/backend-data`.
    pub vtep_mac: Option<Mac>,
    /// `DirectReturn` of the same, which flannel takes no notice of, and leaves out when it writes its own: whether the node's backends
    /// answer clients that asked another node.
    pub direct_return: bool,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl Protocol {
    /// The IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => proto::TCP,
            Self::Udp => proto::UDP,
            Self::Sctp => proto::SCTP,
        }
    }
}

/// A Service that has at least one virtual IP. Headless ones, ExternalName and those of another proxy are not in the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since the epoch; objects without one sort first by 0.
    pub created: i64,
    /// `spec.clusterIPs`.
    pub cluster_ips: Box<[IpAddr]>,
    /// What makes it more than a ClusterIP, if anything does.
    pub exposure: Option<Box<Exposure>>,
    /// `spec.ports`.
    pub ports: Box<[ServicePort]>,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// For how many seconds a client stays with its backend (`spec.sessionAffinity: ClientIP`); `None` without affinity.
    pub affinity_secs: Option<u32>,
}

/// How a Service is reached from the outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// `status.loadBalancer.ingress[].ip` of those whose packets arrive with this destination (`ipMode: VIP`).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `spec.externalTrafficPolicy: Local`.
    pub local: bool,
    /// `spec.loadBalancerSourceRanges`, host bits zero; empty lets everybody in.
    pub source_ranges: Box<[IpNet]>,
    /// `spec.healthCheckNodePort`.
    pub health_check_port: Option<u16>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for the only port of a Service. What an EndpointSlice's port is matched by.
    pub name: Name,
    /// The port on the virtual IP, 1 to 65535.
    pub port: u16,
    /// The port at the addresses of nodes.
    pub node_port: Option<u16>,
    /// Protocol.
    pub protocol: Protocol,
}

/// A port of this node that leads to one of its pods: a CNI port mapping.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// The address that it is limited to; any of the node's if unset.
    pub host_ip: Option<Ipv4Addr>,
    /// The port at the node, 1 to 65535.
    pub host_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// The pod.
    pub pod: ObjectName,
    /// The pod's address.
    pub pod_ip: Ipv4Addr,
    /// The port at the pod, 1 to 65535.
    pub pod_port: u16,
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Ports; an endpoint of this slice has all of them.
    pub ports: Box<[EndpointPort]>,
    /// Endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// A port that the endpoints of a slice have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The Service port's name.
    pub name: Name,
    /// The target port, 1 to 65535.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address; the API makes the others interchangeable, and kube-proxy uses the first alone.
    pub address: IpAddr,
    /// `conditions.ready`, true if unset.
    pub ready: bool,
    /// `conditions.serving`, as `ready` if unset.
    pub serving: bool,
    /// `conditions.terminating`, false if unset.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Name>,
    /// `hints`: whom it is meant for, if for anyone in particular.
    pub hints: Option<Box<Hints>>,
}

/// Whom an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones`.
    pub zones: Box<[Name]>,
    /// `forNodes`.
    pub nodes: Box<[Name]>,
}
