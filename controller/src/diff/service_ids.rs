//! Numbers of Services: what all frontends of one share, for maps that are kept for Service and client.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::ObjectName;

/// Who has which. A number rests as long as possible before it is given out again.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceIds {
    known: BTreeMap<ObjectName, Known>,
    taken: BTreeSet<u32>,
    /// Taken, by nobody known yet.
    found: BTreeSet<u32>,
    /// Services whose last frontend has gone in the plan being made; it may yet give them another.
    idle: BTreeSet<ObjectName>,
    last: u32,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: u32,
    frontends: u32,
}

impl ServiceIds {
    /// With those that were found in use, by nobody known yet.
    pub(super) fn found(ids: impl Iterator<Item = u32>) -> Self {
        let taken: BTreeSet<u32> = ids.filter(|&id| id != 0).collect();
        let last = taken.last().copied().unwrap_or_default();
        Self { found: taken.clone(), taken, last, ..Self::default() }
    }

    /// Lets a Service keep the number that one of its frontends was found with, unless it has one or another has this one.
    pub(super) fn adopt(&mut self, name: &ObjectName, id: u32) {
        if !self.known.contains_key(name) && self.found.remove(&id) {
            self.known.insert(name.clone(), Known { id, frontends: 0 });
        }
    }

    /// Services whose number is a key of this map.
    pub(super) fn names_of<V>(&self, map: &BTreeMap<u32, V>) -> impl Iterator<Item = &ObjectName> {
        self.known.iter().filter(|(_, known)| map.contains_key(&known.id)).map(|(name, _)| name)
    }

    pub(super) fn get(&self, name: &ObjectName) -> Option<u32> {
        self.known.get(name).map(|known| known.id)
    }

    /// The number of a Service, given out if it has none yet.
    pub(super) fn ensure(&mut self, name: &ObjectName) -> u32 {
        if let Some(id) = self.get(name) {
            return id;
        }
        loop {
            self.last = self.last.wrapping_add(1).max(1);
            if self.taken.insert(self.last) {
                break;
            }
        }
        self.known.insert(name.clone(), Known { id: self.last, frontends: 0 });
        self.last
    }

    /// A frontend of the Service is now in force.
    pub(super) fn hold(&mut self, name: &ObjectName) {
        if let Some(known) = self.known.get_mut(name) {
            known.frontends += 1;
        }
    }

    /// A frontend of the Service is so no longer.
    pub(super) fn release(&mut self, name: &ObjectName) {
        let Some(known) = self.known.get_mut(name) else { return };
        known.frontends = known.frontends.saturating_sub(1);
        if known.frontends == 0 {
            self.idle.insert(name.clone());
        }
    }

    /// Takes numbers away from Services that have come to have no frontend.
    pub(super) fn retire(&mut self) -> Vec<u32> {
        let idle = std::mem::take(&mut self.idle).into_iter();
        let idle: Vec<ObjectName> =
            idle.filter(|name| self.known.get(name).is_some_and(|known| known.frontends == 0)).collect();
        let retired: Vec<u32> = idle.iter().filter_map(|name| self.known.remove(name)).map(|known| known.id).collect();
        for id in &retired {
            self.taken.remove(id);
        }
        retired
    }

    /// Whether the number is somebody's.
    pub(super) fn is_taken(&self, id: u32) -> bool {
        self.taken.contains(&id)
    }

    /// Forgets numbers that were found and came to be nobody's.
    pub(super) fn settle(&mut self) {
        for id in std::mem::take(&mut self.found) {
            self.taken.remove(&id);
        }
        self.known.retain(|_, known| {
            if known.frontends == 0 {
                self.taken.remove(&known.id);
            }
            known.frontends > 0
        });
    }
}
