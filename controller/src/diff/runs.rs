//! Runs of slots: best fit over one range, with neighbours joined on release.

use std::collections::{BTreeMap, BTreeSet};

/// Which slots are free.
#[derive(Clone, Debug)]
pub(super) struct Runs {
    capacity: u32,
    /// Free runs: length by base, never two adjacent.
    free: BTreeMap<u32, u32>,
    /// The same as (length, base).
    by_length: BTreeSet<(u32, u32)>,
    /// Released by the plan being made.
    released: Vec<(u32, u32)>,
}

impl Runs {
    pub(super) fn new(capacity: u32) -> Self {
        let mut runs = Self { capacity, free: BTreeMap::new(), by_length: BTreeSet::new(), released: Vec::new() };
        if capacity > 0 {
            runs.insert(0, capacity);
        }
        runs
    }

    /// Slots that are not free.
    pub(super) fn used(&self) -> u32 {
        self.capacity.saturating_sub(self.free.values().sum())
    }

    /// The base of a new run; a run of no slots has base 0.
    pub(super) fn allocate(&mut self, count: u32) -> Option<u32> {
        if count == 0 {
            return Some(0);
        }
        let &(length, base) = self.by_length.range((count, 0)..).next()?;
        self.remove(base, length);
        if length > count {
            self.insert(base + count, length - count);
        }
        Some(base)
    }

    /// Takes a run that was found in use. If some of it is out of range or another's too, what is left of it is kept out of use until the
    /// plan that replaces it has ended, and the answer is no.
    pub(super) fn reserve(&mut self, base: u32, count: u32) -> bool {
        let end = base.saturating_add(count).min(self.capacity);
        let mut taken = 0;
        let mut pieces = Vec::new();
        while let Some((from, length)) = self.free_within(base, end) {
            let (cut_from, cut_end) = (from.max(base), (from + length).min(end));
            self.remove(from, length);
            if from < cut_from {
                self.insert(from, cut_from - from);
            }
            if cut_end < from + length {
                self.insert(cut_end, from + length - cut_end);
            }
            pieces.push((cut_from, cut_end - cut_from));
            taken += cut_end - cut_from;
        }
        if taken != count {
            self.released.append(&mut pieces);
        }
        taken == count
    }

    /// Gives a run back; it can be given out again after [`Self::settle`].
    pub(super) fn release(&mut self, base: u32, count: u32) {
        if count > 0 {
            self.released.push((base, count));
        }
    }

    /// Ends a plan: what it released can be used by the next. Says whether there was anything.
    pub(super) fn settle(&mut self) -> bool {
        let released = std::mem::take(&mut self.released);
        for &(mut base, mut count) in &released {
            if let Some((&before, &length)) = self.free.range(..base).next_back()
                && before + length == base
            {
                self.remove(before, length);
                base = before;
                count += length;
            }
            if let Some(&length) = self.free.get(&(base + count)) {
                self.remove(base + count, length);
                count += length;
            }
            self.insert(base, count);
        }
        !released.is_empty()
    }

    fn free_within(&self, base: u32, end: u32) -> Option<(u32, u32)> {
        let reaching_in = self.free.range(..base).next_back().filter(|(from, length)| *from + *length > base && end > base);
        reaching_in
            .or_else(|| if end > base { self.free.range(base..end).next() } else { None })
            .map(|(from, length)| (*from, *length))
    }

    fn insert(&mut self, base: u32, length: u32) {
        self.free.insert(base, length);
        self.by_length.insert((length, base));
    }

    fn remove(&mut self, base: u32, length: u32) {
        self.free.remove(&base);
        self.by_length.remove(&(length, base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_run_rests_until_the_plan_has_ended() {
        let mut runs = Runs::new(8);
        assert_eq!(runs.allocate(8), Some(0));
        runs.release(0, 8);
        assert_eq!(runs.allocate(1), None);
        assert!(runs.settle());
        assert_eq!(runs.allocate(8), Some(0));
    }

    #[test]
    fn neighbours_join_whatever_the_order_of_release() {
        let mut runs = Runs::new(9);
        let bases: Vec<u32> = (0..3).filter_map(|_| runs.allocate(3)).collect();
        for place in [1, 0, 2] {
            runs.release(bases[place], 3);
            runs.settle();
        }
        assert_eq!(runs.allocate(9), Some(0));
    }

    #[test]
    fn the_smallest_run_that_fits_is_taken() {
        let mut runs = Runs::new(16);
        assert!(runs.reserve(2, 3), "leaves a run of 2 at 0 and one of 11 at 5");
        assert_eq!(runs.allocate(2), Some(0));
        assert_eq!(runs.allocate(11), Some(5));
        assert_eq!(runs.allocate(1), None);
    }

    #[test]
    fn overlapping_and_outlandish_runs_are_not_believed() {
        let mut runs = Runs::new(16);
        assert!(runs.reserve(4, 4));
        assert!(!runs.reserve(6, 4), "overlaps");
        assert!(!runs.reserve(14, 4), "beyond the end");
        assert!(!runs.reserve(u32::MAX, u32::MAX), "far beyond");
        assert!(runs.reserve(0, 0), "no slots");
        assert_eq!(runs.allocate(5), None, "what the doubtful runs covered rests");
        runs.settle();
        assert_eq!(runs.allocate(8), Some(8));
        assert_eq!(runs.allocate(4), Some(0));
    }
}
