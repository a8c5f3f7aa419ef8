//! The pinned maps with their types: what `bpf` writes, `sweeper` tidies, `events` and `read` look at.

use std::{fmt, path::Path};

use aya::maps::{Map, MapData, PerCpuArray};
use shunt_common::{
    address::{Address, Prefix, Route},
    connect::{Client, Frontend},
    conntrack::{CtEntry, CtKey},
    maps::{self, MapSpec},
    net::{Ip4, V4},
    service::{Backend, Service, ServiceKey, SourceRange},
};

use super::table::{Table, TableError};

/// Every map with rows that the user side reads or writes.
#[derive(Debug)]
pub struct Maps {
    /// `ADDRESSES`.
    pub addresses: Table<Ip4, Address>,
    /// `ROUTES`.
    pub routes: Table<Prefix<V4>, Route>,
    /// `SERVICES`.
    pub services: Table<ServiceKey<V4>, Service>,
    /// `SLOTS`.
    pub slots: Table<u32, u32>,
    /// `BACKENDS`.
    pub backends: Table<u32, Backend<V4>>,
    /// `NODE_PORTS`.
    pub node_ports: Table<u32, u64>,
    /// `SOURCE_RANGES`.
    pub source_ranges: Table<SourceRange<V4>, u32>,
    /// `EPOCH`.
    pub epoch: Table<u32, u32>,
    /// `CLIENTS`.
    pub clients: Table<u64, Client<V4>>,
    /// `CONNECTED`.
    pub connected: Table<u64, Frontend<V4>>,
    /// `TAKEOVER`.
    pub takeover: Table<u32, u32>,
    /// `CONNTRACK`.
    pub conntrack: Table<CtKey<V4>, CtEntry<V4>>,
}

impl Maps {
    /// Opens all of them where `path` says each is pinned.
    ///
    /// # Errors
    /// One is missing or of another layout.
    pub fn open<P: AsRef<Path>>(path: impl Fn(&MapSpec) -> P) -> Result<Self, TableError> {
        Ok(Self {
            addresses: Table::open(&maps::ADDRESSES, path(&maps::ADDRESSES).as_ref())?,
            routes: Table::open(&maps::ROUTES, path(&maps::ROUTES).as_ref())?,
            services: Table::open(&maps::SERVICES, path(&maps::SERVICES).as_ref())?,
            slots: Table::open(&maps::SLOTS, path(&maps::SLOTS).as_ref())?,
            backends: Table::open(&maps::BACKENDS, path(&maps::BACKENDS).as_ref())?,
            node_ports: Table::open(&maps::NODE_PORTS, path(&maps::NODE_PORTS).as_ref())?,
            source_ranges: Table::open(&maps::SOURCE_RANGES, path(&maps::SOURCE_RANGES).as_ref())?,
            epoch: Table::open(&maps::EPOCH, path(&maps::EPOCH).as_ref())?,
            clients: Table::open(&maps::CLIENTS, path(&maps::CLIENTS).as_ref())?,
            connected: Table::open(&maps::CONNECTED, path(&maps::CONNECTED).as_ref())?,
            takeover: Table::open(&maps::TAKEOVER, path(&maps::TAKEOVER).as_ref())?,
            conntrack: Table::open(&maps::CONNTRACK, path(&maps::CONNTRACK).as_ref())?,
        })
    }
}

/// A per-CPU array of counts.
pub struct Counts {
    name: &'static str,
    array: PerCpuArray<MapData, u64>,
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Counts {
    /// Opens `DROPS` or `COUNTERS`.
    ///
    /// # Errors
    /// Not pinned, or of another kind.
    pub fn open(spec: &MapSpec, path: &Path) -> Result<Self, TableError> {
        if !path.exists() {
            return Err(TableError::Missing { name: spec.name, path: path.to_owned() });
        }
        let array = MapData::from_pin(path).and_then(Map::from_map_data).and_then(PerCpuArray::try_from);
        let array = array.map_err(|error| TableError::Io {
            name: spec.name,
            action: "be opened",
            source: std::io::Error::other(error),
        })?;
        Ok(Self { name: spec.name, array })
    }

    /// The sum over all CPUs.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn get(&self, index: u32) -> Result<u64, TableError> {
        let values = self.array.get(&index, 0).map_err(|error| TableError::Io {
            name: self.name,
            action: "be read",
            source: std::io::Error::other(error),
        })?;
        Ok(values.iter().sum())
    }
}
