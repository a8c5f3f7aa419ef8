//! A packet that arrives: out of the tunnel, natively for this node, or from the host's stack on its way to a pod.

use core::ops::ControlFlow;

use shunt_common::{
    verdict::{Counter, DropReason, Verdict},
    vxlan,
};

use super::{
    Hook, Stage, conntrack, deliver, done, dropped, fragment,
    fragment::Unknown,
    icmp,
    route::{self, Next},
    snat,
};
use crate::{
    count::count,
    packet::{
        parse::{Flow, Icmp, Ip, Part},
        skb::Skb,
    },
};

/// A popped packet, with the ECN field that its outer header had.
#[inline(always)]
pub(crate) fn from_tunnel<F: Ip>(skb: Skb, hook: Hook, outer_ecn: u8) -> Stage<Verdict> {
    count(Counter::FromTunnel);
    let mut flow = done(F::parse(skb))?;
    match vxlan::ecn_after(flow.tos, outer_ecn) {
        None => return dropped(DropReason::TunnelEcn),
        Some(ecn) if ecn != flow.tos & 3 => done(F::set_ecn(skb, ecn))?,
        Some(_) => {}
    }
    let next = route::lookup::<F>(flow.tuple.dst);
    match next {
        Next::Pod { .. } if flow.ttl <= 1 => return to_slow_path(skb),
        Next::Pod { .. } | Next::Host => {}
        Next::Nobody => return dropped(DropReason::NoSuchPod),
        // A tunnel is no way through this node.
        _ => return dropped(DropReason::NoRoute),
    }
    if fragment::resolve(&mut flow, hook, Unknown::Reassemble)? {
        return to_slow_path(skb);
    }
    let next = translate(skb, &mut flow, next)?;
    deliver::<F>(skb, hook, next)
}

/// A packet from the wire itself: ours only if it answers a flow that left with a port of this node's.
#[inline(always)]
pub(crate) fn native<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    let Ok(mut flow) = F::parse(skb) else { return ControlFlow::Break(Verdict::Pass) };
    if flow.tuple.dst != F::node_ip() {
        return ControlFlow::Break(Verdict::Pass);
    }
    if flow.part != Part::Whole {
        fragment::resolve(&mut flow, hook, Unknown::Pass)?;
    }
    if flow.icmp != Icmp::Error && !snat::is_ours(flow.tuple.dport) {
        return ControlFlow::Break(Verdict::Pass);
    }
    match translate(skb, &mut flow, Next::Native)? {
        Next::Native => ControlFlow::Break(Verdict::Pass),
        next => deliver::<F>(skb, hook, next),
    }
}

/// A packet that the host's stack sends to a pod: the stack goes on with it, translated if it belongs to a translated flow.
#[inline(always)]
pub(crate) fn from_stack<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    let Ok(mut flow) = F::parse(skb) else { return ControlFlow::Break(Verdict::Pass) };
    fragment::resolve(&mut flow, hook, Unknown::Pass)?;
    translate(skb, &mut flow, Next::Host)?;
    ControlFlow::Continue(Verdict::Pass)
}

/// Translates a packet that belongs to a translated flow, or is an error about one, and says where it goes then: `next` if it belongs
/// to none.
#[inline(always)]
fn translate<F: Ip>(skb: Skb, flow: &mut Flow<F>, next: Next) -> Stage<Next> {
    if icmp::translate(skb, flow)? {
        return ControlFlow::Continue(route::lookup::<F>(flow.tuple.dst));
    }
    let Some(entry) = conntrack::find::<F>(&flow.tuple) else { return ControlFlow::Continue(next) };
    conntrack::touch(entry, flow);
    if entry.translates == 0 {
        return ControlFlow::Continue(next);
    }
    let to = entry.translated(flow.tuple.proto);
    done(F::rewrite(skb, flow, &to))?;
    ControlFlow::Continue(route::lookup::<F>(to.dst))
}

/// To a pod or to the host; a router's hop is counted for the pod.
#[inline(always)]
fn deliver<F: Ip>(skb: Skb, hook: Hook, next: Next) -> Stage<Verdict> {
    match next {
        Next::Pod { ifindex, mac } => {
            done(F::age(skb))?;
            ControlFlow::Continue(deliver::to_pod(skb, hook, ifindex, mac))
        }
        Next::Host => ControlFlow::Continue(deliver::to_host(skb, true)),
        _ => dropped(DropReason::NoRoute),
    }
}

/// Leaves a popped packet to the host's stack.
#[inline(always)]
fn to_slow_path(skb: Skb) -> Stage<Verdict> {
    count(Counter::SlowPath);
    ControlFlow::Break(deliver::to_host(skb, true))
}
