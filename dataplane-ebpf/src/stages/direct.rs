//! Direct server return: a client from the outside asks one node at a node port, and the backend's node answers it, past the node that was
//! asked. That sends the client's packets on as they came, with the backend's [`Name`](shunt_common::vxlan::Name).

use core::ops::ControlFlow;

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use shunt_common::{
    conntrack::CtKey,
    flow::Tuple,
    icmp::answer,
    net::{Family, Port, proto},
    verdict::{DropReason, Verdict},
};

use super::{
    Hook, Stage, conntrack, deliver, done, dropped, icmp,
    route::{self, Next},
    service::{self, Known},
    snat::{self, Opening},
};
use crate::{
    maps::node,
    packet::{
        parse::{Flow, Ip},
        skb::Skb,
        tunnel::Wrap,
    },
};

/// Whether a backend's node can answer a client by itself: only one that knows how to, to a client that is nobody's in the cluster, and as
/// the address by which other nodes know this one.
#[inline(always)]
pub(crate) fn may_serve<F: Ip>(from: &Tuple<F>, backend: F::Addr) -> bool {
    from.dst == F::node_ip() && is_nobodys::<F>(from.src) && route::taker_of_names::<F>(backend).is_some()
}

/// Whether an address is nobody's in the cluster: it is reached by the host's routing alone.
#[inline(always)]
pub(crate) fn is_nobodys<F: Ip>(addr: F::Addr) -> bool {
    matches!(route::lookup::<F>(addr), Next::Outside)
}

/// On the node that was asked: sends a packet to the node of its backend, which is the destination of `to`.
#[inline(always)]
pub(crate) fn send<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, to: &Tuple<F>) -> Stage<Verdict> {
    let Some(underlay) = route::taker_of_names::<F>(to.dst) else {
        // The node is no longer what it was when the flow was opened: the next packet finds another way.
        if let Some(entry) = conntrack::find::<F>(&flow.tuple) {
            conntrack::forget(&CtKey::of(&flow.tuple), entry);
        }
        return dropped(DropReason::NoRoute);
    };
    if !deliver::fits_tunnel(skb, flow) {
        let mtu = node!(mtu) as u16;
        return ControlFlow::Continue(icmp::refuse(skb, hook, flow, DropReason::PacketTooBig, answer::TOO_BIG, mtu));
    }
    if flow.ttl <= 1 {
        return ControlFlow::Continue(icmp::refuse(skb, hook, flow, DropReason::TtlExpired, answer::TTL_EXCEEDED, 0));
    }
    // SAFETY: a helper without arguments.
    let id = unsafe { bpf_get_prandom_u32() } as u16;
    ControlFlow::Continue(deliver::to_backend(skb, hook, Wrap::of(flow, id), underlay, &F::name(to.dst, to.dport)))
}

/// The name that a packet came with: of a backend for a node port of the node that sent it.
#[derive(Clone, Copy)]
pub(crate) struct Named<F: Family> {
    /// The backend's address.
    pub(crate) addr: F::Addr,
    /// The backend's port.
    pub(crate) port: Port,
}

/// On the backend's node: what a named packet must carry.
#[inline(always)]
pub(crate) fn translation<F: Ip>(flow: &mut Flow<F>, named: &Named<F>) -> Stage<Tuple<F>> {
    let mut opening = Opening::of(flow.tuple);
    opening.to.dst = named.addr;
    opening.to.dport = named.port;
    match F::resume_named(flow, &mut opening) {
        0 => {}
        UNKNOWN => done(snat::open(&mut opening))?,
        reason => return dropped(DropReason::from_number(reason).unwrap_or(DropReason::NoRoute)),
    }
    ControlFlow::Continue(opening.to)
}

/// What [`try_resume`] returns for a flow that is to be opened.
const UNKNOWN: u32 = u32::MAX;

/// Looks the flow up that is to go to `opening`'s destination: 0 if it is known, else [`UNKNOWN`], or the number of a drop reason. See
/// [`crate::subprograms`].
///
/// A flow goes on as it did if that is to the same backend; else it is forgotten, for the node that was asked decides.
#[inline(always)]
pub(crate) fn try_resume<F: Ip>(flow: &Flow<F>, opening: &mut Opening<F>) -> u32 {
    // An error that was about a flow is translated by now.
    if flow.tuple.proto == proto::ICMP {
        return DropReason::IcmpErrorUnmatched as u32;
    }
    match service::resume(flow, false) {
        Known::Ours(entry) if entry.dst == opening.to.dst && entry.dport == opening.to.dport => {
            opening.to.sport = entry.sport;
            return 0;
        }
        Known::Ours(entry) => conntrack::forget(&CtKey::of(&flow.tuple), entry),
        // By its routes a packet would go back to the node that was asked.
        Known::Stacks => return DropReason::NoRoute as u32,
        Known::Nothing => {}
    }
    UNKNOWN
}
