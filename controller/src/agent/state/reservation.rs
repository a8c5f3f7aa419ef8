//! When node ports have to be reserved anew: the kernel's list is long, and few changes of the cluster touch it.

use std::collections::BTreeMap;

use shunt_common::service::node_ports;

use crate::install::{
    Record,
    reserved_ports::{ReservedPorts, ReservedPortsError},
};

/// The ports that the kernel was told of, and how it is told.
#[derive(Debug)]
pub(super) struct Reservation {
    ports: ReservedPorts,
    /// As `NODE_PORTS` has them; `None` if it is not known what the kernel holds.
    held: Option<BTreeMap<u32, u64>>,
}

impl Reservation {
    pub(super) const fn new(record: Record) -> Self {
        Self { ports: ReservedPorts::new(record), held: None }
    }

    /// Somebody may have changed the kernel's list.
    pub(super) fn look_again(&mut self) {
        self.held = None;
    }

    /// Reserves the ports of `NODE_PORTS`, unless they are.
    pub(super) fn keep(&mut self, wanted: &BTreeMap<u32, u64>) -> Result<(), ReservedPortsError> {
        if self.held.as_ref() == Some(wanted) {
            return Ok(());
        }
        self.held = None;
        self.ports.keep(&wanted.iter().flat_map(|(&index, &word)| node_ports::of_word(index, word)).collect())?;
        self.held = Some(wanted.clone());
        Ok(())
    }
}
