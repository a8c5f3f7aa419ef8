//! A packet that sets out from here: from a pod, or from the host's stack by way of `shunt0`.

use core::ops::ControlFlow;

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use shunt_common::{
    address::kind as address,
    conntrack::{CtEntry, CtKey, kind, translates},
    event::program,
    flow::Tuple,
    icmp::answer,
    net::proto,
    verdict::{Counter, DropReason, Verdict},
};

use super::{
    Hook, Stage, antispoof, conntrack,
    deliver::{self, Passage, WayOut},
    done, dropped, fragment,
    fragment::Unknown,
    icmp,
    route::{self, Next},
    service::{self, Client, Known, Served},
    shortcut::{self, Before, Tenant},
    snat::{self, Opening, SourcePort},
    stack,
};
use crate::{
    count::count,
    maps::node,
    packet::{
        frame::{ETH_LEN, Frame},
        parse::{Flow, Icmp, Ip, Part},
        skb::Skb,
        tunnel::Wrap,
    },
};

/// From the headers to the next hop.
#[inline(always)]
pub(crate) fn run<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    if !hook.egress
        && let Some(flow) = F::parse_plain(skb, ETH_LEN)
        && let Some(shortcut) = shortcut::find(hook, skb.ifindex(), &flow, Before::of(&flow))
        && deliver::fits_tunnel(skb, &flow)
    {
        return shortcut::take(skb, hook, &flow, shortcut);
    }
    let mut flow = done(F::parse(skb, ETH_LEN))?;
    let before = Before::of(&flow);
    let (to, next) = match recall(skb, hook, &flow, before) {
        Recalled::Whole(to, next) => (to, next),
        Recalled::Nothing => decide(skb, hook, &mut flow, Tracked::No, before)?,
        Recalled::Stale => decide(skb, hook, &mut flow, Tracked::Perhaps, before)?,
    };
    send(skb, hook, &flow, &to, next)
}

/// A packet of this node to itself: a Service's, if it asks one at a node port, else none of our business.
#[inline(always)]
pub(crate) fn to_self<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    let Ok(mut flow) = F::parse(skb, ETH_LEN) else { return ControlFlow::Break(Verdict::Pass) };
    if fragment::resolve(&mut flow, hook, Unknown::Pass)? || !service::is_at_node(&flow) {
        return ControlFlow::Break(Verdict::Pass);
    }
    // Node ports are at none of the loopback range.
    if route::owner::<F>(flow.tuple.dst) != Some(address::HOST) {
        return ControlFlow::Break(Verdict::Pass);
    }
    let to = match ask(skb, hook, &flow, Next::Host) {
        Served::To(to) => to,
        Served::Dropped(reason) => return dropped(reason),
        Served::Refused(reason) => {
            return ControlFlow::Break(icmp::refuse(skb, hook, &flow, reason, answer::PORT_UNREACHABLE, 0));
        }
        Served::Stacks | Served::Not => return ControlFlow::Break(Verdict::Pass),
    };
    let next = onward::<F>(hook, to.dst, false);
    // `lo` carries what nothing behind it does.
    if !matches!(next, Next::Host) && !deliver::fits_tunnel(skb, &flow) {
        let mtu = node!(mtu) as u16;
        return ControlFlow::Break(icmp::refuse(skb, hook, &flow, DropReason::PacketTooBig, answer::TOO_BIG, mtu));
    }
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
fn recall<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, before: Before) -> Recalled<F> {
    if flow.part != Part::Whole || flow.icmp == Icmp::Error || flow.is_syn() || flow.ttl <= 1 || hook.egress {
        return Recalled::Stale;
    }
    let Some(entry) = conntrack::find::<F>(&flow.tuple) else { return Recalled::Nothing };
    let Some(next) = Next::recall(&entry.hop, skb.ifindex()) else { return Recalled::Stale };
    if entry.backend != 0 && flow.tuple.proto != proto::TCP && !service::is_still_good(flow, entry) {
        return Recalled::Stale;
    }
    conntrack::touch(entry, flow);
    let to = entry.translated(flow.tuple.proto);
    let tenant = Tenant { backend: entry.backend, generation: entry.generation };
    shortcut::keep(skb, flow, before.now(hook, skb.ifindex()), &to, next, tenant);
    Recalled::Whole(to, next)
}

/// What a packet must carry and where it goes, by all the rules; remembered for the packets of its flow that follow.
#[inline(always)]
fn decide<F: Ip>(skb: Skb, hook: Hook, flow: &mut Flow<F>, tracked: Tracked, before: Before) -> Stage<(Tuple<F>, Next)> {
    if !hook.egress {
        antispoof::check(skb, flow)?;
    }
    if F::is_multicast(flow.tuple.dst) {
        return dropped(DropReason::Multicast);
    }
    let next = route::lookup::<F>(flow.tuple.dst);
    if ages(hook, next) && flow.ttl <= 1 {
        // It goes no further: the stack only tells its sender.
        return to_slow_path(Next::Host);
    }
    if fragment::resolve(flow, hook, Unknown::Reassemble)? {
        return to_slow_path(next);
    }
    if icmp::translate(skb, flow)? {
        return ControlFlow::Continue((flow.tuple, onward::<F>(hook, flow.tuple.dst, false)));
    }
    let (to, fate) = match ask(skb, hook, flow, next) {
        Served::To(to) => (to, Fate::Forth),
        Served::Dropped(reason) => return dropped(reason),
        Served::Refused(reason) => {
            return ControlFlow::Break(icmp::refuse(skb, hook, flow, reason, answer::PORT_UNREACHABLE, 0));
        }
        Served::Stacks => return to_stack(),
        Served::Not => track(skb, flow, hook, next, tracked)?,
    };
    if fate == Fate::Untracked {
        if !hook.egress {
            shortcut::keep(skb, flow, before.now(hook, skb.ifindex()), &to, next, Tenant::NONE);
        }
        return ControlFlow::Continue((to, next));
    }
    let next = if to.dst == flow.tuple.dst { next } else { onward::<F>(hook, to.dst, fate == Fate::Back) };
    if !hook.egress
        && let Some(entry) = conntrack::find::<F>(&flow.tuple)
    {
        entry.hop = next.remember(before.epoch, skb.ifindex());
    }
    ControlFlow::Continue((to, next))
}

/// Where a packet goes on to whose destination was written anew. What leaves the host's stack can't be left to its routes once more.
#[inline(always)]
fn onward<F: Ip>(hook: Hook, dst: F::Addr, own: bool) -> Next {
    match route::lookup_as::<F>(dst, own) {
        Next::Native if hook.egress => Next::Outside,
        next => next,
    }
}

/// Whether a packet grows a hop older here: the stack has aged what comes from it, and ages itself what it is to have.
#[inline(always)]
fn ages(hook: Hook, next: Next) -> bool {
    !hook.egress && !matches!(next, Next::Host | Next::Native)
}

/// What was found out about a packet's flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is not tracked.
    Untracked,
    /// The packet goes the way of the flow's opener.
    Forth,
    /// It answers, with an address of this node's own or one that it serves.
    Back,
}

/// Asks the Service that a packet is for, if it is for one.
#[inline(always)]
fn ask<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, next: Next) -> Served<F> {
    let is_virtual = matches!(next, Next::Service);
    let is_frontend = match next {
        Next::Service => true,
        _ if hook.program == program::FROM_HOST || !service::is_at_node(flow) => false,
        Next::Host => true,
        // A load balancer's address may be another node's. Most that is for elsewhere at such a port is for a pod.
        Next::Tunnel { .. } => service::is_frontend(flow),
        _ => false,
    };
    if !is_frontend {
        return Served::Not;
    }
    match service::resume(flow, true) {
        // An answer to a port that some frontend has too.
        Known::Ours(entry) if entry.kind == kind::REPLY => Served::Not,
        Known::Ours(entry) => Served::To(entry.translated(flow.tuple.proto)),
        Known::Stacks => Served::Stacks,
        Known::Nothing if hook.program != program::FROM_HOST && stack::may_have(flow) => Served::Stacks,
        Known::Nothing => service::open(skb, flow, &mut Opening::of(flow.tuple), client(skb, hook, flow), is_virtual),
    }
}

/// Who asks a Service. On the way out of `shunt0` that is the host, but for packets that took the slow path.
#[inline(always)]
fn client<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>) -> Client {
    if !hook.egress || route::owner::<F>(flow.tuple.src) == Some(address::POD) {
        Client::Pod
    } else if skb.entered_by() == node!(underlay_ifindex) {
        Client::Outside
    } else {
        // Also of who came by another interface: its answers may leave by one where no program would meet them, and this address leads them back here.
        Client::Host
    }
}

/// What a packet that is not for a Service must carry: a reply is translated back, a flow to the outside gets the node's address,
/// a pod's direct flow is noted so that no translated one is laid over it. Also what was found out about its flow.
#[inline(always)]
fn track<F: Ip>(skb: Skb, flow: &Flow<F>, hook: Hook, next: Next, tracked: Tracked) -> Stage<(Tuple<F>, Fate)> {
    let tuple = flow.tuple;
    match if tracked == Tracked::Perhaps { service::resume(flow, false) } else { Known::Nothing } {
        Known::Ours(entry) if leaves_as_another(skb, flow, entry, next) => conntrack::forget(&CtKey::of(&tuple), entry),
        Known::Ours(entry) => {
            let fate = if entry.kind == kind::REPLY { Fate::Back } else { Fate::Forth };
            return ControlFlow::Continue((entry.translated(tuple.proto), fate));
        }
        Known::Stacks => return to_stack(),
        Known::Nothing if !hook.egress && stack::may_have(flow) => return to_stack(),
        Known::Nothing => {}
    }
    match next {
        Next::Outside if hook.egress || tuple.dst == F::gateway() || tuple.dst == F::hairpin() => dropped(DropReason::NoRoute),
        Next::Outside => {
            let mut opening = Opening::new(tuple, tuple, SourcePort::Allocate);
            done(snat::open_outwards(skb, &mut opening))?;
            ControlFlow::Continue((opening.to, Fate::Forth))
        }
        Next::Pod { .. } | Next::Tunnel { .. } | Next::Host if !hook.egress && (flow.is_syn() || tuple.proto == proto::UDP) => {
            let mut opening = Opening::new(tuple, tuple, SourcePort::Keep);
            if snat::open(&mut opening).is_err() {
                count(Counter::DirectUntracked);
                return ControlFlow::Continue((tuple, Fate::Untracked));
            }
            ControlFlow::Continue((opening.to, Fate::Forth))
        }
        _ => ControlFlow::Continue((tuple, Fate::Untracked)),
    }
}

/// Whether a masqueraded flow leaves with an address that it would not be given now, since the node's is another. A connection has to end then,
/// which is its ends' to find out; anything else begins anew (as nf_nat does, net/netfilter/nf_nat_masquerade.c).
#[inline(always)]
fn leaves_as_another<F: Ip>(skb: Skb, flow: &Flow<F>, entry: &CtEntry<F>, next: Next) -> bool {
    let is_masqueraded = entry.kind == kind::ORIGINAL && entry.backend == 0 && entry.translates == translates::HERE;
    if !is_masqueraded || flow.tuple.proto == proto::TCP || !matches!(next, Next::Outside) {
        return false;
    }
    let mut again = Opening::of(flow.tuple);
    snat::choose_source(skb, &mut again);
    again.to.src != entry.src
}

/// Writes what the packet must carry and lets it go. `flow` is what the packet carries now.
#[inline(always)]
pub(crate) fn send<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, to: &Tuple<F>, next: Next) -> Stage<Verdict> {
    // Everything that may be answered or left to the stack comes before the first change: both must see the packet as it was sent.
    match next {
        Next::Nobody => {
            return ControlFlow::Continue(icmp::refuse(skb, hook, flow, DropReason::NoSuchPod, answer::HOST_UNREACHABLE, 0));
        }
        Next::Service => return dropped(DropReason::NoRoute),
        Next::Native if hook.egress => return dropped(DropReason::NoRoute),
        Next::Tunnel { .. } if !deliver::fits_tunnel(skb, flow) => {
            return match hook.program {
                program::FROM_POD => to_slow_path(next),
                // The stack would look for the packet's own destination, which is here.
                program::FROM_WIRE => {
                    let mtu = node!(mtu) as u16;
                    ControlFlow::Continue(icmp::refuse(skb, hook, flow, DropReason::PacketTooBig, answer::TOO_BIG, mtu))
                }
                _ => dropped(DropReason::PacketTooBig),
            };
        }
        Next::Outside => {
            // Of a train of segments the kernel itself would not ask how long they are.
            let mut way = WayOut::of(to, flow.segment_len(skb.gso_size()) as u16);
            let passage = way.find(skb, hook, flow)?;
            // Who cuts it ages it.
            change(skb, hook, flow, to, if passage == Passage::Cut { Next::Host } else { next })?;
            return ControlFlow::Continue(way.take(skb, hook, passage));
        }
        _ => {}
    }
    change(skb, hook, flow, to, next)?;
    ControlFlow::Continue(match next {
        Next::Pod { ifindex, mac } => deliver::to_pod(skb, hook, ifindex, mac),
        Next::Tunnel { underlay, vtep } => {
            // SAFETY: a helper without arguments.
            let id = unsafe { bpf_get_prandom_u32() } as u16;
            deliver::to_tunnel(skb, hook, Wrap::of(flow, id), underlay, vtep)
        }
        _ => {
            // Whose source is as it came is expected at the interface where it came in.
            let stays = match hook.program {
                program::FROM_POD => true,
                program::FROM_WIRE => !hook.tunnelled && to.src == flow.tuple.src,
                _ => false,
            };
            deliver::to_host(skb, !stays)
        }
    })
}

/// Leaves a packet to the host's stack, which translates it.
#[inline(always)]
fn to_stack<T>() -> Stage<T> {
    count(Counter::ToHost);
    ControlFlow::Break(Verdict::Pass)
}

/// Writes what the packet must carry, and that it is a hop older. One that may go no hop further is answered.
#[inline(always)]
fn change<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, to: &Tuple<F>, next: Next) -> Stage<()> {
    let hops = u8::from(ages(hook, next));
    // What goes on from here and not to where it was sent.
    if hops != 0 && flow.ttl <= 1 {
        return ControlFlow::Break(icmp::refuse(skb, hook, flow, DropReason::TtlExpired, answer::TTL_EXCEEDED, 0));
    }
    done(if *to != flow.tuple {
        F::rewrite(skb, flow, to, &F::mending(&flow.tuple, to), hops)
    } else if hops != 0 {
        F::age(skb)
    } else {
        Ok(())
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
