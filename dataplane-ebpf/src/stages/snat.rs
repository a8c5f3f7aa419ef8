//! Source ports: opening a flow whose answers must be told from everybody else's.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use shunt_common::{
    backend,
    conntrack::{CtEntry, CtKey, translates},
    flow::Tuple,
    net::{Port, V4, proto},
    snat,
    verdict::{Counter, DropReason},
};

use super::{
    conntrack::{self, Refused},
    deliver,
};
use crate::{
    count::count,
    maps::node,
    packet::{parse::Ip, skb::Skb},
};

/// How many source ports are tried before the flow is refused. With half of all ports towards one destination taken by live flows,
/// one flow in 2^16 is refused.
const TRIES: u32 = 16;

/// How many of them must be free. Those after may also be a flow's that is over and not forgotten yet: clients of short connections would
/// else use up all ports towards one backend in the time that a closed flow is kept.
const FREE_TRIES: u32 = TRIES / 2;

/// Which source port a flow should leave with.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourcePort {
    /// Its own, another one only where that is taken.
    Keep,
    /// One of the node's: its client's ([`snat::first_place`]), another where that is taken.
    Allocate,
    /// The backend's node settles that: it translates the flow ([`translates::THERE`]).
    Theirs,
}

/// The port of the node's range that is at a place, which `choose` takes from their number.
#[inline(always)]
fn port_at(choose: impl FnOnce(u32) -> u32) -> Port {
    let (min, max) = (node!(snat_port_min), node!(snat_port_max));
    Port::from_host(min.wrapping_add(choose(u32::from(max.wrapping_sub(min)) + 1) as u16))
}

/// A random port of the node's range.
#[inline(always)]
fn random_port() -> Port {
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    port_at(|count| backend::pick(random, count))
}

/// Whether a port belongs to the range that answers to this node's translated flows come back to.
#[inline(always)]
pub(crate) fn is_ours(port: Port) -> bool {
    let port = port.to_host();
    node!(snat_port_min) <= port && port <= node!(snat_port_max)
}

/// A flow that is to be opened.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Opening<F: Ip> {
    /// What its opener sends.
    pub(crate) original: Tuple<F>,
    /// What is to leave; `open` changes the source port where that is taken.
    pub(crate) to: Tuple<F>,
    /// A [`SourcePort`], as a number: what arrives in a subprogram of its own could be anything to the verifier.
    pub(crate) source_port: u32,
    /// The backend's id, 0 without a Service.
    pub(crate) backend: u32,
    /// The backend's generation.
    pub(crate) generation: u32,
}

impl<F: Ip> Opening<F> {
    /// A flow that leaves as `to`.
    #[inline(always)]
    pub(crate) fn new(original: Tuple<F>, to: Tuple<F>, source_port: SourcePort) -> Self {
        Self { original, to, source_port: source_port as u32, backend: 0, generation: 0 }
    }

    /// A flow that leaves as it is, unless somebody thinks otherwise.
    #[inline(always)]
    pub(crate) fn of(original: Tuple<F>) -> Self {
        Self::new(original, original, SourcePort::Keep)
    }

    /// Whether the backend's node translates it.
    #[inline(always)]
    pub(crate) fn is_theirs(&self) -> bool {
        self.source_port == SourcePort::Theirs as u32
    }
}

/// Tries to put an entry in. Key and value stand where the kernel reads them: there is no stack for a copy.
#[repr(C)]
struct Attempt<F: Ip> {
    key: CtKey<F>,
    entry: CtEntry<F>,
    /// Of the last try: 0, or the number of the drop reason.
    refused: u32,
}

impl<F: Ip> Attempt<F> {
    /// Tries to reserve the tuple of the answer; notes the outcome.
    #[inline(always)]
    fn reserve(&mut self) {
        self.refused = match conntrack::reserve(&self.key, &self.entry) {
            Ok(()) => 0,
            Err(Refused::Collision) => DropReason::SnatPortsExhausted as u32,
            Err(Refused::Full) => DropReason::ConntrackFull as u32,
        };
    }
}

/// Opens a flow, choosing another source port where its own is taken or one of the node's is asked for.
#[inline(always)]
pub(crate) fn open<F: Ip>(opening: &mut Opening<F>) -> Result<(), DropReason> {
    match F::open_flow(opening) {
        0 => Ok(()),
        reason => Err(DropReason::from_number(reason).unwrap_or(DropReason::ConntrackFull)),
    }
}

/// Opens a flow to the outside, which leaves with the address of the interface that it goes by.
#[inline(always)]
pub(crate) fn open_outwards<F: Ip>(skb: Skb, opening: &mut Opening<F>) -> Result<(), DropReason> {
    choose_source(skb, opening);
    open(opening)
}

/// Writes the address that a flow to the outside leaves with into `opening`.
#[inline(always)]
pub(crate) fn choose_source<F: Ip>(skb: Skb, opening: &mut Opening<F>) {
    F::choose_source(skb.raw(), opening);
}

/// The body of [`choose_source`]. A subprogram of its own, which runs before [`try_open`] and not around it: there is no
/// stack for both.
#[inline(always)]
pub(crate) fn try_choose_source(skb: Skb, opening: &mut Opening<V4>) -> u32 {
    opening.to.src = deliver::look_for_source(skb, opening.to.dst, opening.to.proto);
    0
}

/// The body of [`open`]: the number of a drop reason, or 0. It runs once a flow: see [`crate::subprograms`].
#[inline(always)]
pub(crate) fn try_open<F: Ip>(opening: &mut Opening<F>) -> u32 {
    // Others have no port, or one under a checksum that we cannot mend (SCTP).
    let has_port = matches!(opening.original.proto, proto::TCP | proto::UDP | proto::ICMP);
    let is_theirs = opening.is_theirs();
    let mut attempt = Attempt {
        key: CtKey::of(&opening.to.reversed()),
        entry: CtEntry::reply(&opening.original, &opening.to, opening.backend, opening.generation, conntrack::now()),
        refused: DropReason::SnatPortsExhausted as u32,
    };
    if is_theirs {
        attempt.entry.translates = translates::THERE;
    }
    if opening.source_port != SourcePort::Allocate as u32 || !has_port {
        conntrack::reclaim(&opening.original, &attempt.key);
        attempt.reserve();
    }
    if attempt.refused == DropReason::SnatPortsExhausted as u32 && has_port {
        if !is_theirs {
            attempt.entry.translates = translates::HERE;
        }
        attempt.key.dport = port_at(|count| snat::first_place(&opening.original, count));
        conntrack::reclaim_past(&opening.original, &attempt.key);
        // The loop's body is verified once, not once a try.
        // SAFETY: the callback takes the context that is passed here, which outlives the call.
        unsafe { bpf_loop(TRIES, try_port::<F> as *mut c_void, (&raw mut attempt).cast(), 0) };
        if attempt.refused == 0 {
            opening.to.sport = attempt.key.dport;
            count(Counter::SnatNewFlow);
        }
    }
    if attempt.refused != 0 {
        return attempt.refused;
    }
    attempt.key = CtKey::of(&opening.original);
    attempt.entry.turn(&opening.original, &opening.to);
    if is_theirs {
        attempt.entry.translates = translates::THERE;
    }
    match conntrack::commit(&attempt.key, &attempt.entry) {
        Ok(()) => 0,
        Err(_) => DropReason::ConntrackFull as u32,
    }
}

/// One try with a port, the first with that which the key has: 1 ends the loop.
extern "C" fn try_port<F: Ip>(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: `try_open` passes this and waits.
    let attempt = unsafe { &mut *context.cast::<Attempt<F>>() };
    if index > 0 {
        attempt.key.dport = random_port();
    }
    if index >= FREE_TRIES {
        conntrack::reclaim_over(&attempt.key);
    }
    attempt.reserve();
    (attempt.refused != DropReason::SnatPortsExhausted as u32) as i64
}
