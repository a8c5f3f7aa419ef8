//! Desired against actual, as ordered steps. The one place that gives out backend ids, slots and numbers of Services.
//!
//! Order within a plan: backends, runs of slots, source ranges, the frontends that name them, then what leads packets to these; removal
//! the other way round. So no step leaves a reference to what isn't there. What a plan releases is reused by the next one at the earliest.

pub mod audit;
mod backends;
mod census;
mod frontends;
mod groups;
mod known;
mod leads;
mod long_run;
mod maglev;
mod runs;
mod service_ids;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, Prefix, Route, kind},
    maps,
    net::{Ip4, V4},
    service::{Run, ServiceKey, SourceRange},
};

use self::{backends::BackendIds, census::Marks, frontends::Row, groups::Placement, runs::Runs, service_ids::ServiceIds};
use crate::{
    compile::desired::{Desired, GroupKey, Patch, Target},
    kernel::step::{Actual, Step},
    model::ObjectName,
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
    /// `SOURCE_RANGES`.
    pub source_ranges: u32,
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
            source_ranges: maps::SOURCE_RANGES.capacity,
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
    node_ports: BTreeMap<u32, u64>,
    frontends: BTreeMap<ServiceKey<V4>, Row>,
    groups: BTreeMap<GroupKey, Placement>,
    /// Runs that were read back, until a group is found to be theirs.
    found: BTreeMap<Run, Placement>,
    backends: BackendIds,
    runs: Runs,
    ids: ServiceIds,
    /// By the number of the Service.
    source_ranges: BTreeMap<u32, BTreeSet<SourceRange<V4>>>,
    marks: Marks,
    /// What found no room, tried again with every plan.
    refused: BTreeMap<Refused, Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Refused {
    Address(Ip4),
    Route(Prefix<V4>),
    Group(GroupKey),
    Frontend(ServiceKey<V4>),
    SourceRanges(ObjectName),
}

/// Steps by their place in the plan.
#[derive(Default)]
struct Batch {
    activate: Vec<Step>,
    slots: Vec<Step>,
    admit: Vec<Step>,
    frontends: Vec<Step>,
    lead_to: Vec<Step>,
    lead_away: Vec<Step>,
    delete_frontends: Vec<Step>,
    exclude: Vec<Step>,
    retire: Vec<Step>,
    /// Frontends to be written anew, because a run that they name has moved.
    moved: BTreeSet<ServiceKey<V4>>,
    /// Services whose number is new.
    numbered: BTreeSet<ObjectName>,
}

impl Differ {
    /// From what the kernel holds. Pods in it are nobody's business here. Unless it holds nothing, [`reconcile`](Self::reconcile) comes
    /// before the first [`plan`](Self::plan): it finds out whose is what was read back.
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
            node_ports: actual.node_ports.clone(),
            frontends: BTreeMap::new(),
            groups: BTreeMap::new(),
            found: BTreeMap::new(),
            backends: BackendIds::new(&actual.backends, capacities.backends),
            runs: Runs::new(capacities.slots),
            ids: ServiceIds::found(actual.services.values().map(|service| service.id)),
            source_ranges: BTreeMap::new(),
            marks: Marks::default(),
            refused: BTreeMap::new(),
        };
        for &range in &actual.source_ranges {
            differ.source_ranges.entry(range.clients.service).or_default().insert(range);
        }
        differ.find_runs(actual);
        differ.frontends = actual.services.iter().map(|(&key, &service)| (key, Row { service, groups: None })).collect();
        differ
    }

    /// What found no room in a map, as of the last plan.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let problems: BTreeSet<&Problem> = self.refused.values().collect();
        problems.into_iter().cloned().collect()
    }

    /// Each map with the entries in use, pods' excepted, and those that fit.
    #[must_use]
    pub fn fill(&self) -> [(&'static str, u32, u32); 6] {
        let count = |entries: usize| u32::try_from(entries).unwrap_or(u32::MAX);
        let Capacities { addresses, routes, services, slots, backends, source_ranges } = self.capacities;
        [
            (maps::ADDRESSES.name, count(self.addresses.len()), addresses),
            (maps::ROUTES.name, count(self.routes.len()), routes),
            (maps::SERVICES.name, count(self.frontends.len()), services),
            (maps::SLOTS.name, self.runs.used(), slots),
            (maps::SOURCE_RANGES.name, count(self.source_ranges.values().map(BTreeSet::len).sum()), source_ranges),
            (maps::BACKENDS.name, self.backends.used(), backends),
        ]
    }

    /// The id that a group's target has, if it has one.
    #[must_use]
    pub fn backend_id(&self, group: &GroupKey, target: Target) -> Option<u32> {
        self.groups.get(group)?.known().find(|(other, _)| *other == target).map(|(_, id)| id)
    }

    /// Steps for the keys that a patch names.
    pub fn plan(&mut self, desired: &Desired, patch: &Patch) -> Plan {
        let mut patch = patch.clone();
        for refused in std::mem::take(&mut self.refused).into_keys() {
            match refused {
                Refused::Address(addr) => drop(patch.addresses.insert(addr)),
                Refused::Route(prefix) => drop(patch.routes.insert(prefix)),
                Refused::Group(key) => drop(patch.groups.insert(key)),
                Refused::Frontend(key) => drop(patch.frontends.insert(key)),
                Refused::SourceRanges(service) => drop(patch.source_ranges.insert(service)),
            }
        }
        let mut batch = Batch::default();
        for key in &patch.groups {
            if let Some(group) = desired.groups.get(key) {
                self.place(key, group, &mut batch);
            }
        }
        patch.frontends.append(&mut batch.moved);
        for &key in &patch.frontends {
            match desired.frontends.get(&key) {
                Some(frontend) => self.put_frontend(key, frontend, &mut batch),
                None => self.withdraw_frontend(key, &mut batch),
            }
        }
        for key in patch.groups.iter().filter(|key| !desired.groups.contains_key(key)) {
            self.withdraw_group(key, &mut batch);
        }
        self.admit(desired, &patch.source_ranges, &mut batch);
        self.lead(desired, &patch, &mut batch);
        self.finish(batch)
    }

    /// Steps for everything, garbage included: for the start, and whenever it is not certain what the kernel holds.
    pub fn reconcile(&mut self, desired: &Desired) -> Plan {
        self.adopt(desired);
        let everything = Patch {
            addresses: desired.addresses.keys().chain(self.addresses.keys()).copied().collect(),
            routes: desired.routes.keys().chain(self.routes.keys()).copied().collect(),
            frontends: desired.frontends.keys().chain(self.frontends.keys()).copied().collect(),
            groups: desired.groups.keys().chain(self.groups.keys()).cloned().collect(),
            source_ranges: desired.source_ranges.keys().chain(self.ids.names_of(&self.source_ranges)).cloned().collect(),
            node_ports: desired.node_ports.keys().chain(self.node_ports.keys()).copied().collect(),
            host_routes: desired.host_routes.union(&self.host_routes).copied().collect(),
            health_checks: BTreeSet::new(),
        };
        let mut plan = self.plan(desired, &everything);
        plan.again |= self.clear_away(&mut plan.steps) && !self.refused.is_empty();
        self.marks.follow(&plan.steps);
        plan
    }

    /// Removes what was found and turned out to be nobody's; whether there was any.
    fn clear_away(&mut self, steps: &mut Vec<Step>) -> bool {
        self.ids.settle();
        let mut stale: Vec<u32> = self.backends.take_orphans();
        for (run, placement) in std::mem::take(&mut self.found) {
            stale.extend(placement.known().map(|(_, id)| id));
            if placement.owns_run {
                self.runs.release(run.base, run.count);
            }
        }
        let freed = !stale.is_empty();
        steps.extend(stale.into_iter().filter_map(|id| self.backends.free(id)));
        let numbers: BTreeSet<u32> = self.source_ranges.keys().copied().collect();
        for number in numbers.into_iter().filter(|&number| !self.ids.is_taken(number)) {
            let ranges = self.source_ranges.remove(&number).unwrap_or_default();
            steps.extend(ranges.into_iter().map(|range| Step::DeleteSourceRange { range }));
        }
        self.backends.settle();
        self.runs.settle() || freed
    }

    fn finish(&mut self, batch: Batch) -> Plan {
        let released = [
            self.runs.settle(),
            self.backends.settle(),
            !batch.delete_frontends.is_empty(),
            !batch.lead_away.is_empty(),
            !batch.exclude.is_empty(),
        ];
        let again = !self.refused.is_empty() && released.contains(&true);
        let Batch { activate, slots, admit, frontends, lead_to, lead_away, delete_frontends, exclude, retire, .. } = batch;
        let steps = [activate, slots, admit, frontends, lead_to, lead_away, delete_frontends, exclude, retire];
        let steps: Vec<Step> = steps.into_iter().flatten().collect();
        self.marks.follow(&steps);
        Plan { steps, again }
    }
}

/// What somebody is told whose part found no room.
fn full(map: &str, capacity: u32, needed: usize, object: String) -> Problem {
    let message = format!(
        "{map} is full: of its {capacity} entries too few are free for the {needed} that this takes; what was in force stays. Remove \
         what is no longer needed, or build with a larger map (common/src/maps.rs)"
    );
    Problem { object: Some(object), map: Some(map.to_owned()), message, ..Problem::default() }
}
