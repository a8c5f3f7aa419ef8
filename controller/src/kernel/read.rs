//! What the pinned maps hold, as rows for people and programs. Needs no agent.

use std::collections::BTreeSet;

use shunt_common::{
    address::{Address, Prefix, Route},
    conntrack::{CtEntry, CtKey},
    maps,
    net::{Ip4, V4},
    service::{Backend, Run, Service, ServiceKey, SourceRange, flags, state},
    verdict::{Counter, DropReason},
};

use super::{
    maps::{Counts, Maps},
    pins::PinDir,
    sys::Cursor,
    table::{Table, TableError},
};

/// A backend with its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRow {
    /// Index in `BACKENDS`.
    pub id: u32,
    /// The backend.
    pub backend: Backend<V4>,
}

/// A frontend with what its runs of slots name, each backend once, in the order of its first slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRow {
    /// Frontend.
    pub key: ServiceKey<V4>,
    /// Runs and flags.
    pub service: Service,
    /// Backends for clients in the cluster.
    pub cluster: Vec<BackendRow>,
    /// Backends for clients from the outside.
    pub outside: Vec<BackendRow>,
    /// Who is let in, if not everybody.
    pub source_ranges: Vec<SourceRange<V4>>,
}

/// One entry of a tracked flow with its key.
pub type FlowRow = (CtKey<V4>, CtEntry<V4>);

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The map.
    pub name: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries that fit.
    pub capacity: u32,
}

/// Reads what one agent has pinned.
#[derive(Debug)]
pub struct Reader {
    maps: Maps,
    drops: Counts,
    counters: Counts,
}

impl Reader {
    /// Opens the maps of a pin directory.
    ///
    /// # Errors
    /// A map is missing, of another layout, or not permitted.
    pub fn open(dir: &PinDir) -> Result<Self, TableError> {
        Ok(Self {
            maps: Maps::open(|spec| dir.map(spec))?,
            drops: Counts::open(&maps::DROPS, &dir.map(&maps::DROPS))?,
            counters: Counts::open(&maps::COUNTERS, &dir.map(&maps::COUNTERS))?,
        })
    }

    /// Addresses with their owners, by number.
    ///
    /// # Errors
    /// What the kernel answers; so for all below.
    pub fn addresses(&self) -> Result<Vec<(Ip4, Address)>, TableError> {
        let mut rows = self.maps.addresses.entries()?;
        rows.sort_unstable_by_key(|(addr, _)| addr.to_host());
        Ok(rows)
    }

    /// Prefixes with where they lead, by number.
    ///
    /// # Errors
    /// As above.
    pub fn routes(&self) -> Result<Vec<(Prefix<V4>, Route)>, TableError> {
        let mut rows = self.maps.routes.entries()?;
        rows.sort_unstable_by_key(|(prefix, _)| (prefix.addr.to_host(), prefix.len));
        Ok(rows)
    }

    /// Frontends with their backends, by address, port and protocol.
    ///
    /// # Errors
    /// As above.
    pub fn services(&self) -> Result<Vec<ServiceRow>, TableError> {
        let mut services = self.maps.services.entries()?;
        services.sort_unstable_by_key(|(key, _)| (key.addr.to_host(), key.port.to_host(), key.proto));
        let mut ranges: Vec<SourceRange<V4>> = self.maps.source_ranges.entries()?.into_iter().map(|(range, _)| range).collect();
        ranges.sort_unstable_by_key(|range| (range.clients.addr.to_host(), range.len));
        let mut rows = Vec::with_capacity(services.len());
        for (key, service) in services {
            let is_limited = service.flags & flags::SOURCE_RANGES != 0;
            let own = ranges.iter().filter(|range| is_limited && range.clients.service == service.id);
            rows.push(ServiceRow {
                key,
                service,
                cluster: self.run(service.cluster)?,
                outside: self.run(service.outside)?,
                source_ranges: own.copied().collect(),
            });
        }
        Ok(rows)
    }

    fn run(&self, run: Run) -> Result<Vec<BackendRow>, TableError> {
        let mut rows = Vec::new();
        let mut seen = BTreeSet::new();
        for slot in run.base..run.slots().end.min(self.maps.slots.capacity()) {
            let Some(id) = self.maps.slots.get(&slot)?.filter(|id| seen.insert(*id)) else { continue };
            if let Some(backend) = self.maps.backends.get(&id)? {
                rows.push(BackendRow { id, backend });
            }
        }
        Ok(rows)
    }

    /// Backends in use, by id.
    ///
    /// # Errors
    /// As above.
    pub fn backends(&self) -> Result<Vec<BackendRow>, TableError> {
        let mut rows = Vec::new();
        self.maps.backends.for_each_batch(|ids, backends| {
            let used = ids.iter().zip(backends).filter(|(_, backend)| backend.state != state::FREE);
            rows.extend(used.map(|(id, backend)| BackendRow { id: *id, backend: *backend }));
        })?;
        Ok(rows)
    }

    /// Tracked flows, both entries of each, in no particular order.
    ///
    /// # Errors
    /// As above.
    pub fn conntrack(&self) -> Result<Vec<FlowRow>, TableError> {
        self.maps.conntrack.entries()
    }

    /// Dropped packets by reason, those of zero included.
    ///
    /// # Errors
    /// As above.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>, TableError> {
        DropReason::ALL.iter().map(|reason| Ok((*reason, self.drops.get(*reason as u32)?))).collect()
    }

    /// What programs did with packets, counts of zero included.
    ///
    /// # Errors
    /// As above.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>, TableError> {
        Counter::ALL.iter().map(|counter| Ok((*counter, self.counters.get(*counter as u32)?))).collect()
    }

    /// How full each hash and trie is.
    ///
    /// # Errors
    /// As above.
    pub fn fill(&self) -> Result<Vec<Fill>, TableError> {
        Ok(vec![
            fill(maps::ADDRESSES.name, &self.maps.addresses)?,
            fill(maps::ROUTES.name, &self.maps.routes)?,
            fill(maps::SERVICES.name, &self.maps.services)?,
            fill(maps::SOURCE_RANGES.name, &self.maps.source_ranges)?,
            fill(maps::CONNTRACK.name, &self.maps.conntrack)?,
            fill(maps::CONNECTED.name, &self.maps.connected)?,
        ])
    }
}

fn fill<K: aya::Pod, V: aya::Pod>(name: &'static str, table: &Table<K, V>) -> Result<Fill, TableError> {
    let mut entries = 0;
    table.walk(&mut Cursor::default(), |keys, _| {
        entries += keys.len() as u64;
        true
    })?;
    Ok(Fill { name, entries, capacity: table.capacity() })
}
