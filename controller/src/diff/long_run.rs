//! A run of slots that is too long to be looked over in one step of an audit: a Service's tens of thousands of endpoints, or its Maglev table.

use std::sync::Arc;

use shunt_common::service::Run;

use super::{
    Differ,
    groups::{Placement, slots},
};
use crate::{
    compile::desired::{GroupKey, Target},
    kernel::step::Holding,
};

/// Under way, as it was when it was met.
#[derive(Debug)]
pub(super) struct LongRun {
    key: GroupKey,
    run: Run,
    active: Arc<[(Target, u32)]>,
    maglev: bool,
    /// Once they are made.
    ids: Option<Vec<u32>>,
    /// Slots that were looked at.
    done: usize,
}

impl LongRun {
    pub(super) fn of(key: &GroupKey, placement: &Placement) -> Self {
        let (active, maglev) = (placement.active.clone(), placement.maglev);
        Self { key: key.clone(), run: placement.run, active, maglev, ids: None, done: 0 }
    }

    /// Whether what its slots should hold has yet to be made.
    pub(super) fn is_unmade(&self) -> bool {
        self.ids.is_none()
    }

    /// Makes what its slots should hold, which takes milliseconds for a Maglev table and nothing but what is here.
    pub(super) fn make(&mut self) -> &[u32] {
        self.ids.get_or_insert_with(|| slots(&self.active, self.maglev))
    }

    /// What its next slots should hold, `lot` of them or less, at no more cost than theirs. `None` at the end, or if its group has others by
    /// now: whoever gave it those has written them all since.
    pub(super) fn next(&mut self, differ: &Differ, lot: usize) -> Option<Holding> {
        let placement = differ.groups.get(&self.key)?;
        if !Arc::ptr_eq(&placement.active, &self.active) {
            return None;
        }
        let (base, done) = (self.run.base, self.done);
        let ids: Vec<u32> = self.make().get(done..)?.iter().take(lot).copied().collect();
        self.done += ids.len();
        (!ids.is_empty()).then(|| Holding::Slots(base.saturating_add(done as u32), ids))
    }
}
