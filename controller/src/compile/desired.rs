//! What the kernel should hold, as data: the outcome of compiling, the aim of the diff.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, Prefix, Route},
    net::{Ip4, Port, V4},
    service::ServiceKey,
};

/// The whole aim for one node. Depends on the present model alone, never on how it came about: no ids, no slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Nodes, virtual IPs, this node's own addresses. (Pods are added by the agent, which alone knows its interfaces.)
    pub addresses: BTreeMap<Ip4, Address>,
    /// Pod ranges of all nodes, and prefixes left to the host.
    pub routes: BTreeMap<Prefix<V4>, Route>,
    /// Frontends with their backends.
    pub services: BTreeMap<ServiceKey<V4>, Frontend>,
    /// What the host's own routing must send to `shunt0`: virtual IPs (/32) and other nodes' pod ranges.
    pub host_routes: BTreeSet<Ipv4Net>,
}

/// A frontend's aim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Bits of [`shunt_common::service::flags`].
    pub flags: u32,
    /// Those that take new connections, and those that keep what they have (`true`), without duplicates.
    pub backends: BTreeMap<Target, Draining>,
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Address.
    pub addr: Ip4,
    /// Port.
    pub port: Port,
}

/// Whether a backend keeps its connections but gets no new ones.
pub type Draining = bool;
