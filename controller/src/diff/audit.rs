//! Looking over what the kernel holds, bit by bit: somebody else may have changed it.
//!
//! Reading all of it back takes most of a second with 30,000 Services and 250,000 endpoints, in which no change comes into force. One step of
//! an audit takes a fraction of a millisecond, and between two of them the kernel may be changed: each compares what is known with what is
//! held at its own time. So a difference is always somebody else's doing, and whoever finds one reads everything back.

use std::collections::VecDeque;

use super::{Differ, census::Census, known::Place, long_run::LongRun};
use crate::kernel::step::{Kernel, Part};

/// Entries that one step asks for, with a system call each; up to twice as many where a key stands for several.
pub const LOT: usize = 256;

/// What a step of an audit has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing yet.
    GoesOn,
    /// All that was looked at is as it should be.
    AsKnown,
    /// The kernel holds something else than it was given.
    Differs,
}

/// Under way. Host routes, backends' ids that nobody uses and this node's pods are not its business.
#[derive(Debug)]
pub struct Audit<K: Kernel> {
    /// What is known and has yet to be looked for in the kernel; of tries it is only counted.
    known: VecDeque<Place>,
    /// What of it is too much for one step.
    long_run: Option<LongRun>,
    /// What the kernel holds and has yet to be found known.
    held: VecDeque<Part>,
    cursor: K::Cursor,
    /// Of the part that is walked over.
    census: Option<Census>,
}

impl<K: Kernel> Default for Audit<K> {
    fn default() -> Self {
        let known = [Place::Addresses(None), Place::Services(None), Place::NodePorts(None), Place::Groups(None)];
        let held = [Part::Addresses, Part::Services, Part::NodePorts, Part::Backends, Part::Routes, Part::SourceRanges];
        Self { known: known.into(), long_run: None, held: held.into(), cursor: K::Cursor::default(), census: None }
    }
}

impl<K: Kernel> Audit<K> {
    /// Whether the next step goes faster after [`prepare`](Self::prepare).
    #[must_use]
    pub fn is_unprepared(&self) -> bool {
        self.long_run.as_ref().is_some_and(LongRun::is_unmade)
    }

    /// Does what of the next step needs neither what is known nor the kernel, and takes milliseconds.
    pub fn prepare(&mut self) {
        if let Some(run) = &mut self.long_run {
            run.make();
        }
    }

    /// Goes on by one step.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn step(&mut self, differ: &Differ, kernel: &K) -> Result<Finding, K::Error> {
        if let Some(run) = &mut self.long_run {
            let is_held = match run.next(differ, LOT) {
                Some(holding) => kernel.holds(&holding)?,
                None => {
                    self.long_run = None;
                    true
                }
            };
            return Ok(if is_held { Finding::GoesOn } else { Finding::Differs });
        }
        if let Some(place) = self.known.front_mut() {
            let known = differ.known(place, LOT);
            if known.is_empty() {
                self.known.pop_front();
            }
            self.long_run = known.long_run;
            for holding in &known.holdings {
                if !kernel.holds(holding)? {
                    return Ok(Finding::Differs);
                }
            }
            return Ok(Finding::GoesOn);
        }
        let Some(&part) = self.held.front() else { return Ok(Finding::AsKnown) };
        let census = self.census.get_or_insert_with(|| Census::begin(differ, part));
        let mut is_known = true;
        let is_over = kernel.walk(part, &mut self.cursor, &mut |holding| {
            is_known &= differ.knows(holding);
            census.meet();
        })?;
        if !is_known {
            return Ok(Finding::Differs);
        }
        if is_over {
            self.cursor = K::Cursor::default();
            match census.end_walk(differ, part) {
                Finding::GoesOn => {}
                Finding::AsKnown => {
                    self.held.pop_front();
                    self.census = None;
                }
                Finding::Differs => return Ok(Finding::Differs),
            }
        }
        Ok(Finding::GoesOn)
    }
}
