//! The cluster as shunt understands it: plain values, validated, free of any Kubernetes type.
//!
//! `cluster/` translates API objects into this and rejects what cannot be meant; `compile/` reads it. Nothing here does I/O.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use shunt_common::net::Mac;

/// Namespace and name of an object; the namespace of a cluster-scoped one is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// Everything known of the cluster that the dataplane depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// By name.
    pub services: BTreeMap<ObjectName, Service>,
    /// By the slice's own name; each names its Service.
    pub slices: BTreeMap<ObjectName, EndpointSlice>,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// `status.addresses` of type InternalIP, then ExternalIP, in their order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Where its tunnel ends, if not at the first address with the derived MAC: flannel's annotations.
    pub tunnel: TunnelEnd,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

/// What flannel's Node annotations say of a tunnel end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelEnd {
    /// `flannel.alpha.coreos.com/public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `VtepMAC` of `flannel.alpha.coreos.com/backend-data`.
    pub vtep_mac: Option<Mac>,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A Service that has at least one virtual IP. Headless ones, ExternalName and those of another proxy are not in the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp` in seconds since the epoch; objects without one sort first by 0.
    pub created: i64,
    /// `spec.clusterIPs`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty for the only port of a Service. What an EndpointSlice's port is matched by.
    pub name: String,
    /// The port on the virtual IP, 1 to 65535.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// A part of a Service's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service it belongs to, by the label `kubernetes.io/service-name`.
    pub service: ObjectName,
    /// Ports; an endpoint of this slice has all of them.
    pub ports: Vec<EndpointPort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port that the endpoints of a slice have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The Service port's name.
    pub name: String,
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
    pub node: Option<String>,
}
