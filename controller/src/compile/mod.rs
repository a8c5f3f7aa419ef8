//! Model in, desired maps out: pure and incremental. No clock, no I/O, no ids; the outcome depends on the model alone, not on the way to it.

mod addresses;
mod claims;
pub mod desired;
mod endpoints;
pub mod health;
mod held;
mod host_ports;
mod nodes;
mod services;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Prefix, Route, route},
    config::link_local,
    net::{Ip4, Mac, Port, V4},
    service::ServiceKey,
};

use self::{
    claims::{AddressClaims, Claimant, Claims, Exposer, RangeClaims, Rank},
    desired::{Desired, Patch},
    host_ports::HostPorts,
    nodes::NodeClaims,
    services::ServiceClaims,
};
use crate::{
    config::{LoadBalancer, NodePortAddresses, NodePortMode},
    model::{Changes, Model, Name, ObjectName},
    problem::Problem,
};

/// What compiling depends on besides the cluster: the node it is done for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// This node's name.
    pub name: Name,
    /// This node's address on the underlay.
    pub ip: Ip4,
    /// The subnet on the underlay that `ip` is of.
    pub subnet: Ipv4Net,
    /// All addresses of this node's interfaces, without the loopback's.
    pub addresses: BTreeSet<Ip4>,
    /// Destinations outside of the cluster to which pods keep their address.
    pub non_masquerade: BTreeSet<Ipv4Net>,
    /// At which of this node's addresses node ports are.
    pub node_port_addresses: NodePortAddresses,
    /// By which way backends on other nodes answer clients of node ports.
    pub node_port: NodePortMode,
    /// How backends are chosen.
    pub load_balancer: LoadBalancer,
}

/// Compiles a whole model. What [`Compiler`] arrives at by any way, this does at once.
#[must_use]
pub fn compile(model: &Model, view: &NodeView) -> (Desired, Vec<Problem>) {
    let mut compiler = Compiler::new(view.clone());
    compiler.update(model, &Changes::all(model));
    let problems = compiler.problems();
    (compiler.desired, problems)
}

/// Keeps a [`Desired`] in step with a model at the cost of what changed.
#[derive(Clone, Debug)]
pub struct Compiler {
    view: NodeView,
    node_port_addresses: BTreeSet<Ip4>,
    /// Of this node.
    zone: Option<Name>,
    desired: Desired,
    addresses: AddressClaims,
    ranges: RangeClaims,
    exposed: Claims<ServiceKey<V4>, Exposer>,
    health_ports: Claims<u16, Rank>,
    nodes: BTreeMap<Name, NodeClaims>,
    services: BTreeMap<ObjectName, ServiceClaims>,
    host_ports: HostPorts,
    /// How many frontends at addresses of nodes have a port.
    node_port_users: BTreeMap<(u8, Port), u32>,
    /// Addresses that an endpoint has or once had: only for these is it worth to look through all endpoints.
    endpoints_seen: HashSet<Ip4>,
    /// By who is contradicted and on what, so that they go when the contradiction does.
    problems: BTreeMap<Subject, Problem>,
    service_problems: BTreeMap<ObjectName, Vec<Problem>>,
}

/// What a problem is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Address(Ip4, Claimant),
    Range(Ipv4Net, Name),
    Node(Name),
}

/// What has to be looked at again.
#[derive(Default)]
struct Affected {
    addresses: BTreeSet<Ip4>,
    ranges: BTreeSet<Ipv4Net>,
    services: BTreeSet<ObjectName>,
    /// Of endpoints that are now at a virtual IP, or no longer.
    endpoints: BTreeSet<IpAddr>,
    /// Services that share a claim with one that changed.
    contending: BTreeSet<ObjectName>,
    host_ports: bool,
}

impl Affected {
    fn contend(&mut self, exposers: Vec<Exposer>) {
        for exposer in exposers {
            match exposer {
                Exposer::Service(rank) => {
                    self.contending.insert(rank.name);
                }
                Exposer::Pod(_) => self.host_ports = true,
            }
        }
    }
}

impl Compiler {
    /// For a node that knows nothing yet of its cluster. The first [`Self::update`] brings the node's own entries with it.
    #[must_use]
    pub fn new(view: NodeView) -> Self {
        let own = view.addresses.iter().copied().chain([view.ip]).filter(|&addr| is_of_use(addr));
        let node_port_addresses = match &view.node_port_addresses {
            NodePortAddresses::Primary => [view.ip].into(),
            NodePortAddresses::Within(ranges) => {
                own.filter(|&addr| ranges.iter().any(|range| range.contains(&std::net::Ipv4Addr::from(addr)))).collect()
            }
        };
        Self {
            view,
            node_port_addresses,
            zone: None,
            desired: Desired::default(),
            addresses: AddressClaims::default(),
            ranges: RangeClaims::default(),
            exposed: Claims::default(),
            health_ports: Claims::default(),
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            host_ports: HostPorts::default(),
            node_port_users: BTreeMap::new(),
            endpoints_seen: HashSet::new(),
            problems: BTreeMap::new(),
            service_problems: BTreeMap::new(),
        }
    }

    /// The node it compiles for.
    #[must_use]
    pub fn view(&self) -> &NodeView {
        &self.view
    }

    /// The aim as of the last update.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Where on this node node ports are, and what goes with them.
    #[must_use]
    pub fn node_port_addresses(&self) -> &BTreeSet<Ip4> {
        &self.node_port_addresses
    }

    /// Why a pod range of this node is not believed, if it is not.
    #[must_use]
    pub fn refusal_of_own_range(&self, range: Ipv4Net) -> Option<&Problem> {
        self.problems.get(&Subject::Range(range, self.view.name.clone()))
    }

    /// Contradictions between objects that are each valid, as of the last update.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let of_services = self.service_problems.values().flatten();
        let mut problems: Vec<Problem> =
            self.problems.values().chain(of_services).chain(&self.host_ports.problems).cloned().collect();
        problems.sort();
        problems
    }

    /// Follows a change of the model. The patch names the keys of [`Self::desired`] whose value changed.
    pub fn update(&mut self, model: &Model, changes: &Changes) -> Patch {
        let mut affected = Affected::default();
        let mut patch = Patch::default();
        self.claim_own_addresses(&mut affected);
        self.natives(&mut patch);
        self.follow_zone(model, changes, &mut affected);
        for name in &changes.nodes {
            self.claim_node(model, name, &mut affected);
        }
        for name in &changes.services {
            self.claim_service(model.services().get(name), name, &mut affected);
        }
        self.resolve_ranges(&mut affected, &mut patch);
        self.resolve_addresses(&mut affected, &mut patch);
        if !affected.endpoints.is_empty() {
            affected.services.extend(model.services_at(&affected.endpoints).cloned());
        }
        for name in std::mem::take(&mut affected.services) {
            self.claim_frontends(model, &name, &mut affected);
            affected.contending.insert(name);
        }
        for name in &affected.contending {
            self.resolve_service(model, name, &mut patch);
        }
        if affected.host_ports {
            self.resolve_host_ports(&mut patch);
        }
        patch
    }

    /// Follows a change of the node itself: its addresses came or went.
    pub fn set_view(&mut self, view: NodeView, model: &Model) -> Patch {
        let before = std::mem::take(&mut self.desired);
        let host_ports = std::mem::take(&mut self.host_ports).into_wanted();
        *self = Self::new(view);
        self.update(model, &Changes::all(model));
        self.set_host_ports(host_ports);
        Patch::between(&before, &self.desired)
    }

    /// Endpoints may be meant for zones: all Services are looked at again when this node moves.
    fn follow_zone(&mut self, model: &Model, changes: &Changes, affected: &mut Affected) {
        if !changes.nodes.contains(&self.view.name) {
            return;
        }
        let zone = model.nodes().get(&self.view.name).and_then(|node| node.zone.clone());
        if zone != self.zone {
            self.zone = zone;
            affected.services.extend(model.services().keys().cloned());
        }
    }

    fn claim_own_addresses(&mut self, affected: &mut Affected) {
        for &addr in self.view.addresses.iter().chain([&self.view.ip]) {
            if is_of_use(addr) && self.addresses.of(addr).first() != Some(&Claimant::Host) {
                self.addresses.add(addr, Claimant::Host);
                affected.addresses.insert(addr);
            }
        }
    }

    fn natives(&mut self, patch: &mut Patch) {
        for range in self.view.non_masquerade.clone() {
            let prefix = prefix_of(range);
            if !self.desired.routes.contains_key(&prefix) {
                self.desired.set_route(prefix, Some(native()), patch);
            }
        }
    }
}

fn prefix_of(range: Ipv4Net) -> Prefix<V4> {
    Prefix { len: u32::from(range.prefix_len()), addr: range.network().into() }
}

fn native() -> Route {
    Route { kind: route::NATIVE, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, flags: 0 }
}

/// Whether others can mean this node by one of its addresses.
fn is_of_use(addr: Ip4) -> bool {
    addr != Ip4::UNSPECIFIED && addr != link_local::GATEWAY && addr.to_host() >> 24 != 127
}
