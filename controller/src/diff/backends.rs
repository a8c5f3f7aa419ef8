//! Ids of backends: who has which, and how often each had a new tenant.

use std::collections::{BTreeMap, VecDeque};

use shunt_common::{
    net::{Ip4, Port, V4},
    service::{Backend, backend_flags, state},
};

use crate::{
    compile::desired::{Target, Use},
    kernel::step::Step,
};

/// What `BACKENDS` holds, and which of its ids can be given out.
#[derive(Clone, Debug)]
pub(super) struct BackendIds {
    /// By id; index 0 stands for no backend.
    cells: Vec<Backend<V4>>,
    capacity: u32,
    /// Given out again in the order in which they became free, so that an id rests as long as possible.
    available: VecDeque<u32>,
    /// Freed by the plan being made.
    released: Vec<u32>,
    /// Read back in use, but not known by whom.
    orphans: BTreeMap<Target, Vec<u32>>,
}

impl BackendIds {
    pub(super) fn new(actual: &BTreeMap<u32, Backend<V4>>, capacity: u32) -> Self {
        let mut ids =
            Self { cells: vec![EMPTY], capacity, available: VecDeque::new(), released: Vec::new(), orphans: BTreeMap::new() };
        for (&id, &backend) in actual.range(1..capacity.max(1)) {
            ids.know(id);
            ids.cells.push(backend);
            if backend.state == state::FREE {
                ids.available.push_back(id);
            } else {
                ids.orphan(id);
            }
        }
        ids
    }

    /// Ids that cannot be given out.
    pub(super) fn used(&self) -> u32 {
        u32::try_from(self.cells.len().saturating_sub(1 + self.available.len())).unwrap_or(u32::MAX)
    }

    /// Whether this is what an id is known to stand for. Of one that never had a tenant nothing else counts, and nothing else is read back.
    pub(super) fn knows(&self, id: u32, backend: &Backend<V4>) -> bool {
        let cell = self.cells.get(id as usize).unwrap_or(&EMPTY);
        let is_unused = |backend: &Backend<V4>| backend.state == state::FREE && backend.generation == 0;
        id == 0 || cell == backend || is_unused(cell) && is_unused(backend)
    }

    /// A run was found to name this id: the target behind it, unless it is free or another's.
    pub(super) fn adopt(&mut self, id: u32) -> Option<Target> {
        let target = target_of(self.cells.get(id as usize)?);
        let place = self.orphans.get(&target)?.iter().position(|&orphan| orphan == id)?;
        self.take_orphan(target, place)
    }

    /// A run was found to name this id, which stands for nothing: it must not come to stand for something before that run has
    /// been replaced, at the end of the plan.
    pub(super) fn rest(&mut self, id: u32) {
        if id == 0 || id >= self.capacity || self.cells.get(id as usize).is_some_and(|cell| cell.state != state::FREE) {
            return;
        }
        if id as usize >= self.cells.len() {
            self.know(id);
            self.cells.push(EMPTY);
        }
        self.available.retain(|&other| other != id);
        if !self.released.contains(&id) {
            self.released.push(id);
        }
    }

    /// Makes all ids before this one known: those that are new can be given out.
    fn know(&mut self, id: u32) {
        while self.cells.len() < id as usize {
            self.available.push_back(self.cells.len() as u32);
            self.cells.push(EMPTY);
        }
    }

    /// Says that nobody is known to use this id, though it is in use.
    pub(super) fn orphan(&mut self, id: u32) {
        if let Some(cell) = self.cells.get(id as usize) {
            self.orphans.entry(target_of(cell)).or_default().push(id);
        }
    }

    /// An id in use for this target by nobody known: a draining backend of before a restart, which no slot names.
    pub(super) fn claim_orphan(&mut self, target: Target) -> Option<u32> {
        let id = *self.orphans.get(&target)?.first()?;
        self.take_orphan(target, 0).map(|_| id)
    }

    fn take_orphan(&mut self, target: Target, place: usize) -> Option<Target> {
        let ids = self.orphans.get_mut(&target)?;
        ids.remove(place);
        if ids.is_empty() {
            self.orphans.remove(&target);
        }
        Some(target)
    }

    pub(super) fn take_orphans(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.orphans).into_values().flatten().collect()
    }

    pub(super) fn allocate(&mut self) -> Option<u32> {
        self.available.pop_front().or_else(|| {
            let id = u32::try_from(self.cells.len()).ok().filter(|&id| id < self.capacity)?;
            self.cells.push(EMPTY);
            Some(id)
        })
    }

    /// Undoes [`Self::allocate`].
    pub(super) fn give_back(&mut self, id: u32) {
        self.available.push_front(id);
    }

    /// The step that makes this id stand for the target in this use, if it doesn't yet.
    pub(super) fn put(&mut self, id: u32, target: Target, it: Use) -> Option<Step> {
        let cell = self.cells.get_mut(id as usize)?;
        let generation = if cell.state == state::FREE { cell.generation.wrapping_add(1) } else { cell.generation };
        let state = if it.draining { state::DRAINING } else { state::ACTIVE };
        let flags = if it.local { backend_flags::LOCAL } else { 0 };
        let backend = Backend { addr: target.addr, port: target.port, state, flags, generation };
        (std::mem::replace(cell, backend) != backend).then_some(Step::PutBackend { id, backend })
    }

    /// The step that frees an id; it can be given out again after [`Self::settle`].
    pub(super) fn free(&mut self, id: u32) -> Option<Step> {
        let cell = self.cells.get_mut(id as usize)?;
        cell.state = state::FREE;
        self.released.push(id);
        Some(Step::PutBackend { id, backend: *cell })
    }

    /// Ends a plan: what it released can be used by the next. Says whether there was anything.
    pub(super) fn settle(&mut self) -> bool {
        let any = !self.released.is_empty();
        self.available.extend(self.released.drain(..));
        any
    }
}

const EMPTY: Backend<V4> = Backend { addr: Ip4::UNSPECIFIED, port: Port::NONE, state: state::FREE, flags: 0, generation: 0 };

fn target_of(backend: &Backend<V4>) -> Target {
    Target { addr: backend.addr, port: backend.port }
}
