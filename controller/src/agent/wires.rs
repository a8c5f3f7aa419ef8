//! The wires that a node has besides the underlay: clients of Services and answers to pods come by them too.

use std::{collections::BTreeMap, mem};

use crate::{
    kernel::{
        pins::{PinDir, PinError},
        programs::{Hook, Programs},
    },
    problem::with_causes,
};

/// What translates answers comes before what has them asked for.
const HOOKS: [Hook; 2] = [Hook::ToWire, Hook::FromWire];

/// The other wires, as they were last seen.
#[derive(Debug)]
pub(super) struct Wires {
    /// Index by name.
    known: BTreeMap<String, u32>,
    /// Those of them that refuse the programs, and why.
    unserved: BTreeMap<String, String>,
}

impl Wires {
    /// Index by name of those there are; none has programs yet.
    pub(super) fn new(known: BTreeMap<String, u32>) -> Self {
        Self { known, unserved: BTreeMap::new() }
    }

    /// Puts the programs in force, and names the links. The node does without a wire that refuses them.
    pub(super) fn attach(&mut self, programs: &mut Programs) -> Vec<String> {
        let mut links = Vec::new();
        let refused_before = mem::take(&mut self.unserved);
        for (name, &index) in &self.known {
            match HOOKS.iter().try_for_each(|&hook| programs.attach(hook, name, index).map(drop)) {
                Ok(()) => links.extend(HOOKS.map(|hook| PinDir::link_name(hook.program(), name))),
                Err(error) => {
                    let reason = with_causes(&error);
                    if refused_before.get(name) != Some(&reason) {
                        tracing::warn!("{name} refuses programs: {reason}");
                    }
                    self.unserved.insert(name.clone(), reason);
                }
            }
        }
        links
    }

    /// Puts the programs in force on wires that have come or refused them before, and takes them off those that have gone.
    pub(super) fn follow(
        &mut self,
        wires: BTreeMap<String, u32>,
        programs: &mut Programs,
        dir: &PinDir,
    ) -> Result<(), PinError> {
        if wires == self.known && self.unserved.is_empty() {
            return Ok(());
        }
        let before = mem::replace(&mut self.known, wires);
        if before != self.known {
            tracing::info!(wires = ?self.known.keys(), "the node's other wires have changed");
        }
        self.attach(programs);
        for name in before.keys().filter(|name| !self.known.contains_key(*name)) {
            for hook in HOOKS {
                dir.remove_link(&PinDir::link_name(hook.program(), name))?;
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// Those by which clients and answers are taken in, with their indices.
    pub(super) fn served(&self) -> impl Iterator<Item = (&str, u32)> {
        let wires = self.known.iter().map(|(name, index)| (name.as_str(), *index));
        wires.filter(|(name, _)| !self.unserved.contains_key(*name))
    }

    /// What an operator should know.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        self.unserved.iter().map(|(name, reason)| {
            format!("Services don't serve clients that come by {name}, and pods get no answers by it: {reason}")
        })
    }
}
