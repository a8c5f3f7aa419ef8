//! A packet that sets out from here: from a pod, or from the host's stack by way of `shunt0`.

use core::ops::ControlFlow;

use shunt_common::{
    conntrack::{CtKey, kind},
    flow::Tuple,
    icmp::unreachable,
    net::proto,
    verdict::{Counter, DropReason, Verdict},
};

use super::{
    Hook, Stage, antispoof, conntrack, deliver, done, dropped, fragment,
    fragment::Unknown,
    icmp,
    route::{self, Next},
    service::{self, Client, Nobody},
    snat::{self, Opening, SourcePort},
};
use crate::{
    count::count,
    maps::epoch,
    packet::{
        parse::{Flow, Icmp, Ip, Part},
        skb::Skb,
    },
};

/// From the headers to the next hop.
#[inline(always)]
pub(crate) fn run<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    let mut flow = done(F::parse(skb))?;
    let (to, next) = match recall(skb, hook, &flow) {
        Recalled::Whole(to, next) => (to, next),
        Recalled::Nothing => decide(skb, hook, &mut flow, Tracked::No)?,
        Recalled::Stale => decide(skb, hook, &mut flow, Tracked::Perhaps)?,
    };
    send(skb, hook, &flow, &to, next)
}

/// What one look-up tells of a packet.
enum Recalled<F: Ip> {
    /// All: what it must carry and where it goes.
    Whole(Tuple<F>, Next),
    /// That its flow is not tracked.
    Nothing,
    /// Not enough.
    Stale,
}

/// Whether a packet's flow is worth looking for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tracked {
    No,
    Perhaps,
}

/// What the packet of a flow under way must carry and where it goes, at the cost of one look-up.
///
/// A SYN may open another connection, the last hop belongs to the stack, and fragments and errors are not what they seem: they take the long way.
#[inline(always)]
fn recall<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>) -> Recalled<F> {
    if flow.part != Part::Whole || flow.icmp == Icmp::Error || flow.is_syn() || flow.ttl <= 1 || hook.egress {
        return Recalled::Stale;
    }
    let Some(entry) = conntrack::find::<F>(&flow.tuple) else { return Recalled::Nothing };
    let Some(next) = Next::recall(&entry.hop, skb.ifindex()) else { return Recalled::Stale };
    if entry.backend != 0 && flow.tuple.proto != proto::TCP && !service::is_still_good(flow, entry) {
        return Recalled::Stale;
    }
    conntrack::touch(entry, flow);
    Recalled::Whole(entry.translated(flow.tuple.proto), next)
}

/// What a packet must carry and where it goes, by all the rules; remembered for the packets of its flow that follow.
#[inline(always)]
fn decide<F: Ip>(skb: Skb, hook: Hook, flow: &mut Flow<F>, tracked: Tracked) -> Stage<(Tuple<F>, Next)> {
    // Taken before the look-ups, so that a change in between makes what is remembered stale.
    let epoch = epoch();
    if !hook.egress {
        antispoof::check(skb, flow)?;
    }
    if F::is_multicast(flow.tuple.dst) {
        return dropped(DropReason::Multicast);
    }
    let next = route::lookup::<F>(flow.tuple.dst);
    if ages(hook, next) && flow.ttl <= 1 {
        return to_slow_path(next);
    }
    if fragment::resolve(flow, hook, Unknown::Reassemble)? {
        return to_slow_path(next);
    }
    if icmp::translate(skb, flow)? {
        return ControlFlow::Continue((flow.tuple, route::lookup::<F>(flow.tuple.dst)));
    }
    let (to, next) = match next {
        Next::Service => match service::translate(flow, client(flow, hook))? {
            Ok(to) => (to, route::lookup::<F>(to.dst)),
            Err(Nobody::Silent(reason)) => return dropped(reason),
            Err(Nobody::Refuse(reason)) => {
                return ControlFlow::Break(icmp::refuse(skb, hook, flow, reason, unreachable::PORT, 0));
            }
        },
        _ => {
            let Some(to) = track(flow, hook, next, tracked)? else { return ControlFlow::Continue((flow.tuple, next)) };
            (to, if to.dst == flow.tuple.dst { next } else { route::lookup::<F>(to.dst) })
        }
    };
    if !hook.egress
        && let Some(entry) = conntrack::find::<F>(&flow.tuple)
    {
        entry.hop = next.remember(epoch, skb.ifindex());
    }
    ControlFlow::Continue((to, next))
}

/// Whether a packet grows a hop older here: the stack has aged what comes from it, and ages itself what it is to have.
#[inline(always)]
fn ages(hook: Hook, next: Next) -> bool {
    !hook.egress && !matches!(next, Next::Host | Next::Native)
}

/// Who asks a Service. On the way out of `shunt0` that is the host, but for a pod's packet that took the slow path.
#[inline(always)]
fn client<F: Ip>(flow: &Flow<F>, hook: Hook) -> Client {
    if hook.egress && !matches!(route::lookup::<F>(flow.tuple.src), Next::Pod { .. }) { Client::Host } else { Client::Pod }
}

/// What a packet that is not for a Service must carry: a reply is translated back, a flow to the outside gets the node's address,
/// a pod's direct flow is noted so that no translated one is laid over it. `None`: it is no flow that is tracked.
#[inline(always)]
fn track<F: Ip>(flow: &Flow<F>, hook: Hook, next: Next, tracked: Tracked) -> Stage<Option<Tuple<F>>> {
    let tuple = flow.tuple;
    if tracked == Tracked::Perhaps
        && let Some(entry) = conntrack::find::<F>(&tuple)
    {
        let is_new = flow.is_syn() && entry.kind == kind::ORIGINAL && conntrack::is_over(entry, tuple.proto);
        if !is_new {
            conntrack::touch(entry, flow);
            return ControlFlow::Continue(Some(entry.translated(tuple.proto)));
        }
        conntrack::forget(&CtKey::of(&tuple), entry);
    }
    match next {
        Next::Outside if hook.egress || tuple.dst == F::gateway() || tuple.dst == F::hairpin() => dropped(DropReason::NoRoute),
        Next::Outside => {
            let to = Tuple { src: F::node_ip(), ..tuple };
            let mut opening = Opening::new(tuple, to, SourcePort::Allocate);
            done(snat::open(&mut opening))?;
            ControlFlow::Continue(Some(opening.to))
        }
        Next::Pod { .. } | Next::Tunnel { .. } | Next::Host if !hook.egress && (flow.is_syn() || tuple.proto == proto::UDP) => {
            let mut opening = Opening::new(tuple, tuple, SourcePort::Keep);
            if snat::open(&mut opening).is_err() {
                count(Counter::DirectUntracked);
                return ControlFlow::Continue(None);
            }
            ControlFlow::Continue(Some(opening.to))
        }
        _ => ControlFlow::Continue(None),
    }
}

/// Writes what the packet must carry and lets it go. `flow` is what the packet carries now.
#[inline(always)]
fn send<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, to: &Tuple<F>, next: Next) -> Stage<Verdict> {
    // Everything that may be answered or left to the stack comes before the first change: both must see the packet as it was sent.
    match next {
        Next::Nobody => {
            return ControlFlow::Continue(icmp::refuse(skb, hook, flow, DropReason::NoSuchPod, unreachable::HOST, 0));
        }
        Next::Service => return dropped(DropReason::NoRoute),
        Next::Native if hook.egress => return dropped(DropReason::NoRoute),
        Next::Tunnel { .. } if !deliver::fits_tunnel(skb, flow) => {
            if hook.egress {
                return dropped(DropReason::PacketTooBig);
            }
            return to_slow_path(next);
        }
        _ => {}
    }
    if *to != flow.tuple {
        done(F::rewrite(skb, flow, to))?;
    }
    if ages(hook, next) {
        done(F::age(skb))?;
    }
    ControlFlow::Continue(match next {
        Next::Pod { ifindex, mac } => deliver::to_pod(skb, hook, ifindex, mac),
        Next::Tunnel { underlay, vtep } => deliver::to_tunnel(skb, hook, flow, underlay, vtep),
        Next::Outside => {
            let leaving = Flow { tuple: *to, ..*flow };
            deliver::to_outside(skb, hook, &leaving)
        }
        _ => deliver::to_host(skb, hook.egress),
    })
}

/// Leaves a packet to the host's stack, whose routes lead where ours would. Towards the outside they would show the pod's address.
#[inline(always)]
fn to_slow_path<T>(next: Next) -> Stage<T> {
    if let Next::Outside = next {
        return dropped(DropReason::FragmentWithoutReassembly);
    }
    count(Counter::SlowPath);
    ControlFlow::Break(Verdict::Pass)
}
