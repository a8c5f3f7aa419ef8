//! Desired against actual, as ordered steps. The one place that gives out backend ids and slots.
//!
//! Order within a plan: backends, runs of slots, the Services that name them, then what leads packets to them; removal the other way
//! round. So no step leaves a reference to what isn't there. What a plan releases is reused by the next one at the earliest.

mod backends;
mod runs;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, Prefix, Route, kind},
    maps,
    net::{Ip4, V4},
    service::{Service, ServiceKey, state},
};

use self::{backends::BackendIds, runs::Runs};
use crate::{
    compile::desired::{Desired, Frontend, Patch, Target},
    kernel::step::{Actual, Step},
    problem::Problem,
};

/// How many entries each map takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// `ADDRESSES`, of which [`Self::PODS`] are kept free for this node's pods.
    pub addresses: u32,
    /// `ROUTES`.
    pub routes: u32,
    /// `SERVICES`.
    pub services: u32,
    /// `SLOTS`.
    pub slots: u32,
    /// `BACKENDS`; index 0 is never used.
    pub backends: u32,
}

impl Capacities {
    /// Entries of `ADDRESSES` that are never given to anything but pods: more than kubelet's default of 110 pods a node by far.
    pub const PODS: u32 = 1024;
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            addresses: maps::ADDRESSES.capacity,
            routes: maps::ROUTES.capacity,
            services: maps::SERVICES.capacity,
            slots: maps::SLOTS.capacity,
            backends: maps::BACKENDS.capacity,
        }
    }
}

/// The outcome of a diff.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be carried out in this order, all of them.
    pub steps: Vec<Step>,
    /// Something found no room, and this plan makes room: plan again once it is carried out.
    pub again: bool,
}

/// Knows what the kernel holds (if every plan so far was carried out) and what has to change for an aim.
///
/// When carrying out fails, make a new one from what is read back and [`reconcile`](Self::reconcile).
#[derive(Clone, Debug)]
pub struct Differ {
    capacities: Capacities,
    addresses: BTreeMap<Ip4, Address>,
    routes: BTreeMap<Prefix<V4>, Route>,
    host_routes: BTreeSet<Ipv4Net>,
    services: BTreeMap<ServiceKey<V4>, Placement>,
    backends: BackendIds,
    runs: Runs,
    /// What found no room, tried again with every plan.
    refused: BTreeMap<Refused, Problem>,
}

/// What a frontend has in the kernel.
#[derive(Clone, Debug)]
struct Placement {
    service: Service,
    /// Targets with their ids, in the order of the run's slots.
    active: Vec<(Target, u32)>,
    draining: Vec<(Target, u32)>,
    /// Found with slots that lead nowhere: it needs a new run whatever is wanted.
    broken: bool,
    /// Whether the run is its alone, to be given back: not so if it was found to overlap another's.
    owns_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refused {
    Address(Ip4),
    Route(Prefix<V4>),
    Service(ServiceKey<V4>),
}

/// Steps by their place in the plan.
#[derive(Default)]
struct Batch {
    activate: Vec<Step>,
    slots: Vec<Step>,
    services: Vec<Step>,
    lead_to: Vec<Step>,
    lead_away: Vec<Step>,
    delete_services: Vec<Step>,
    retire: Vec<Step>,
}

impl Differ {
    /// From what the kernel holds. Pods in it are nobody's business here.
    #[must_use]
    pub fn new(actual: &Actual, capacities: Capacities) -> Self {
        let mut differ = Self {
            capacities,
            addresses: actual
                .addresses
                .iter()
                .filter(|(_, address)| address.kind != kind::POD)
                .map(|(k, v)| (*k, *v))
                .collect(),
            routes: actual.routes.clone(),
            host_routes: actual.host_routes.clone(),
            services: BTreeMap::new(),
            backends: BackendIds::new(&actual.backends, capacities.backends),
            runs: Runs::new(capacities.slots),
            refused: BTreeMap::new(),
        };
        for (&key, &service) in &actual.services {
            let owns_run = differ.runs.reserve(service.base, service.count);
            let mut placement = Placement { service, active: Vec::new(), draining: Vec::new(), broken: !owns_run, owns_run };
            let mut seen = BTreeSet::new();
            for slot in service.base..service.base.saturating_add(service.count) {
                let id = actual.slots.get(&slot).copied().unwrap_or_default();
                match differ.backends.adopt(id) {
                    Some(target) if seen.insert(target) => placement.active.push((target, id)),
                    Some(_) => differ.backends.orphan(id),
                    None => differ.backends.rest(id),
                }
            }
            placement.broken |= placement.active.len() != service.count as usize;
            differ.services.insert(key, placement);
        }
        differ
    }

    /// What found no room in a map, as of the last plan.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.refused.values().cloned().collect()
    }

    /// The id that a frontend's target has, if it has one.
    #[must_use]
    pub fn backend_id(&self, key: &ServiceKey<V4>, target: Target) -> Option<u32> {
        let placement = self.services.get(key)?;
        placement.active.iter().chain(&placement.draining).find(|(other, _)| *other == target).map(|(_, id)| *id)
    }

    /// Steps for the keys that a patch names.
    pub fn plan(&mut self, desired: &Desired, patch: &Patch) -> Plan {
        let mut addresses = patch.addresses.clone();
        let mut routes = patch.routes.clone();
        let mut services = patch.services.clone();
        for refused in std::mem::take(&mut self.refused).into_keys() {
            match refused {
                Refused::Address(addr) => addresses.insert(addr),
                Refused::Route(prefix) => routes.insert(prefix),
                Refused::Service(key) => services.insert(key),
            };
        }
        let mut batch = Batch::default();
        let (put, delete): (Vec<_>, Vec<_>) = services.into_iter().partition(|key| desired.services.contains_key(key));
        for key in put {
            if let Some(frontend) = desired.services.get(&key) {
                self.place(key, frontend, &mut batch);
            }
        }
        for key in delete {
            self.withdraw(key, &mut batch);
        }
        self.lead(desired, &addresses, &routes, &patch.host_routes, &mut batch);
        self.finish(batch)
    }

    /// Steps for everything, garbage included: for the start, and whenever it is not certain what the kernel holds.
    pub fn reconcile(&mut self, desired: &Desired) -> Plan {
        let everything = Patch {
            addresses: desired.addresses.keys().chain(self.addresses.keys()).copied().collect(),
            routes: desired.routes.keys().chain(self.routes.keys()).copied().collect(),
            services: desired.services.keys().chain(self.services.keys()).copied().collect(),
            host_routes: desired.host_routes.union(&self.host_routes).copied().collect(),
        };
        let mut plan = self.plan(desired, &everything);
        let orphans = self.backends.take_orphans();
        plan.again |= !orphans.is_empty() && !self.refused.is_empty();
        plan.steps.extend(orphans.into_iter().filter_map(|id| self.backends.free(id)));
        self.backends.settle();
        plan
    }

    fn finish(&mut self, batch: Batch) -> Plan {
        let released =
            [self.runs.settle(), self.backends.settle(), !batch.delete_services.is_empty(), !batch.lead_away.is_empty()];
        let again = !self.refused.is_empty() && released.contains(&true);
        let Batch { activate, slots, services, lead_to, lead_away, delete_services, retire } = batch;
        Plan { steps: [activate, slots, services, lead_to, lead_away, delete_services, retire].concat(), again }
    }

    /// One frontend: all of it, or nothing if there is no room for some of it.
    fn place(&mut self, key: ServiceKey<V4>, frontend: &Frontend, batch: &mut Batch) {
        let before = self.services.get(&key);
        if before.is_none() && self.services.len() >= self.capacities.services as usize {
            self.refuse_service(key, frontend, ("SERVICES", self.capacities.services, 1), batch);
            return;
        }
        let known: BTreeMap<Target, u32> =
            before.into_iter().flat_map(|placement| placement.active.iter().chain(&placement.draining)).copied().collect();
        let mut active = Vec::new();
        let mut draining = Vec::new();
        let mut fresh = Vec::new();
        for (&target, &is_draining) in &frontend.backends {
            let id = known.get(&target).copied().or_else(|| is_draining.then(|| self.backends.claim_orphan(target)).flatten());
            let Some(id) = id.or_else(|| self.backends.allocate().inspect(|&id| fresh.push(id))) else {
                fresh.into_iter().rev().for_each(|id| self.backends.give_back(id));
                self.refuse_service(key, frontend, ("BACKENDS", self.capacities.backends, frontend.backends.len()), batch);
                return;
            };
            if is_draining { &mut draining } else { &mut active }.push((target, id));
        }

        let before = self.services.get(&key);
        let is_same_run = before.is_some_and(|placement| !placement.broken && placement.active == active);
        let count = active.len() as u32;
        let base = match before {
            Some(placement) if is_same_run => Some(placement.service.base),
            _ => self.runs.allocate(count),
        };
        let Some(base) = base else {
            fresh.into_iter().rev().for_each(|id| self.backends.give_back(id));
            self.refuse_service(key, frontend, ("SLOTS", self.capacities.slots, active.len()), batch);
            return;
        };

        batch.activate.extend(active.iter().filter_map(|&(target, id)| self.backends.put(id, target, state::ACTIVE)));
        if !is_same_run && count > 0 {
            batch.slots.push(Step::PutSlots { base, ids: active.iter().map(|(_, id)| *id).collect() });
        }
        let service = Service { base, count, flags: frontend.flags };
        let before = self.services.insert(key, Placement { service, active, draining, broken: false, owns_run: true });
        if before.as_ref().map(|placement| placement.service) != Some(service) {
            batch.services.push(Step::PutService { key, service });
        }
        let placement = &self.services[&key];
        batch
            .retire
            .extend(placement.draining.iter().filter_map(|&(target, id)| self.backends.put(id, target, state::DRAINING)));
        if let Some(before) = before {
            if !is_same_run && before.owns_run {
                self.runs.release(before.service.base, before.service.count);
            }
            let gone =
                before.active.iter().chain(&before.draining).filter(|(target, _)| !frontend.backends.contains_key(target));
            batch.retire.extend(gone.filter_map(|&(_, id)| self.backends.free(id)));
        }
    }

    fn withdraw(&mut self, key: ServiceKey<V4>, batch: &mut Batch) {
        let Some(before) = self.services.remove(&key) else { return };
        batch.delete_services.push(Step::DeleteService { key });
        if before.owns_run {
            self.runs.release(before.service.base, before.service.count);
        }
        let gone = before.active.iter().chain(&before.draining);
        batch.retire.extend(gone.filter_map(|&(_, id)| self.backends.free(id)));
    }

    /// What leads packets somewhere: addresses, routes, host routes.
    fn lead(
        &mut self,
        desired: &Desired,
        addresses: &BTreeSet<Ip4>,
        routes: &BTreeSet<Prefix<V4>>,
        host_routes: &BTreeSet<Ipv4Net>,
        batch: &mut Batch,
    ) {
        let room = self.capacities.addresses.saturating_sub(Capacities::PODS);
        for &addr in addresses {
            let Some(&address) = desired.addresses.get(&addr) else { continue };
            if !self.addresses.contains_key(&addr) && self.addresses.len() >= room as usize {
                let problem = full("ADDRESSES", room, 1, format!("address {addr}"));
                self.refused.insert(Refused::Address(addr), problem);
            } else if self.addresses.insert(addr, address) != Some(address) {
                batch.lead_to.push(Step::PutAddress { addr, address });
            }
        }
        for &prefix in routes {
            let Some(&route) = desired.routes.get(&prefix) else { continue };
            if !self.routes.contains_key(&prefix) && self.routes.len() >= self.capacities.routes as usize {
                let problem = full("ROUTES", self.capacities.routes, 1, format!("route {}/{}", prefix.addr, prefix.len));
                self.refused.insert(Refused::Route(prefix), problem);
            } else if self.routes.insert(prefix, route) != Some(route) {
                batch.lead_to.push(Step::PutRoute { prefix, route });
            }
        }
        for &prefix in host_routes {
            if desired.host_routes.contains(&prefix) && self.host_routes.insert(prefix) {
                batch.lead_to.push(Step::AddHostRoute { prefix });
            }
        }
        for &prefix in host_routes {
            if !desired.host_routes.contains(&prefix) && self.host_routes.remove(&prefix) {
                batch.lead_away.push(Step::RemoveHostRoute { prefix });
            }
        }
        for &prefix in routes {
            if !desired.routes.contains_key(&prefix) && self.routes.remove(&prefix).is_some() {
                batch.lead_away.push(Step::DeleteRoute { prefix });
            }
        }
        for &addr in addresses {
            if !desired.addresses.contains_key(&addr) && self.addresses.remove(&addr).is_some() {
                batch.lead_away.push(Step::DeleteAddress { addr });
            }
        }
    }

    /// What is in force stays, unless it was found in pieces.
    fn refuse_service(
        &mut self,
        key: ServiceKey<V4>,
        frontend: &Frontend,
        (map, capacity, needed): (&str, u32, usize),
        batch: &mut Batch,
    ) {
        if self.services.get(&key).is_some_and(|placement| placement.broken) {
            self.withdraw(key, batch);
        }
        let problem = full(map, capacity, needed, format!("Service {}", frontend.service));
        self.refused.insert(Refused::Service(key), problem);
    }
}

fn full(map: &str, capacity: u32, needed: usize, object: String) -> Problem {
    let message = format!(
        "{map} is full: of its {capacity} entries too few are free for the {needed} that this takes; what was in force stays. Remove \
         what is no longer needed, or build with a larger map (common/src/maps.rs)"
    );
    Problem { object: Some(object), message, ..Problem::default() }
}
