//! What the kernel is known to hold, bit by bit.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::once,
    ops::Bound::{Excluded, Unbounded},
};

use ipnet::Ipv4Net;
use shunt_common::{
    address::kind,
    net::{Ip4, V4},
    service::ServiceKey,
};

use super::{Differ, long_run::LongRun};
use crate::{compile::desired::GroupKey, kernel::step::Holding};

/// Which of it, and how far one has come: behind a key, or nowhere yet.
///
/// Backends are not among it: an array has an entry for each, so that who walks over that meets them all. Nor are routes and source ranges,
/// which are tries: see [`Census`](super::census::Census).
#[derive(Clone, Debug)]
pub(super) enum Place {
    Addresses(Option<Ip4>),
    Services(Option<ServiceKey<V4>>),
    NodePorts(Option<u32>),
    /// Runs of slots.
    Groups(Option<GroupKey>),
}

/// Some of what the kernel should hold. None of it is the end.
#[derive(Debug, Default)]
pub(super) struct Lot {
    pub(super) holdings: Vec<Holding>,
    /// Looked over by itself.
    pub(super) long_run: Option<LongRun>,
}

impl Lot {
    pub(super) fn is_empty(&self) -> bool {
        self.holdings.is_empty() && self.long_run.is_none()
    }
}

impl Differ {
    /// What the kernel should hold next: so many entries or a few more, each slot of a run counted; runs that are longer come by themselves.
    pub(super) fn known(&self, place: &mut Place, lot: usize) -> Lot {
        let holdings = match place {
            Place::Addresses(last) => next(&self.addresses, last, lot, |addr, address| once(Holding::Address(*addr, *address))),
            Place::Services(last) => next(&self.frontends, last, lot, |key, row| once(Holding::Service(*key, row.service))),
            Place::NodePorts(last) => {
                next(&self.node_ports, last, lot, |index, ports| once(Holding::NodePorts(*index, *ports)))
            }
            Place::Groups(last) => return self.known_runs(last, lot),
        };
        Lot { holdings, long_run: None }
    }

    /// Runs on from behind that of the group `last`, which moves along.
    fn known_runs(&self, last: &mut Option<GroupKey>, lot: usize) -> Lot {
        let (mut found, mut slots) = (Lot::default(), 0);
        let mut end = None;
        for (key, placement) in self.groups.range((last.as_ref().map_or(Unbounded, Excluded), Unbounded)) {
            end = Some(key);
            let count = placement.run.count as usize;
            if count > lot {
                found.long_run = Some(LongRun::of(key, placement));
                break;
            }
            found.holdings.push(Holding::Slots(placement.run.base, placement.slots()));
            slots += count.max(1);
            if slots >= lot {
                break;
            }
        }
        *last = end.cloned();
        found
    }

    /// The host routes that the kernel should hold.
    #[must_use]
    pub fn host_routes(&self) -> &BTreeSet<Ipv4Net> {
        &self.host_routes
    }

    /// Whether the kernel is known to hold this. Pods in it are nobody's business here.
    pub(super) fn knows(&self, holding: &Holding) -> bool {
        match holding {
            Holding::Address(addr, address) => address.kind == kind::POD || self.addresses.get(addr) == Some(address),
            Holding::Route(prefix, route) => self.routes.get(prefix) == Some(route),
            Holding::Service(key, service) => self.frontends.get(key).is_some_and(|row| row.service == *service),
            Holding::SourceRange(range) => {
                self.source_ranges.get(&range.clients.service).is_some_and(|ranges| ranges.contains(range))
            }
            Holding::NodePorts(index, ports) => self.node_ports.get(index).copied().unwrap_or_default() == *ports,
            Holding::Backend(id, backend) => self.backends.knows(*id, backend),
            // What slots hold that no run covers means nothing.
            Holding::Slots(..) => true,
        }
    }
}

/// What some entries of a map stand for, on from behind the key `last`, which moves along.
fn next<'a, K: Ord + Clone, V, I: Iterator<Item = Holding>>(
    map: &'a BTreeMap<K, V>,
    last: &mut Option<K>,
    lot: usize,
    holdings: impl Fn(&'a K, &'a V) -> I,
) -> Vec<Holding> {
    let mut found = Vec::new();
    let mut end = None;
    for (key, value) in map.range((last.as_ref().map_or(Unbounded, Excluded), Unbounded)) {
        end = Some(key);
        found.extend(holdings(key, value));
        if found.len() >= lot {
            break;
        }
    }
    *last = end.cloned();
    found
}
