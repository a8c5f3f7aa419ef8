//! Looking over what the kernel holds, bit by bit: somebody else may have changed it.
//!
//! Reading all of it back takes most of a second with 30,000 Services and 250,000 endpoints, in which no change comes into force. One step of
//! an audit takes a fraction of a millisecond (a Maglev table of tens of thousands of slots some more), and between two of them the kernel may be changed: each compares what is known with what is held at
//! its own time. So a difference is always somebody else's doing, and whoever finds one reads everything back.

use std::collections::VecDeque;

use super::{Differ, known::Place};
use crate::kernel::step::{Kernel, Part};

/// Entries that one step asks for, with a system call each.
const LOT: usize = 256;

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
    /// What is known and has yet to be looked for in the kernel.
    known: VecDeque<Place>,
    /// What the kernel holds and has yet to be found known.
    held: VecDeque<Part>,
    cursor: K::Cursor,
}

impl<K: Kernel> Default for Audit<K> {
    fn default() -> Self {
        let known = [
            Place::Addresses(None),
            Place::Routes(None),
            Place::Services(None),
            Place::SourceRanges(None),
            Place::NodePorts(None),
            Place::Groups(None),
        ];
        let held = [Part::Addresses, Part::Routes, Part::Services, Part::SourceRanges, Part::NodePorts, Part::Backends];
        Self { known: known.into(), held: held.into(), cursor: K::Cursor::default() }
    }
}

impl<K: Kernel> Audit<K> {
    /// Goes on by one step.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn step(&mut self, differ: &Differ, kernel: &K) -> Result<Finding, K::Error> {
        if let Some(place) = self.known.front_mut() {
            let known = differ.known(place, LOT);
            if known.is_empty() {
                self.known.pop_front();
            }
            for holding in &known {
                if !kernel.holds(holding)? {
                    return Ok(Finding::Differs);
                }
            }
            return Ok(Finding::GoesOn);
        }
        let Some(&part) = self.held.front() else { return Ok(Finding::AsKnown) };
        let mut is_known = true;
        let is_over = kernel.walk(part, &mut self.cursor, &mut |holding| is_known &= differ.knows(holding))?;
        if is_over {
            self.held.pop_front();
            self.cursor = K::Cursor::default();
        }
        Ok(if is_known { Finding::GoesOn } else { Finding::Differs })
    }
}
