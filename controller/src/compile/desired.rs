//! What the kernel should hold, as data: the outcome of compiling, the aim of the diff.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, Prefix, Route},
    net::{Ip4, Port, V4},
    service::{ServiceKey, flags, node_port_bit},
};

use super::health::HealthCheck;
use crate::model::ObjectName;

/// The whole aim for one node. Depends on the present model alone, never on how it came about: no ids, no slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Nodes, virtual IPs, this node's own addresses. (Pods are added by the agent, which alone knows its interfaces.)
    pub addresses: BTreeMap<Ip4, Address>,
    /// Pod ranges of all nodes, and prefixes left to the host.
    pub routes: BTreeMap<Prefix<V4>, Route>,
    /// Where clients find Services, and the groups of backends that each leads to.
    pub frontends: BTreeMap<ServiceKey<V4>, Frontend>,
    /// Sets of backends that frontends share.
    pub groups: BTreeMap<GroupKey, Group>,
    /// Who may reach a Service at the addresses of a load balancer; of Services that limit it.
    pub source_ranges: BTreeMap<ObjectName, BTreeSet<Ipv4Net>>,
    /// Bits of `NODE_PORTS`, by index, where there are any.
    pub node_ports: BTreeMap<u32, u64>,
    /// What the host's own routing must send to `shunt0`: virtual IPs (/32) and other nodes' pod ranges.
    pub host_routes: BTreeSet<Ipv4Net>,
    /// What load balancers are told about Services, by port of this node.
    pub health_checks: BTreeMap<u16, HealthCheck>,
}

/// What somebody's frontends belong to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A Service.
    Service(ObjectName),
    /// A pod, for its host ports.
    Pod(ObjectName),
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Pod(name) => write!(f, "Pod {name}"),
        }
    }
}

/// Which of a port's endpoints a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Those of the whole cluster, as far as topology allows.
    Cluster,
    /// Those on this node.
    Local,
    /// The pod behind a host port at this address; unspecified: at any.
    HostPort(Ip4),
}

/// Names a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupKey {
    /// Whose.
    pub owner: Owner,
    /// Its port: a Service's, not its node port.
    pub port: Port,
    /// IP protocol number.
    pub proto: u8,
    /// Which endpoints.
    pub scope: Scope,
}

/// Backends that frontends share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Without duplicates.
    pub backends: BTreeMap<Target, Use>,
    /// Whether the run of slots is a Maglev table.
    pub maglev: bool,
}

/// A frontend's aim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// What it belongs to.
    pub owner: Owner,
    /// The port that its groups have.
    pub port: Port,
    /// The group for clients in the cluster.
    pub cluster: Scope,
    /// The group for clients from the outside.
    pub outside: Scope,
    /// Bits of [`shunt_common::service::flags`].
    pub flags: u32,
    /// With [`flags::AFFINITY`].
    pub affinity_secs: u32,
    /// Whether its address is a node's: told of in [`Desired::node_ports`].
    pub at_node: bool,
}

impl Frontend {
    /// The groups for clients in the cluster and from the outside.
    #[must_use]
    pub fn groups(&self, proto: u8) -> [GroupKey; 2] {
        [self.cluster, self.outside].map(|scope| GroupKey { owner: self.owner.clone(), port: self.port, proto, scope })
    }

    /// Whether [`Desired::source_ranges`] apply.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.flags & flags::SOURCE_RANGES != 0
    }
}

/// Where a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// Address.
    pub addr: Ip4,
    /// Port.
    pub port: Port,
}

/// What a backend is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// It keeps its connections but gets no new ones.
    pub draining: bool,
    /// It runs on this node.
    pub local: bool,
}

/// The keys of a [`Desired`] that have changed; their values now stand there, or no longer do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Of `addresses`.
    pub addresses: BTreeSet<Ip4>,
    /// Of `routes`.
    pub routes: BTreeSet<Prefix<V4>>,
    /// Of `frontends`.
    pub frontends: BTreeSet<ServiceKey<V4>>,
    /// Of `groups`.
    pub groups: BTreeSet<GroupKey>,
    /// Of `source_ranges`.
    pub source_ranges: BTreeSet<ObjectName>,
    /// Of `node_ports`.
    pub node_ports: BTreeSet<u32>,
    /// Of `host_routes`.
    pub host_routes: BTreeSet<Ipv4Net>,
    /// Of `health_checks`.
    pub health_checks: BTreeSet<u16>,
}

impl Patch {
    /// What differs between two aims.
    pub(super) fn between(before: &Desired, after: &Desired) -> Self {
        Self {
            addresses: changed(&before.addresses, &after.addresses),
            routes: changed(&before.routes, &after.routes),
            frontends: changed(&before.frontends, &after.frontends),
            groups: changed(&before.groups, &after.groups),
            source_ranges: changed(&before.source_ranges, &after.source_ranges),
            node_ports: changed(&before.node_ports, &after.node_ports),
            host_routes: before.host_routes.symmetric_difference(&after.host_routes).copied().collect(),
            health_checks: changed(&before.health_checks, &after.health_checks),
        }
    }
}

/// Keys whose value differs between two maps.
fn changed<K: Ord + Clone, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> BTreeSet<K> {
    let gone = before.keys().filter(|key| !after.contains_key(key));
    let new = after.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, _)| key);
    gone.chain(new).cloned().collect()
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
        if set(&mut self.frontends, key, value) {
            patch.frontends.insert(key);
        }
    }

    pub(super) fn set_group(&mut self, key: GroupKey, value: Option<Group>, patch: &mut Patch) {
        if set(&mut self.groups, key.clone(), value) {
            patch.groups.insert(key);
        }
    }

    pub(super) fn set_source_ranges(&mut self, key: &ObjectName, value: Option<BTreeSet<Ipv4Net>>, patch: &mut Patch) {
        if set(&mut self.source_ranges, key.clone(), value) {
            patch.source_ranges.insert(key.clone());
        }
    }

    /// Says of a port whether any frontend at a node's address has it.
    pub(super) fn set_node_port(&mut self, proto: u8, port: Port, is_used: bool, patch: &mut Patch) {
        let Some((index, bit)) = node_port_bit(proto, port) else { return };
        let before = self.node_ports.get(&index).copied().unwrap_or_default();
        let now = if is_used { before | bit } else { before & !bit };
        if set(&mut self.node_ports, index, Some(now).filter(|&bits| bits != 0)) {
            patch.node_ports.insert(index);
        }
    }

    pub(super) fn set_host_route(&mut self, key: Ipv4Net, wanted: bool, patch: &mut Patch) {
        let changed = if wanted { self.host_routes.insert(key) } else { self.host_routes.remove(&key) };
        if changed {
            patch.host_routes.insert(key);
        }
    }

    pub(super) fn set_health_check(&mut self, key: u16, value: Option<HealthCheck>, patch: &mut Patch) {
        if set(&mut self.health_checks, key, value) {
            patch.health_checks.insert(key);
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
