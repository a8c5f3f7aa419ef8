//! Frontends: the entries that name runs, the numbers of their Services, and who is let in.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use shunt_common::{
    net::V4,
    service::{Service, ServiceClient, ServiceKey, SourceRange},
};

use super::{Batch, Differ, Refused, full};
use crate::{
    compile::desired::{Desired, Frontend, GroupKey, Owner},
    kernel::step::Step,
    model::ObjectName,
};

/// What a frontend has in the kernel.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) service: Service,
    /// Whose runs it names; unknown of one that was read back, until it has been planned.
    pub(super) groups: Option<[GroupKey; 2]>,
}

impl Differ {
    /// One frontend, once its groups have their runs.
    pub(super) fn put_frontend(&mut self, key: ServiceKey<V4>, frontend: &Frontend, batch: &mut Batch) {
        // What this plan deletes is there until its end.
        let entries = self.frontends.len() + batch.delete_frontends.len();
        if !self.frontends.contains_key(&key) && entries >= self.capacities.services as usize {
            let problem = full("SERVICES", self.capacities.services, 1, frontend.owner.to_string());
            self.refused.insert(Refused::Frontend(key), problem);
            return;
        }
        let groups = frontend.groups(key.proto);
        let run = |group: &GroupKey| self.groups.get(group).map(|placement| placement.run);
        let (Some(cluster), Some(outside)) = (run(&groups[0]), run(&groups[1])) else {
            return self.refuse_frontend(key, &groups, batch);
        };
        let id = match &frontend.owner {
            Owner::Service(name) => self.number(name, batch),
            Owner::Pod(_) => 0,
        };
        let service = Service { cluster, outside, flags: frontend.flags, affinity_secs: frontend.affinity_secs, id };
        let before = self.frontends.get(&key);
        if before.map(|row| row.service) != Some(service) {
            batch.frontends.push(Step::PutService { key, service });
        }
        if before.is_some_and(|row| row.groups.as_ref() == Some(&groups)) {
            if let Some(row) = self.frontends.get_mut(&key) {
                row.service = service;
            }
            return;
        }
        if let Owner::Service(name) = &frontend.owner {
            self.ids.hold(name);
        }
        if let Some(before) = self.frontends.insert(key, Row { service, groups: Some(groups.clone()) }) {
            self.leave(key, before);
        }
        for group in &groups {
            if let Some(placement) = self.groups.get_mut(group) {
                placement.add_user(key);
            }
        }
    }

    fn number(&mut self, name: &ObjectName, batch: &mut Batch) -> u32 {
        if self.ids.get(name).is_none() {
            batch.numbered.insert(name.clone());
        }
        self.ids.ensure(name)
    }

    /// A group of the frontend found no room. What is in force stays, as long as all that it names does.
    fn refuse_frontend(&mut self, key: ServiceKey<V4>, groups: &[GroupKey; 2], batch: &mut Batch) {
        let problem = groups.iter().find_map(|group| self.refused.get(&Refused::Group(group.clone()))).cloned();
        self.refused.insert(Refused::Frontend(key), problem.unwrap_or_default());
        let Some(row) = self.frontends.get(&key) else { return };
        let named = [row.service.cluster, row.service.outside];
        let stands = row.groups.as_ref().is_some_and(|groups| {
            groups.iter().zip(named).all(|(group, run)| self.groups.get(group).is_some_and(|placement| placement.run == run))
        });
        if !stands {
            self.withdraw_frontend(key, batch);
        }
    }

    /// Removes a frontend, if it is there.
    pub(super) fn withdraw_frontend(&mut self, key: ServiceKey<V4>, batch: &mut Batch) {
        let Some(before) = self.frontends.remove(&key) else { return };
        batch.delete_frontends.push(Step::DeleteService { key });
        self.leave(key, before);
    }

    /// A frontend no longer uses what it did.
    fn leave(&mut self, key: ServiceKey<V4>, before: Row) {
        let Some(groups) = before.groups else { return };
        for group in &groups {
            if let Some(placement) = self.groups.get_mut(group) {
                placement.remove_user(key);
            }
        }
        if let Owner::Service(name) = &groups[0].owner {
            self.ids.release(name);
        }
    }

    /// Who is let in, of Services whose ranges or number have changed.
    pub(super) fn admit(&mut self, desired: &Desired, changed: &BTreeSet<ObjectName>, batch: &mut Batch) {
        for number in self.ids.retire() {
            let gone = self.source_ranges.remove(&number).unwrap_or_default();
            batch.exclude.extend(gone.into_iter().map(|range| Step::DeleteSourceRange { range }));
        }
        let numbered = std::mem::take(&mut batch.numbered);
        for name in changed.union(&numbered) {
            let Some(number) = self.ids.get(name) else { continue };
            let wanted: BTreeSet<SourceRange<V4>> =
                desired.source_ranges.get(name).into_iter().flatten().map(|range| source_range(number, *range)).collect();
            let before = self.source_ranges.remove(&number).unwrap_or_default();
            let others: usize = self.source_ranges.values().map(BTreeSet::len).sum();
            let capacity = self.capacities.source_ranges;
            if others + before.len() + wanted.difference(&before).count() > capacity as usize && !wanted.is_subset(&before) {
                let problem = full("SOURCE_RANGES", capacity, wanted.len(), format!("Service {name}"));
                self.refused.insert(Refused::SourceRanges(name.clone()), problem);
                self.source_ranges.insert(number, before);
                continue;
            }
            batch.admit.extend(wanted.difference(&before).map(|&range| Step::PutSourceRange { range }));
            batch.exclude.extend(before.difference(&wanted).map(|&range| Step::DeleteSourceRange { range }));
            if !wanted.is_empty() {
                self.source_ranges.insert(number, wanted);
            }
        }
    }
}

fn source_range(service: u32, range: Ipv4Net) -> SourceRange<V4> {
    let clients = ServiceClient { service, addr: range.network().into() };
    SourceRange { len: 32 + u32::from(range.prefix_len()), clients }
}
