//! Model in, desired maps out: pure and incremental. No clock, no I/O, no ids; the outcome depends on the model alone, not on the way to it.

mod claims;
pub mod desired;
mod frontend;
mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, Prefix, Route, kind, route},
    config::link_local,
    net::{Ip4, Mac, Port, V4},
    service::ServiceKey,
};

use self::{
    claims::{AddressClaims, Claimant, RangeClaims},
    desired::{Desired, Frontend, Patch},
    nodes::NodeClaims,
};
use crate::{
    model::{Changes, Model, Name, ObjectName, Service},
    problem::Problem,
};

/// What compiling depends on besides the cluster: the node it is done for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// This node's name.
    pub name: Name,
    /// This node's address on the underlay.
    pub ip: Ip4,
    /// All addresses of this node's interfaces, without the loopback's.
    pub addresses: BTreeSet<Ip4>,
    /// Destinations outside of the cluster to which pods keep their address.
    pub non_masquerade: BTreeSet<Ipv4Net>,
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
    desired: Desired,
    addresses: AddressClaims,
    ranges: RangeClaims,
    nodes: BTreeMap<Name, NodeClaims>,
    services: BTreeMap<ObjectName, ServiceClaims>,
    /// By who is contradicted and on what, so that they go when the contradiction does.
    problems: BTreeMap<Subject, Problem>,
}

/// What a Service has in force.
#[derive(Clone, Debug)]
struct ServiceClaims {
    created: i64,
    virtual_ips: Vec<Ip4>,
    frontends: Vec<ServiceKey<V4>>,
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
}

impl Compiler {
    /// For a node that knows nothing yet of its cluster. The first [`Self::update`] brings the node's own entries with it.
    #[must_use]
    pub fn new(view: NodeView) -> Self {
        Self {
            view,
            desired: Desired::default(),
            addresses: AddressClaims::default(),
            ranges: RangeClaims::default(),
            nodes: BTreeMap::new(),
            services: BTreeMap::new(),
            problems: BTreeMap::new(),
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

    /// Contradictions between objects that are each valid, as of the last update.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.problems.values().cloned().collect();
        problems.sort();
        problems
    }

    /// Follows a change of the model. The patch names the keys of [`Self::desired`] whose value changed.
    pub fn update(&mut self, model: &Model, changes: &Changes) -> Patch {
        let mut affected = Affected::default();
        let mut patch = Patch::default();
        self.claim_own_addresses(&mut affected);
        self.natives(&mut patch);
        for name in &changes.nodes {
            self.claim_node(model, name, &mut affected);
        }
        for name in &changes.services {
            self.claim_service(model.services().get(name), name, &mut affected);
        }
        self.resolve_ranges(&mut affected, &mut patch);
        self.resolve_addresses(&mut affected, &mut patch);
        for name in &affected.services {
            self.resolve_service(model, name, &mut patch);
        }
        patch
    }

    /// Follows a change of the node itself: its addresses came or went.
    pub fn set_view(&mut self, view: NodeView, model: &Model) -> Patch {
        let before = std::mem::take(&mut self.desired);
        *self = Self::new(view);
        self.update(model, &Changes::all(model));
        Patch {
            addresses: changed(&before.addresses, &self.desired.addresses),
            routes: changed(&before.routes, &self.desired.routes),
            services: changed(&before.services, &self.desired.services),
            host_routes: before.host_routes.symmetric_difference(&self.desired.host_routes).copied().collect(),
        }
    }

    fn claim_own_addresses(&mut self, affected: &mut Affected) {
        for &addr in self.view.addresses.iter().chain([&self.view.ip]) {
            let is_of_no_use = addr == Ip4::UNSPECIFIED || addr == link_local::GATEWAY || addr.to_host() >> 24 == 127;
            if !is_of_no_use && self.addresses.of(addr).first() != Some(&Claimant::Host) {
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

    fn claim_service(&mut self, service: Option<&Service>, name: &ObjectName, affected: &mut Affected) {
        affected.services.insert(name.clone());
        let virtual_ips: Vec<Ip4> = service
            .into_iter()
            .flat_map(|service| &service.cluster_ips)
            .filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some((*ip).into()),
                IpAddr::V6(_) => None,
            })
            .collect();
        let created = service.map_or(0, |service| service.created);
        if let Some(before) = self.services.get(name) {
            if before.created == created && before.virtual_ips == virtual_ips {
                return;
            }
            let claimant = Claimant::Service { created: before.created, name: name.clone() };
            for &addr in &before.virtual_ips {
                self.addresses.remove(addr, &claimant);
                self.problems.remove(&Subject::Address(addr, claimant.clone()));
                affected.addresses.insert(addr);
            }
        }
        for &addr in &virtual_ips {
            self.addresses.add(addr, Claimant::Service { created, name: name.clone() });
            affected.addresses.insert(addr);
        }
        if virtual_ips.is_empty() && !self.services.contains_key(name) {
            return;
        }
        let claims = self.services.entry(name.clone()).or_insert(ServiceClaims {
            created,
            virtual_ips: Vec::new(),
            frontends: Vec::new(),
        });
        claims.created = created;
        claims.virtual_ips = virtual_ips;
    }

    /// Settles who owns each affected address, once it is settled who owns which range.
    fn resolve_addresses(&mut self, affected: &mut Affected, patch: &mut Patch) {
        for &addr in &affected.addresses {
            let claimants = self.addresses.of(addr).to_vec();
            let pod_range = self.accepted_range_around(addr);
            let owner = claimants.first().filter(|first| !matches!(first, Claimant::Service { .. }) || pod_range.is_none());
            for claimant in &claimants {
                let subject = Subject::Address(addr, claimant.clone());
                match (owner, pod_range) {
                    (Some(owner), _) if owner == claimant => {
                        self.problems.remove(&subject);
                    }
                    (Some(owner), _) => {
                        let message = format!("{addr} already belongs to {owner}; give one of the two another address");
                        self.problems.insert(subject, contradiction(claimant, message));
                    }
                    (None, range) => {
                        let within = range.map(|range| range.to_string()).unwrap_or_default();
                        let message =
                            format!("{addr} lies in the pod range {within}; choose an address outside of all nodes' podCIDRs");
                        self.problems.insert(subject, contradiction(claimant, message));
                    }
                }
                if let Claimant::Service { name, .. } = claimant {
                    affected.services.insert(name.clone());
                }
            }
            let value = owner.and_then(|owner| self.address_of(owner));
            let is_virtual = value.is_some_and(|address| address.kind == kind::SERVICE);
            self.desired.set_address(addr, value, patch);
            self.desired.set_host_route(Ipv4Net::from(std::net::Ipv4Addr::from(addr)), is_virtual, patch);
        }
    }

    fn address_of(&self, owner: &Claimant) -> Option<Address> {
        let entry = |kind, underlay, mac| Address { kind, ifindex: 0, underlay, mac, reserved: 0 };
        match owner {
            Claimant::Host => Some(entry(kind::HOST, Ip4::UNSPECIFIED, Mac::ZERO)),
            Claimant::Node(name) => {
                let (underlay, mac) = self.nodes.get(name)?.tunnel_end?;
                Some(entry(kind::NODE, underlay, mac))
            }
            Claimant::Service { .. } => Some(entry(kind::SERVICE, Ip4::UNSPECIFIED, Mac::ZERO)),
        }
    }

    fn resolve_service(&mut self, model: &Model, name: &ObjectName, patch: &mut Patch) {
        let mut wanted = BTreeMap::new();
        if let Some(service) = model.services().get(name) {
            let claimant = Claimant::Service { created: service.created, name: name.clone() };
            let owned: Vec<Ip4> = self.services.get(name).map_or_else(Vec::new, |claims| {
                let is_owner = |addr: &Ip4| {
                    self.addresses.of(*addr).first() == Some(&claimant)
                        && self.desired.addresses.get(addr).is_some_and(|address| address.kind == kind::SERVICE)
                };
                claims.virtual_ips.iter().copied().filter(is_owner).collect()
            });
            if !owned.is_empty() {
                for port in &service.ports {
                    let (flags, backends) = frontend::backends(service, port, model.slices_of(name), &self.view.name);
                    let frontend = Frontend { service: name.clone(), flags, backends };
                    for &addr in &owned {
                        let (port, proto) = (Port::from_host(port.port), port.protocol.number());
                        wanted.insert(ServiceKey { addr, port, proto, reserved: 0 }, frontend.clone());
                    }
                }
            }
        }
        let Some(claims) = self.services.get_mut(name) else { return };
        let before = std::mem::replace(&mut claims.frontends, wanted.keys().copied().collect());
        if claims.virtual_ips.is_empty() {
            self.services.remove(name);
        }
        for key in before {
            // Another Service may have taken the frontend over within this very update.
            let is_still_ours = self.desired.services.get(&key).is_some_and(|frontend| frontend.service == *name);
            if is_still_ours && !wanted.contains_key(&key) {
                self.desired.set_frontend(key, None, patch);
            }
        }
        for (key, frontend) in wanted {
            self.desired.set_frontend(key, Some(frontend), patch);
        }
    }
}

/// What a claimant who was not believed is told.
fn contradiction(claimant: &Claimant, message: String) -> Problem {
    let (object, field) = match claimant {
        Claimant::Host => ("this node".to_owned(), None),
        Claimant::Node(name) => (format!("Node {name}"), Some("status.addresses")),
        Claimant::Service { name, .. } => (format!("Service {name}"), Some("spec.clusterIP")),
    };
    Problem { object: Some(object), field: field.map(str::to_owned), message, ..Problem::default() }
}

fn prefix_of(range: Ipv4Net) -> Prefix<V4> {
    Prefix { len: u32::from(range.prefix_len()), addr: range.network().into() }
}

fn native() -> Route {
    Route { kind: route::NATIVE, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, reserved: 0 }
}

/// Keys whose value differs between two maps.
fn changed<K: Ord + Copy, V: PartialEq>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> BTreeSet<K> {
    let gone = before.keys().filter(|key| !after.contains_key(key));
    let new = after.iter().filter(|(key, value)| before.get(key) != Some(value)).map(|(key, _)| key);
    gone.chain(new).copied().collect()
}
