//! A kernel in memory, for tests. It refuses any step that would leave a reference to what isn't there.
//!
//! What a green run doesn't prove: that real maps have room, that a system call doesn't fail halfway, that programs read the entries as
//! meant, that a packet which looked a Service up before a step gets on well after it, or that the host's routing takes the routes.

use std::collections::BTreeMap;

use shunt_common::{
    address::Prefix,
    net::{Ip4, V4},
    service::{Backend, Service, ServiceClient, ServiceKey, SourceRange, flags, state},
};

use super::step::{Actual, Holding, Kernel, Part, Step};

/// Maps and routes as plain collections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeKernel {
    held: Actual,
}

/// A step that would have left something dangling.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dangling {
    /// A Service was to name a slot that holds nothing, or a backend that is none.
    #[error("{key:?} would lead through slot {slot} to no backend")]
    Slot {
        /// The Service.
        key: ServiceKey<V4>,
        /// The slot.
        slot: u32,
    },
    /// Slots were to be written that a Service names.
    #[error("slots from {base} on are in use by {key:?}")]
    RunInUse {
        /// The first slot.
        base: u32,
        /// The Service.
        key: ServiceKey<V4>,
    },
    /// A backend was to be freed or given to another target while a Service names it.
    #[error("backend {id} is in use by {key:?}")]
    BackendInUse {
        /// The backend.
        id: u32,
        /// The Service.
        key: ServiceKey<V4>,
    },
    /// A backend was to have a new target under the generation of an earlier one.
    #[error("backend {id} would have a new tenant that cannot be told from the last")]
    SameGeneration {
        /// The backend.
        id: u32,
    },
    /// A frontend was to be limited to source ranges of which there are none.
    #[error("{key:?} would let nobody in")]
    NobodyLetIn {
        /// The frontend.
        key: ServiceKey<V4>,
    },
    /// Something was to be removed that isn't there.
    #[error("there is nothing to remove: {step:?}")]
    Absent {
        /// The step.
        step: Step,
    },
}

impl FakeKernel {
    /// A kernel that holds something already, whatever that is.
    #[must_use]
    pub fn holding(held: Actual) -> Self {
        Self { held }
    }

    /// What it holds, unreferenced slots included.
    #[must_use]
    pub fn held(&self) -> &Actual {
        &self.held
    }

    fn carry_out_one(&mut self, step: &Step) -> Result<(), Dangling> {
        let held = &mut self.held;
        let removed = match step {
            Step::PutBackend { id, backend } => {
                check_backend(held, *id, backend)?;
                held.backends.insert(*id, *backend);
                true
            }
            Step::PutSlots { base, ids } => {
                let end = base + ids.len() as u32;
                let user = held.services.iter().find(|(_, service)| {
                    [service.cluster, service.outside].iter().any(|run| {
                        let used = run.slots();
                        used.start.max(*base) < used.end.min(end)
                    })
                });
                if let Some((&key, _)) = user {
                    return Err(Dangling::RunInUse { base: *base, key });
                }
                held.slots.extend((*base..).zip(ids.iter().copied()));
                true
            }
            Step::PutService { key, service } => {
                let dangling = slots(service).find(|slot| {
                    let backend = held.slots.get(slot).and_then(|id| held.backends.get(id));
                    backend.is_none_or(|backend| backend.state == state::FREE)
                });
                if let Some(slot) = dangling {
                    return Err(Dangling::Slot { key: *key, slot });
                }
                if held.source_ranges.iter().all(|range| range.clients.service != service.id)
                    && service.flags & flags::SOURCE_RANGES != 0
                {
                    return Err(Dangling::NobodyLetIn { key: *key });
                }
                held.services.insert(*key, *service);
                true
            }
            Step::DeleteService { key } => held.services.remove(key).is_some(),
            Step::PutSourceRange { range } => {
                held.source_ranges.insert(*range);
                true
            }
            Step::DeleteSourceRange { range } => held.source_ranges.remove(range),
            Step::PutNodePorts { index, ports: 0 } => held.node_ports.remove(index).is_some(),
            Step::PutNodePorts { index, ports } => {
                held.node_ports.insert(*index, *ports);
                true
            }
            Step::PutAddress { addr, address } => {
                held.addresses.insert(*addr, *address);
                true
            }
            Step::DeleteAddress { addr } => held.addresses.remove(addr).is_some(),
            Step::PutRoute { prefix, route } => {
                held.routes.insert(*prefix, *route);
                true
            }
            Step::DeleteRoute { prefix } => held.routes.remove(prefix).is_some(),
            Step::AddHostRoute { prefix } => {
                held.host_routes.insert(*prefix);
                true
            }
            Step::RemoveHostRoute { prefix } => held.host_routes.remove(prefix),
        };
        if removed { Ok(()) } else { Err(Dangling::Absent { step: step.clone() }) }
    }
}

impl Kernel for FakeKernel {
    type Error = Dangling;
    type Cursor = ();

    fn carry_out(&mut self, steps: &[Step]) -> Result<(), (usize, Dangling)> {
        steps.iter().enumerate().try_for_each(|(i, step)| self.carry_out_one(step).map_err(|error| (i, error)))
    }

    fn read_back(&mut self) -> Result<Actual, Dangling> {
        let mut actual = self.held.clone();
        let covered = actual.services.values().flat_map(slots).filter_map(|slot| Some((slot, *self.held.slots.get(&slot)?)));
        actual.slots = covered.collect::<BTreeMap<_, _>>();
        Ok(actual)
    }

    fn holds(&self, holding: &Holding) -> Result<bool, Dangling> {
        let held = &self.held;
        Ok(match holding {
            Holding::Address(addr, address) => held.addresses.get(addr) == Some(address),
            // As a trie answers.
            Holding::Route(prefix, route) => {
                let mut shorter = (0..=prefix.len).rev().map(|len| Prefix { len, addr: head(prefix.addr, len) });
                shorter.find_map(|prefix| held.routes.get(&prefix)) == Some(route)
            }
            Holding::Service(key, service) => held.services.get(key) == Some(service),
            Holding::SourceRange(range) => (32..=range.len).any(|len| {
                let clients = ServiceClient { addr: head(range.clients.addr, len - 32), ..range.clients };
                held.source_ranges.contains(&SourceRange { len, clients })
            }),
            Holding::NodePorts(index, ports) => held.node_ports.get(index).copied().unwrap_or_default() == *ports,
            Holding::Backend(id, backend) => held.backends.get(id) == Some(backend),
            Holding::Slots(base, ids) => (*base..).zip(ids).all(|(slot, id)| held.slots.get(&slot) == Some(id)),
        })
    }

    fn walk(&self, part: Part, (): &mut (), visit: &mut dyn FnMut(&Holding)) -> Result<bool, Dangling> {
        let held = &self.held;
        match part {
            Part::Addresses => held.addresses.iter().for_each(|(k, v)| visit(&Holding::Address(*k, *v))),
            Part::Routes => held.routes.iter().for_each(|(k, v)| visit(&Holding::Route(*k, *v))),
            Part::Services => held.services.iter().for_each(|(k, v)| visit(&Holding::Service(*k, *v))),
            Part::SourceRanges => held.source_ranges.iter().for_each(|range| visit(&Holding::SourceRange(*range))),
            Part::NodePorts => held.node_ports.iter().for_each(|(k, v)| visit(&Holding::NodePorts(*k, *v))),
            Part::Backends => held.backends.iter().for_each(|(k, v)| visit(&Holding::Backend(*k, *v))),
        }
        Ok(true)
    }
}

/// The first bits of an address.
fn head(addr: Ip4, len: u32) -> Ip4 {
    Ip4::from_host(addr.to_host() & u32::MAX.checked_shl(32_u32.saturating_sub(len)).unwrap_or(0))
}

fn check_backend(held: &Actual, id: u32, backend: &Backend<V4>) -> Result<(), Dangling> {
    let before = held.backends.get(&id);
    let keeps_target = before.is_some_and(|before| (before.addr, before.port) == (backend.addr, backend.port));
    if backend.state == state::FREE || !keeps_target {
        let names_it = |service: &Service| slots(service).any(|slot| held.slots.get(&slot) == Some(&id));
        if let Some((&key, _)) = held.services.iter().find(|(_, service)| names_it(service)) {
            return Err(Dangling::BackendInUse { id, key });
        }
    }
    let is_new_tenant =
        backend.state != state::FREE && before.is_none_or(|before| before.state == state::FREE || !keeps_target);
    if is_new_tenant && before.map_or(0, |before| before.generation) == backend.generation {
        return Err(Dangling::SameGeneration { id });
    }
    Ok(())
}

fn slots(service: &Service) -> impl Iterator<Item = u32> + use<> {
    service.cluster.slots().chain(service.outside.slots())
}
