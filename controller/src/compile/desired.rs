//! What the kernel should hold, as data: the outcome of compiling, the aim of the diff.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, Prefix, Route},
    net::{Ip4, Port, V4},
    service::ServiceKey,
};

use crate::model::ObjectName;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The Service that it is a port of.
    pub service: ObjectName,
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

/// The keys of a [`Desired`] that have changed; their values now stand there, or no longer do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Of `addresses`.
    pub addresses: BTreeSet<Ip4>,
    /// Of `routes`.
    pub routes: BTreeSet<Prefix<V4>>,
    /// Of `services`.
    pub services: BTreeSet<ServiceKey<V4>>,
    /// Of `host_routes`.
    pub host_routes: BTreeSet<Ipv4Net>,
}

impl Patch {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.routes.is_empty() && self.services.is_empty() && self.host_routes.is_empty()
    }

    /// Takes in what another says has changed.
    pub fn absorb(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.routes.extend(other.routes);
        self.services.extend(other.services);
        self.host_routes.extend(other.host_routes);
    }
}

impl Desired {
    pub(super) fn set_address(&mut self, key: Ip4, value: Option<Address>, patch: &mut Patch) {
        if set(&mut self.addresses, key, value) {
            patch.addresses.insert(key);
        }
    }

    pub(super) fn set_route(&mut self, key: Prefix<V4>, value: Option<Route>, patch: &mut Patch) {
        if set(&mut self.routes, key, value) {
            patch.routes.insert(key);
        }
    }

    pub(super) fn set_frontend(&mut self, key: ServiceKey<V4>, value: Option<Frontend>, patch: &mut Patch) {
        if set(&mut self.services, key, value) {
            patch.services.insert(key);
        }
    }

    pub(super) fn set_host_route(&mut self, key: Ipv4Net, wanted: bool, patch: &mut Patch) {
        let changed = if wanted { self.host_routes.insert(key) } else { self.host_routes.remove(&key) };
        if changed {
            patch.host_routes.insert(key);
        }
    }
}

/// Says whether that changed anything.
fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}
