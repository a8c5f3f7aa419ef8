//! Groups of backends: ids and runs of slots.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use shunt_common::{
    net::V4,
    service::{Run, Service, ServiceKey, flags},
};

use super::{Batch, Differ, Refused, full, maglev};
use crate::{
    compile::desired::{Desired, Group, GroupKey, Owner, Target},
    kernel::step::{Actual, Step},
};

/// What a group has in the kernel.
#[derive(Clone, Debug)]
pub(super) struct Placement {
    pub(super) run: Run,
    pub(super) maglev: bool,
    /// Targets with their ids, in the order of the run's slots; of a Maglev table in that of the targets. As long as the run is the same, so
    /// is this very list.
    pub(super) active: Arc<[(Target, u32)]>,
    draining: Vec<(Target, u32)>,
    /// Frontends that name the run.
    users: Vec<ServiceKey<V4>>,
    /// Found with slots that lead nowhere: it needs a new run whatever is wanted.
    broken: bool,
    /// Whether the run is its alone, to be given back: not so if it was found to overlap another's.
    pub(super) owns_run: bool,
}

impl Placement {
    /// Every target with its id.
    pub(super) fn known(&self) -> impl Iterator<Item = (Target, u32)> {
        self.active.iter().chain(&self.draining).copied()
    }

    /// What its run's slots hold.
    pub(super) fn slots(&self) -> Vec<u32> {
        slots(&self.active, self.maglev)
    }

    pub(super) fn add_user(&mut self, key: ServiceKey<V4>) {
        if !self.users.contains(&key) {
            self.users.push(key);
        }
    }

    pub(super) fn remove_user(&mut self, key: ServiceKey<V4>) {
        self.users.retain(|user| *user != key);
    }
}

/// The ids of a run, in the order of its slots.
pub(super) fn slots(active: &[(Target, u32)], is_maglev: bool) -> Vec<u32> {
    if !is_maglev {
        return active.iter().map(|(_, id)| *id).collect();
    }
    let targets: Vec<Target> = active.iter().map(|(target, _)| *target).collect();
    maglev::table(&targets).into_iter().filter_map(|index| active.get(index as usize)).map(|(_, id)| *id).collect()
}

fn slot_count(active: &[(Target, u32)], is_maglev: bool) -> u32 {
    if is_maglev { maglev::size(active.len()) } else { active.len() as u32 }
}

impl Differ {
    /// Takes down which runs were read back, and who is behind their slots.
    pub(super) fn find_runs(&mut self, actual: &Actual) {
        for service in actual.services.values() {
            for run in [service.cluster, service.outside] {
                if run.count > 0 && !self.found.contains_key(&run) {
                    let placement = self.find(run, service, actual);
                    self.found.insert(run, placement);
                }
            }
        }
    }

    fn find(&mut self, run: Run, service: &Service, actual: &Actual) -> Placement {
        let owns_run = self.runs.reserve(run.base, run.count);
        let maglev = service.flags & flags::MAGLEV != 0;
        let ids: Vec<u32> = run.slots().map(|slot| actual.slots.get(&slot).copied().unwrap_or_default()).collect();
        let mut active: BTreeMap<Target, u32> = BTreeMap::new();
        let mut in_order = Vec::new();
        let mut seen = BTreeSet::new();
        for &id in ids.iter().filter(|&&id| seen.insert(id)) {
            match self.backends.adopt(id) {
                Some(target) if !active.contains_key(&target) => {
                    active.insert(target, id);
                    in_order.push((target, id));
                }
                Some(_) => self.backends.orphan(id),
                None => self.backends.rest(id),
            }
        }
        let active: Vec<(Target, u32)> = if maglev { active.into_iter().collect() } else { in_order };
        let broken = !owns_run || slots(&active, maglev) != ids;
        Placement { run, maglev, active: active.into(), draining: Vec::new(), users: Vec::new(), broken, owns_run }
    }

    /// Gives what was found to the groups whose frontends named it. The first time only, and to groups that have nothing yet.
    pub(super) fn adopt(&mut self, desired: &Desired) {
        for (key, frontend) in &desired.frontends {
            let Some(row) = self.frontends.get(key).filter(|row| row.groups.is_none()) else { continue };
            if let Owner::Service(name) = &frontend.owner {
                self.ids.adopt(name, row.service.id);
            }
            for (group, run) in frontend.groups(key.proto).into_iter().zip([row.service.cluster, row.service.outside]) {
                if !self.groups.contains_key(&group)
                    && let Some(placement) = self.found.remove(&run)
                {
                    self.groups.insert(group, placement);
                }
            }
        }
    }

    /// One group: all of it, or nothing if there is no room for some of it.
    pub(super) fn place(&mut self, key: &GroupKey, group: &Group, batch: &mut Batch) {
        let known: BTreeMap<Target, u32> = self.groups.get(key).into_iter().flat_map(Placement::known).collect();
        let mut active = Vec::new();
        let mut draining = Vec::new();
        let mut fresh = Vec::new();
        for (&target, &it) in &group.backends {
            let id = known.get(&target).copied().or_else(|| it.draining.then(|| self.backends.claim_orphan(target)).flatten());
            let Some(id) = id.or_else(|| self.backends.allocate().inspect(|&id| fresh.push(id))) else {
                self.give_back(fresh);
                return self.refuse_group(key, ("BACKENDS", self.capacities.backends, group.backends.len()), batch);
            };
            if it.draining { &mut draining } else { &mut active }.push((target, id));
        }

        let is_same =
            |placement: &&Placement| !placement.broken && placement.maglev == group.maglev && *placement.active == *active;
        let kept = self.groups.get(key).filter(is_same).map(|placement| (placement.run, placement.active.clone()));
        let is_kept = kept.is_some();
        let count = slot_count(&active, group.maglev);
        let new = || self.runs.allocate(count).map(|base| (Run { base, count }, active.into()));
        let Some((run, active)) = kept.or_else(new) else {
            self.give_back(fresh);
            return self.refuse_group(key, ("SLOTS", self.capacities.slots, count as usize), batch);
        };

        let uses = |target: &Target| group.backends.get(target).copied().unwrap_or_default();
        let activated = active.iter().filter_map(|(target, id)| self.backends.put(*id, *target, uses(target)));
        batch.activate.extend(activated);
        let retired = draining.iter().filter_map(|(target, id)| self.backends.put(*id, *target, uses(target)));
        batch.retire.extend(retired);
        if !is_kept && count > 0 {
            batch.slots.push(Step::PutSlots { base: run.base, ids: slots(&active, group.maglev) });
        }
        let before = self.groups.remove(key);
        let users = before.as_ref().map(|before| before.users.clone()).unwrap_or_default();
        if !is_kept {
            batch.moved.extend(users.iter().copied());
        }
        let placement = Placement { run, maglev: group.maglev, active, draining, users, broken: false, owns_run: true };
        self.groups.insert(key.clone(), placement);
        if let Some(before) = before {
            if !is_kept && before.owns_run {
                self.runs.release(before.run.base, before.run.count);
            }
            let gone = before.known().filter(|(target, _)| !group.backends.contains_key(target));
            batch.retire.extend(gone.filter_map(|(_, id)| self.backends.free(id)));
        }
    }

    fn give_back(&mut self, fresh: Vec<u32>) {
        fresh.into_iter().rev().for_each(|id| self.backends.give_back(id));
    }

    /// What is in force stays, unless it was found in pieces.
    fn refuse_group(&mut self, key: &GroupKey, (map, capacity, needed): (&str, u32, usize), batch: &mut Batch) {
        if self.groups.get(key).is_some_and(|placement| placement.broken) {
            self.withdraw_group(key, batch);
        }
        let problem = full(map, capacity, needed, key.owner.to_string());
        self.refused.insert(Refused::Group(key.clone()), problem);
    }

    /// Frees all that a group has, and removes frontends that still name it.
    pub(super) fn withdraw_group(&mut self, key: &GroupKey, batch: &mut Batch) {
        let Some(mut before) = self.groups.remove(key) else { return };
        for user in std::mem::take(&mut before.users) {
            self.withdraw_frontend(user, batch);
        }
        if before.owns_run {
            self.runs.release(before.run.base, before.run.count);
        }
        batch.retire.extend(before.known().filter_map(|(_, id)| self.backends.free(id)));
    }
}
