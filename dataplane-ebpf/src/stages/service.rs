//! Services: which backend a packet to a frontend goes to, and which source that sees.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_loop};
use shunt_common::{
    address::kind as address,
    affinity::{self, Affinity},
    backend,
    conntrack::{CtEntry, CtKey, kind, translates},
    flow::Tuple,
    net::{Family, proto},
    service::{Backend, Run, Service, ServiceClient, ServiceKey, flags, state},
    verdict::{Counter, DropReason},
};

use super::{
    conntrack, direct,
    route::{self, Next},
    snat::{self, Opening, SourcePort},
    stack,
};
use crate::{
    count::count,
    maps::{is_node_port, slot},
    packet::{
        parse::{Flow, Ip},
        skb::Skb,
    },
};

/// What a Service makes of a packet that opens a flow.
pub(crate) enum Served<F: Ip> {
    /// This is what it must carry.
    To(Tuple<F>),
    /// Nobody serves it, and the client is to know at once.
    Refused(DropReason),
    /// Nobody serves it, and the client is to hear nothing.
    Dropped(DropReason),
    /// It is the host's stack's.
    Stacks,
    /// It is for no Service.
    Not,
}

/// Who asks, which decides among whom a backend is chosen and which source that sees.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// A pod of this node: it keeps its address, except towards itself and towards the outside.
    Pod,
    /// This node: it keeps its address, except towards itself; its port is always one of the node's.
    Host,
    /// Anybody else: shows the node's address, so that the answer comes back here, unless the Service wants its own, or a process of this
    /// node serves, whose answers leave from here.
    Outside,
    /// The same, come by another wire than the underlay: no other node answers it, which may know no way to where it is, or one that takes no
    /// answers from this node's address.
    ByOtherWire,
}

/// Whether a [`Client`], as a number, is not of this node.
#[inline(always)]
fn is_outside(client: u32) -> bool {
    client >= Client::Outside as u32
}

/// Whether a packet to an address of this node may be for a Service.
#[inline(always)]
pub(crate) fn is_at_node<F: Ip>(flow: &Flow<F>) -> bool {
    is_node_port(flow.tuple.proto, flow.tuple.dport)
}

/// Whether a packet is for a Service by its address and port.
#[inline(always)]
pub(crate) fn is_frontend<F: Ip>(flow: &Flow<F>) -> bool {
    // SAFETY: only asked whether there is one.
    unsafe { F::services().get(frontend_of(&flow.tuple)) }.is_some()
}

#[inline(always)]
fn frontend_of<F: Ip>(tuple: &Tuple<F>) -> ServiceKey<F> {
    ServiceKey { addr: tuple.dst, port: tuple.dport, proto: tuple.proto, reserved: 0 }
}

/// What is known of a packet's flow.
pub(crate) enum Known<F: Ip> {
    /// It goes on as its entry says.
    Ours(&'static mut CtEntry<F>),
    /// It is the host's stack's.
    Stacks,
    /// Nothing: the packet opens it.
    Nothing,
}

/// Looks a packet's flow up. One that must not go on is forgotten, and then unknown.
///
/// `frontend` says that the packet is for a Service now, whatever its flow was opened for.
#[inline(always)]
pub(crate) fn resume<F: Ip>(flow: &Flow<F>, frontend: bool) -> Known<F> {
    let Some(entry) = conntrack::find::<F>(&flow.tuple) else { return Known::Nothing };
    if stack::has(flow, entry) {
        return Known::Stacks;
    }
    let is_good = if entry.translates == translates::STACK {
        false
    } else if entry.kind != kind::ORIGINAL {
        true
    } else if frontend || entry.backend != 0 {
        is_still_good(flow, entry)
    } else {
        !flow.is_syn() || !conntrack::is_over(entry, flow.tuple.proto)
    };
    if !is_good {
        conntrack::forget(&CtKey::of(&flow.tuple), entry);
        return Known::Nothing;
    }
    conntrack::touch(entry, flow);
    Known::Ours(entry)
}

/// Opens the flow of a packet to a frontend: one of a virtual IP's, or one at an address of this node. Such a one is opened by a SYN only,
/// lest it take the answers to a socket of the node that has its port. `opening` is [`Opening::of`] the packet, and tells afterwards who
/// translates.
#[inline(always)]
pub(crate) fn open<F: Ip>(skb: Skb, flow: &Flow<F>, opening: &mut Opening<F>, client: Client, is_virtual: bool) -> Served<F> {
    if !is_virtual && flow.tuple.proto == proto::TCP && !flow.is_syn() {
        return Served::Not;
    }
    match F::choose_backend(opening, client as u32) {
        0 => {}
        OUTWARDS => snat::choose_source(skb, opening),
        refusal => {
            return match DropReason::from_number(refusal & !REFUSE) {
                Some(DropReason::ServicePortUndefined) if !is_virtual => Served::Not,
                Some(reason) if refusal & REFUSE != 0 => Served::Refused(reason),
                reason => Served::Dropped(reason.unwrap_or(DropReason::NoEndpoints)),
            };
        }
    }
    if let Err(reason) = snat::open(opening) {
        return Served::Dropped(reason);
    }
    count(Counter::ServiceNewFlow);
    Served::To(opening.to)
}

/// In what [`try_choose`] returns: the client is to know.
const REFUSE: u32 = 1 << 31;

/// What [`try_choose`] returns where the backend is outside and sees an address of the node's: that of the interface which leads there is still
/// to be chosen, with the packet at hand.
const OUTWARDS: u32 = 1 << 30;

/// Chooses a backend for the flow that is to be opened and writes what must leave into `opening`: 0 or [`OUTWARDS`], or the number of a drop
/// reason, perhaps with [`REFUSE`]. It runs once a flow: see [`crate::subprograms`].
#[inline(always)]
pub(crate) fn try_choose<F: Ip>(opening: &mut Opening<F>, client: u32) -> u32 {
    let from = opening.original;
    let Choice { id, backend, flags } = match choose(&from, client) {
        Ok(choice) => choice,
        Err(refusal) => return refusal,
    };
    opening.backend = id;
    opening.generation = backend.generation;
    opening.to.dst = backend.addr;
    opening.to.dport = backend.port;
    let at = route::lookup::<F>(backend.addr);
    let (source, source_port) = source(&from, backend.addr, at, client, flags);
    opening.to.src = source;
    opening.source_port = source_port as u32;
    if matches!(at, Next::Outside | Next::Native) && source_port == SourcePort::Allocate { OUTWARDS } else { 0 }
}

/// A backend that was chosen.
pub(crate) struct Choice<F: Ip> {
    /// Its id.
    id: u32,
    /// The backend.
    pub(crate) backend: &'static Backend<F>,
    /// How the frontend treats its clients.
    flags: u32,
}

/// The backend of a flow that is to be opened, or the number of a drop reason, perhaps with [`REFUSE`]. `client` is a [`Client`].
#[inline(always)]
pub(crate) fn choose<F: Ip>(from: &Tuple<F>, client: u32) -> Result<Choice<F>, u32> {
    // SAFETY: the value is read in place; the agent replaces values whole.
    let Some(service) = (unsafe { F::services().get(frontend_of(from)) }) else {
        return Err(DropReason::ServicePortUndefined as u32 | REFUSE);
    };
    let who = ServiceClient { service: service.id, addr: from.src };
    if service.flags & flags::SOURCE_RANGES != 0 && !F::lets_in(who) {
        return Err(DropReason::SourceNotAllowed as u32);
    }
    let (run, silent) = if is_outside(client) {
        (service.outside, flags::DROP_OUTSIDE_WHEN_EMPTY)
    } else {
        (service.cluster, flags::DROP_WHEN_EMPTY)
    };
    if run.count == 0 {
        return Err(if service.flags & silent != 0 {
            DropReason::NoLocalEndpoints as u32
        } else {
            DropReason::NoEndpoints as u32 | REFUSE
        });
    }
    let id = pick(from, service, &run, who);
    let Some(backend) = F::backends().get(id).filter(|backend| backend.state != state::FREE) else {
        // The run was given to another Service between two look-ups: as good as no endpoint, and the client's next packet finds one.
        return Err(DropReason::NoEndpoints as u32);
    };
    Ok(Choice { id, backend, flags: service.flags })
}

/// The source that a backend sees which is reached by `at`. The node's own address comes with a port of the node's, so that the answer is known for one of ours.
#[inline(always)]
fn source<F: Ip>(from: &Tuple<F>, backend: F::Addr, at: Next, who: u32, service: u32) -> (F::Addr, SourcePort) {
    let client = from.src;
    if who == Client::Pod as u32 {
        return match at {
            _ if backend == client => (F::gateway(), SourcePort::Keep),
            Next::Outside => (F::node_ip(), SourcePort::Allocate),
            _ => (client, SourcePort::Keep),
        };
    }
    match at {
        // `to_wire` and `from_host` know the answer of a process of this node by the port, if it has one.
        Next::Host if is_outside(who) && matches!(from.proto, proto::TCP | proto::UDP) => (client, SourcePort::Allocate),
        // The answer to any other address would leave by a way that does not lead through us.
        Next::Host => (F::hairpin(), SourcePort::Allocate),
        Next::Pod { .. } if is_outside(who) && service & flags::KEEP_SOURCE != 0 => {
            // A pod may reach this one by another way too, from the same port: then the answers must not be taken for each other. A node
            // may as well, but all of the ports that it could have instead are what it masquerades others with.
            (client, if route::is_pod_elsewhere::<F>(client) { SourcePort::Allocate } else { SourcePort::Keep })
        }
        Next::Tunnel { .. }
            if who == Client::Outside as u32 && service & flags::DIRECT_RETURN != 0 && direct::may_serve(from, backend) =>
        {
            (client, SourcePort::Theirs)
        }
        _ => (F::node_ip(), SourcePort::Allocate),
    }
}

/// The backend id of a new flow out of a run that is not empty.
#[inline(always)]
fn pick<F: Ip>(flow: &Tuple<F>, service: &Service, run: &Run, who: ServiceClient<F>) -> u32 {
    let index = if service.flags & flags::MAGLEV != 0 {
        backend::of_flow(flow, run.count)
    } else {
        // SAFETY: a helper without arguments.
        backend::pick(unsafe { bpf_get_prandom_u32() }, run.count)
    };
    let id = slot(run.base.wrapping_add(index)).unwrap_or(0);
    if service.flags & flags::AFFINITY == 0 {
        return id;
    }
    // SAFETY: a helper without arguments.
    let now = affinity::moment(unsafe { bpf_ktime_get_coarse_ns() });
    // SAFETY: the value is read at once, and replaced whole.
    let last = unsafe { F::affinity().get(who) }.filter(|last| last.holds(now, service.affinity_secs));
    let id = match last {
        Some(last) => find_in::<F>(run, last.backend).unwrap_or(id),
        None => id,
    };
    if let Some(backend) = F::backends().get(id) {
        // Where even the LRU has no room the client is a stranger next time.
        let _ = F::affinity().insert(who, Affinity { backend: backend.addr, last_seen: now }, 0);
    }
    id
}

/// Looks an address up in a run, whose backends stand in ascending order.
#[repr(C)]
struct Search<F: Family> {
    addr: F::Addr,
    /// The first slot that may have it.
    low: u32,
    /// The first slot after that which is known to come after it.
    high: u32,
    /// The backend, once found.
    found: u32,
}

/// The backend of a run that has an address.
#[inline(always)]
fn find_in<F: Ip>(run: &Run, addr: F::Addr) -> Option<u32> {
    let mut search = Search::<F> { addr, low: run.base, high: run.slots().end, found: 0 };
    // Each step halves what is left.
    // SAFETY: the callback takes the context that is passed here, which outlives the call.
    unsafe { bpf_loop(u32::BITS, halve::<F> as *mut c_void, (&raw mut search).cast(), 0) };
    (search.found != 0).then_some(search.found)
}

/// One step of [`find_in`]: 1 ends the loop.
extern "C" fn halve<F: Ip>(_: u32, context: *mut c_void) -> i64 {
    // SAFETY: `find_in` passes this and waits.
    let search = unsafe { &mut *context.cast::<Search<F>>() };
    if search.low >= search.high {
        return 1;
    }
    let middle = search.low + (search.high - search.low) / 2;
    let Some(id) = slot(middle) else { return 1 };
    let Some(backend) = F::backends().get(id) else { return 1 };
    if backend.addr == search.addr {
        search.found = id;
        return 1;
    }
    if backend.addr < search.addr {
        search.low = middle + 1;
    } else {
        search.high = middle;
    }
    0
}

/// Whether a known flow may go on as it did.
///
/// A TCP connection stays where it is until it is over; a SYN on a closed one is a new connection. A flow without connections
/// moves as soon as its backend is no longer the one it was given.
#[inline(always)]
pub(crate) fn is_still_good<F: Ip>(flow: &Flow<F>, entry: &CtEntry<F>) -> bool {
    let is_tcp = flow.tuple.proto == proto::TCP;
    if is_tcp && !flow.is_syn() {
        return true;
    }
    let Some(backend) = tenant::<F>(entry.backend, entry.generation) else { return false };
    if !is_tcp {
        return shows_nobody_gone(flow, entry);
    }
    !conntrack::is_over(entry, proto::TCP) && (backend.state == state::ACTIVE || conntrack::is_answered(entry, proto::TCP))
}

/// Whether the source that a flow's backend sees is its client's or still this node's. A flow without connections moves as soon as the node has
/// another address, or its answers are nobody's.
#[inline(always)]
fn shows_nobody_gone<F: Ip>(flow: &Flow<F>, entry: &CtEntry<F>) -> bool {
    let source = entry.src;
    source == flow.tuple.src
        || source == F::gateway()
        || source == F::hairpin()
        || route::owner::<F>(source) == Some(address::HOST)
}

/// The backend of an id, if it is still the one that had this generation.
#[inline(always)]
pub(crate) fn tenant<F: Ip>(id: u32, generation: u32) -> Option<&'static Backend<F>> {
    F::backends().get(id).filter(|backend| backend.generation == generation && backend.state != state::FREE)
}
