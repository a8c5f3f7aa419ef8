//! The wires that a node has besides the underlay: clients of Services and answers to pods come by them too.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use crate::{
    config::Devices,
    kernel::{
        pins::{PinDir, PinError},
        programs::{Hook, Programs},
        sysctl,
    },
    problem::with_causes,
};

/// What translates answers comes before what has them asked for.
const HOOKS: [Hook; 2] = [Hook::ToWire, Hook::FromWire];

/// The other wires, as they were last seen.
#[derive(Debug)]
pub(super) struct Wires {
    /// Which interfaces may be some.
    devices: Devices,
    /// Index by name.
    known: BTreeMap<String, u32>,
    /// Those of them that refuse the programs, and why.
    unserved: BTreeMap<String, String>,
    /// Interfaces that could be some and are not among [`Self::devices`].
    left_out: BTreeSet<String>,
}

impl Wires {
    /// Those of the interfaces that could be some, index by name; none has programs yet.
    pub(super) fn new(devices: Devices, found: BTreeMap<String, u32>) -> Self {
        let mut wires = Self { devices, known: BTreeMap::new(), unserved: BTreeMap::new(), left_out: BTreeSet::new() };
        wires.see(found);
        wires
    }

    /// Takes note of the interfaces that could be wires, and gives back the wires of before.
    fn see(&mut self, found: BTreeMap<String, u32>) -> BTreeMap<String, u32> {
        let (known, left_out): (BTreeMap<_, _>, BTreeMap<_, _>) =
            found.into_iter().partition(|(name, _)| self.devices.has(name));
        self.left_out = left_out.into_keys().collect();
        mem::replace(&mut self.known, known)
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
        found: BTreeMap<String, u32>,
        programs: &mut Programs,
        dir: &PinDir,
    ) -> Result<(), PinError> {
        let before = self.see(found);
        if before != self.known {
            tracing::info!(wires = ?self.known.keys(), "the node's other wires have changed");
        } else if self.unserved.is_empty() {
            return Ok(());
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

    /// Those that could be wires but for the configuration.
    pub(super) fn left_out(&self) -> impl Iterator<Item = &str> {
        self.left_out.iter().map(String::as_str)
    }

    /// What an operator should know. `native` says that some destinations see pods' own addresses.
    ///
    /// Their answers are the only packets from a wire that the host's stack forwards: what programs translate they deliver, by routes that they
    /// ask for as if it came by `shunt0`. Which interfaces route for strangers is for the node's owner to say: only the underlay is made to.
    pub(super) fn notes(&self, native: bool) -> impl Iterator<Item = String> {
        let unserved = self.unserved.iter().map(|(name, reason)| {
            format!("Services don't serve clients that come by {name}, and pods get no answers by it: {reason}")
        });
        let idle = self.known.keys().filter(move |name| native && !forwards(name)).map(|name| {
            format!(
                "pods get no answers from nonMasqueradeCIDRs by {name}, which forwards nothing: set net/ipv4/conf/{name}/forwarding to 1 \
                 if some are reached by it"
            )
        });
        unserved.chain(idle)
    }
}

/// Whether the host's stack forwards what comes in by an interface, as far as can be told.
fn forwards(interface: &str) -> bool {
    !matches!(sysctl::present(&format!("ipv4/conf/{interface}/forwarding")), Ok(Some(value)) if value == "0")
}
