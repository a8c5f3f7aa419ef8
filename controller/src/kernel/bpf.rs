//! The interpreter of steps over the real maps and routes.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Prefix, kind},
    net::{Ip4, V4, proto},
    service::{Backend, Run, ServiceKey, SourceRange, state},
};

use super::{
    contested::Contested,
    links::LinksError,
    maps::Maps,
    netlink::Netlink,
    routes::Via,
    step::{Actual, Holding, Kernel, Part, Step},
    sys::Cursor,
    table::{Table, TableError},
};

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// A map refuses.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The routing table refuses.
    #[error(transparent)]
    Links(#[from] LinksError),
}

impl BpfError {
    /// Whether a map has no room: what is in force stays, and other steps may go on.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Table(TableError::Full { .. }))
    }
}

/// The kernel of this node.
#[derive(Debug)]
pub struct BpfKernel {
    maps: Maps,
    netlink: Netlink,
    via: Via,
    /// Backend ids from here on were never used, once all have been read.
    backend_end: Option<u32>,
    /// Host routes that others still serve, and those of them that are wanted by now.
    held_back: BTreeSet<Ipv4Net>,
    waiting: BTreeSet<Ipv4Net>,
    /// Host routes that are wanted where somebody else has one.
    contested: BTreeMap<Ipv4Net, Contested>,
}

impl BpfKernel {
    /// Over these maps and routes.
    #[must_use]
    pub fn new(maps: Maps, netlink: Netlink, via: Via) -> Self {
        Self {
            maps,
            netlink,
            via,
            backend_end: None,
            held_back: BTreeSet::new(),
            waiting: BTreeSet::new(),
            contested: BTreeMap::new(),
        }
    }

    /// Leaves host routes to these prefixes as they are until [`let_go`](Self::let_go): others have some.
    pub fn hold_back(&mut self, prefixes: impl IntoIterator<Item = Ipv4Net>) {
        self.held_back.extend(prefixes);
    }

    /// Writes the host routes that were held back, each in place of what is there.
    ///
    /// # Errors
    /// The routing table refuses.
    pub fn let_go(&mut self) -> Result<(), BpfError> {
        self.held_back.clear();
        let prefixes: Vec<Ipv4Net> = mem::take(&mut self.waiting).into_iter().collect();
        self.via.replace(&mut self.netlink, &prefixes).map_err(|(_, error)| error.into())
    }

    /// Host routes that are wanted where somebody else has one, which stays.
    #[must_use]
    pub fn contested(&self) -> &BTreeMap<Ipv4Net, Contested> {
        &self.contested
    }

    /// Adds those whose place is free by now.
    ///
    /// # Errors
    /// The routing table refuses; what it holds is not certain any more.
    pub fn contend_again(&mut self) -> Result<(), BpfError> {
        let prefixes: Vec<Ipv4Net> = mem::take(&mut self.contested).into_keys().collect();
        self.contested = self.via.add(&mut self.netlink, &prefixes).map_err(|(_, error)| error)?;
        Ok(())
    }

    /// Others have written under this: the next reading back reads all ids.
    pub fn look_anew(&mut self) {
        self.backend_end = None;
    }

    /// The maps.
    #[must_use]
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// The netlink socket.
    pub fn netlink(&mut self) -> &mut Netlink {
        &mut self.netlink
    }

    /// Where host routes lead.
    #[must_use]
    pub fn via(&self) -> Via {
        self.via
    }

    /// Carries out steps of one kind.
    fn carry_out_run(&mut self, steps: &[Step]) -> Result<(), (usize, BpfError)> {
        let maps = &self.maps;
        let describe_at = |index: usize| steps.get(index).map(describe).unwrap_or_default();
        match &steps[0] {
            Step::PutBackend { .. } => {
                let rows = steps.iter().filter_map(|step| match step {
                    Step::PutBackend { id, backend } => Some((*id, *backend)),
                    _ => None,
                });
                let (keys, values): (Vec<u32>, Vec<Backend<V4>>) = rows.unzip();
                let end = keys.iter().max().map_or(0, |id| id.saturating_add(1));
                self.backend_end = self.backend_end.map(|known| known.max(end));
                maps.backends.put_all(&keys, &values, describe_at).map_err(at_row)
            }
            Step::PutSlots { .. } => {
                let rows = steps.iter().enumerate().flat_map(|(step, put)| match put {
                    Step::PutSlots { base, ids } => {
                        ids.iter().enumerate().map(|(offset, id)| (base.saturating_add(offset as u32), (*id, step))).collect()
                    }
                    _ => Vec::new(),
                });
                let (keys, rest): (Vec<u32>, Vec<(u32, usize)>) = rows.unzip();
                let (values, owners): (Vec<u32>, Vec<usize>) = rest.into_iter().unzip();
                let owner = |row: usize| owners.get(row).copied().unwrap_or_default();
                maps.slots
                    .put_all(&keys, &values, |row| describe_at(owner(row)))
                    .map_err(|(row, error)| (owner(row), error.into()))
            }
            Step::PutService { .. } => {
                let rows = steps.iter().filter_map(|step| match step {
                    Step::PutService { key, service } => Some((*key, *service)),
                    _ => None,
                });
                let (keys, values): (Vec<_>, Vec<_>) = rows.unzip();
                maps.services.put_all(&keys, &values, describe_at).map_err(at_row)
            }
            Step::PutSourceRange { .. } => {
                let rows = steps.iter().filter_map(|step| match step {
                    Step::PutSourceRange { range } => Some((*range, 1)),
                    _ => None,
                });
                let (keys, values): (Vec<_>, Vec<u32>) = rows.unzip();
                maps.source_ranges.put_all(&keys, &values, describe_at).map_err(at_row)
            }
            Step::PutNodePorts { .. } => {
                let rows = steps.iter().filter_map(|step| match step {
                    Step::PutNodePorts { index, ports } => Some((*index, *ports)),
                    _ => None,
                });
                let (keys, values): (Vec<_>, Vec<_>) = rows.unzip();
                maps.node_ports.put_all(&keys, &values, describe_at).map_err(at_row)
            }
            Step::PutAddress { .. } => {
                let rows = steps.iter().filter_map(|step| match step {
                    Step::PutAddress { addr, address } => Some((*addr, *address)),
                    _ => None,
                });
                let (keys, values): (Vec<_>, Vec<_>) = rows.unzip();
                maps.addresses.put_all(&keys, &values, describe_at).map_err(at_row)
            }
            Step::PutRoute { .. } => {
                let rows = steps.iter().filter_map(|step| match step {
                    Step::PutRoute { prefix, route } => Some((*prefix, *route)),
                    _ => None,
                });
                let (keys, values): (Vec<_>, Vec<_>) = rows.unzip();
                maps.routes.put_all(&keys, &values, describe_at).map_err(at_row)
            }
            Step::DeleteService { .. }
            | Step::DeleteSourceRange { .. }
            | Step::DeleteAddress { .. }
            | Step::DeleteRoute { .. } => {
                for (index, step) in steps.iter().enumerate() {
                    let deleted = match step {
                        Step::DeleteService { key } => maps.services.delete(key),
                        Step::DeleteSourceRange { range } => maps.source_ranges.delete(range),
                        Step::DeleteAddress { addr } => maps.addresses.delete(addr),
                        Step::DeleteRoute { prefix } => maps.routes.delete(prefix),
                        _ => Ok(false),
                    };
                    deleted.map_err(|error| (index, error.into()))?;
                }
                Ok(())
            }
            Step::AddHostRoute { .. } => {
                let wanted = steps.iter().filter_map(host_route);
                let (waiting, prefixes): (BTreeSet<_>, Vec<_>) = if self.held_back.is_empty() {
                    (BTreeSet::new(), wanted.collect())
                } else {
                    let (waiting, now): (Vec<_>, Vec<_>) = wanted.partition(|prefix| self.held_back.contains(prefix));
                    (waiting.into_iter().collect(), now)
                };
                self.waiting.extend(waiting);
                self.contested.extend(self.via.add(&mut self.netlink, &prefixes).map_err(at_row)?);
                Ok(())
            }
            Step::RemoveHostRoute { .. } => {
                let prefixes: Vec<Ipv4Net> = steps.iter().filter_map(host_route).collect();
                for prefix in &prefixes {
                    self.contested.remove(prefix);
                }
                self.via.remove(&mut self.netlink, &prefixes).map_err(at_row)
            }
        }
    }

    /// Makes flows look their next hop up again, and masqueraded ones their source.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn begin_epoch(&self) -> Result<(), BpfError> {
        let now = self.maps.epoch.get(&0)?.unwrap_or_default();
        Ok(self.maps.epoch.put(&0, &now.wrapping_add(1), || "the epoch".to_owned())?)
    }

    /// The slots that some frontend's runs cover, and only these.
    fn read_slots(&self, actual: &mut Actual) -> Result<(), BpfError> {
        let capacity = self.maps.slots.capacity();
        let covered = |run: Run| run.slots().start.min(capacity)..run.slots().end.min(capacity);
        let runs: BTreeSet<Run> = actual.services.values().flat_map(|service| [service.cluster, service.outside]).collect();
        let end = runs.iter().map(|run| covered(*run).end).max().unwrap_or(0);
        let mut slots: Vec<u32> = Vec::with_capacity(end as usize);
        if end > 0 {
            self.maps.slots.walk(&mut Cursor::default(), |_, values| {
                slots.extend_from_slice(values);
                slots.len() < end as usize
            })?;
        }
        for run in runs {
            let ids = covered(run).filter_map(|slot| Some((slot, *slots.get(slot as usize)?)));
            actual.slots.extend(ids);
        }
        Ok(())
    }

    /// Whether slots from a first one on hold these ids.
    fn has_slots(&self, base: u32, ids: &[u32]) -> Result<bool, BpfError> {
        let mut left = ids;
        let mut cursor = base.checked_sub(1).map(Cursor::behind).unwrap_or_default();
        if !ids.is_empty() {
            self.maps.slots.walk_by(ids.len(), &mut cursor, |_, held| {
                let count = held.len().min(left.len());
                let (now, rest) = left.split_at(count);
                let are_same = now == &held[..count];
                left = if are_same { rest } else { left };
                are_same && !left.is_empty()
            })?;
        }
        Ok(left.is_empty())
    }

    /// Backends that are or were in use. The first time all ids are read; later those up to the highest that was ever written.
    fn read_backends(&mut self) -> Result<BTreeMap<u32, Backend<V4>>, BpfError> {
        let end = self.backend_end.unwrap_or(u32::MAX);
        let mut backends = Vec::new();
        self.maps.backends.walk(&mut Cursor::default(), |ids, values| {
            let rows = ids.iter().copied().zip(values.iter().copied());
            backends.extend(rows.filter(|(id, backend)| *id != 0 && (backend.generation != 0 || backend.state != state::FREE)));
            ids.last().is_some_and(|id| id.saturating_add(1) < end)
        })?;
        self.backend_end = Some(backends.last().map_or(1, |(id, _)| id + 1));
        Ok(backends.into_iter().collect())
    }
}

impl Kernel for BpfKernel {
    type Error = BpfError;
    type Cursor = Cursor;

    fn carry_out(&mut self, steps: &[Step]) -> Result<(), (usize, BpfError)> {
        let mut start = 0;
        for run in steps.chunk_by(|a, b| mem::discriminant(a) == mem::discriminant(b)) {
            let outcome = self.carry_out_run(run).map_err(|(index, error)| (start + index, error));
            // Part of a run that failed may be in force.
            if run.iter().any(moves_packets) {
                self.begin_epoch().map_err(|error| (start, error))?;
            }
            outcome?;
            start += run.len();
        }
        Ok(())
    }

    fn read_back(&mut self) -> Result<Actual, BpfError> {
        let mut actual = Actual {
            addresses: self.maps.addresses.entries()?.into_iter().collect(),
            routes: self.maps.routes.entries()?.into_iter().collect(),
            services: self.maps.services.entries()?.into_iter().collect(),
            source_ranges: self.maps.source_ranges.entries()?.into_iter().map(|(range, _)| range).collect(),
            node_ports: self.maps.node_ports.entries()?.into_iter().filter(|(_, ports)| *ports != 0).collect(),
            ..Actual::default()
        };
        self.read_slots(&mut actual)?;
        actual.backends = self.read_backends()?;
        actual.host_routes = self.via.list(&mut self.netlink)?;
        // As good as there: whoever wants them no more takes them back, and until then they are tried again.
        actual.host_routes.extend(self.contested.keys());
        Ok(actual)
    }

    fn holds(&self, holding: &Holding) -> Result<bool, BpfError> {
        let maps = &self.maps;
        Ok(match holding {
            Holding::Address(addr, address) => maps.addresses.get(addr)? == Some(*address),
            // Of tries: the longest prefix of the key that is there answers (`trie_lookup_elem` in kernel/bpf/lpm_trie.c).
            Holding::Route(prefix, route) => maps.routes.get(prefix)? == Some(*route),
            Holding::Service(key, service) => maps.services.get(key)? == Some(*service),
            Holding::SourceRange(range) => maps.source_ranges.get(range)?.is_some(),
            Holding::NodePorts(index, ports) => maps.node_ports.get(index)? == Some(*ports),
            Holding::Backend(id, backend) => maps.backends.get(id)? == Some(*backend),
            Holding::Slots(base, ids) => self.has_slots(*base, ids)?,
        })
    }

    fn walk(&self, part: Part, cursor: &mut Cursor, visit: &mut dyn FnMut(&Holding)) -> Result<bool, BpfError> {
        let maps = &self.maps;
        Ok(match part {
            Part::Addresses => walk_on(&maps.addresses, cursor, Holding::Address, visit)?,
            Part::Routes => walk_on(&maps.routes, cursor, Holding::Route, visit)?,
            Part::Services => walk_on(&maps.services, cursor, Holding::Service, visit)?,
            Part::SourceRanges => walk_on(&maps.source_ranges, cursor, |range, _| Holding::SourceRange(range), visit)?,
            Part::NodePorts => walk_on(&maps.node_ports, cursor, Holding::NodePorts, visit)?,
            Part::Backends => {
                let end = self.backend_end.unwrap_or(u32::MAX);
                let mut next = 0;
                let is_over = walk_on(
                    &maps.backends,
                    cursor,
                    |id, backend| {
                        next = id.saturating_add(1);
                        Holding::Backend(id, backend)
                    },
                    visit,
                )?;
                is_over || next >= end
            }
        })
    }
}

/// Entries that are read and compared within a fraction of a millisecond.
const MOMENT: usize = 512;

/// Shows a batch of a map.
fn walk_on<K: aya::Pod, V: aya::Pod>(
    table: &Table<K, V>,
    cursor: &mut Cursor,
    mut holding: impl FnMut(K, V) -> Holding,
    visit: &mut dyn FnMut(&Holding),
) -> Result<bool, TableError> {
    table.walk_by(MOMENT, cursor, |keys, values| {
        for (key, value) in keys.iter().zip(values) {
            visit(&holding(*key, *value));
        }
        false
    })
}

fn at_row<E: Into<BpfError>>((index, error): (usize, E)) -> (usize, BpfError) {
    (index, error.into())
}

fn host_route(step: &Step) -> Option<Ipv4Net> {
    match step {
        Step::AddHostRoute { prefix } | Step::RemoveHostRoute { prefix } => Some(*prefix),
        _ => None,
    }
}

/// Whether a step can change where an address is reached; a virtual IP is no place.
fn moves_packets(step: &Step) -> bool {
    match step {
        Step::PutAddress { address, .. } => address.kind != kind::SERVICE,
        Step::DeleteAddress { .. } | Step::PutRoute { .. } | Step::DeleteRoute { .. } | Step::PutNodePorts { .. } => true,
        _ => false,
    }
}

/// A step's subject, for people.
fn describe(step: &Step) -> String {
    match step {
        Step::PutBackend { id, backend } => format!("backend {id} ({}:{})", backend.addr, backend.port),
        Step::PutSlots { base, ids } => format!("the run of {} slots from {base}", ids.len()),
        Step::PutService { key, .. } | Step::DeleteService { key } => format!("frontend {}", frontend(key)),
        Step::PutSourceRange { range } | Step::DeleteSourceRange { range } => source_range(range),
        Step::PutNodePorts { index, .. } => format!("word {index} of the node ports"),
        Step::PutAddress { addr, .. } | Step::DeleteAddress { addr } => address(*addr),
        Step::PutRoute { prefix, .. } | Step::DeleteRoute { prefix } => route(prefix),
        Step::AddHostRoute { prefix } | Step::RemoveHostRoute { prefix } => format!("host route {prefix}"),
    }
}

fn address(addr: Ip4) -> String {
    format!("address {addr}")
}

fn source_range(range: &SourceRange<V4>) -> String {
    format!("source range {}/{} of Service number {}", range.clients.addr, range.len.saturating_sub(32), range.clients.service)
}

fn route(prefix: &Prefix<V4>) -> String {
    format!("route {}/{}", prefix.addr, prefix.len)
}

fn frontend(key: &ServiceKey<V4>) -> String {
    let protocol = match key.proto {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        proto::SCTP => "SCTP",
        _ => "?",
    };
    format!("{}:{}/{protocol}", key.addr, key.port)
}
