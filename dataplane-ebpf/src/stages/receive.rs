//! A packet that arrives: out of the tunnel, natively for this node, or from the host's stack on its way to a pod.

use core::ops::ControlFlow;

use shunt_common::{
    address::kind,
    conntrack::translates,
    flow::Tuple,
    icmp::answer,
    net::{Ip4, proto},
    verdict::{Counter, DropReason, Verdict},
    vxlan,
};

use super::{
    Hook, Stage, conntrack, deliver,
    direct::{self, Named},
    done, dropped, forward, fragment,
    fragment::Unknown,
    icmp::{self, About},
    route::{self, Next},
    service::{self, Client, Known, Served},
    shortcut::{self, Before, Tenant},
    snat::{self, Opening},
    stack,
};
use crate::{
    count::count,
    maps::node,
    packet::{
        frame::ETH_LEN,
        parse::{Flow, Icmp, Ip, Part},
        skb::Skb,
        tunnel::Opened,
    },
};

/// Where a tunnel packet came from, and what held then.
#[derive(Clone, Copy)]
pub(crate) struct Origin {
    peer: Ip4,
    before: Before,
}

/// A tunnel packet that is not popped yet, if its flow has a shortcut. Else what the long way needs to leave one.
#[inline(always)]
pub(crate) fn shortcut<F: Ip>(skb: Skb, hook: Hook, opened: &Opened) -> Stage<Option<Origin>> {
    let Some(mut flow) = F::parse_plain(skb, ETH_LEN + u64::from(vxlan::OVERHEAD)) else { return ControlFlow::Continue(None) };
    if vxlan::ecn_after(flow.tos, opened.ecn) != Some(flow.tos & 3) {
        return ControlFlow::Continue(None);
    }
    let origin = Origin { peer: opened.peer, before: Before::of(&flow) };
    let Some(shortcut) = shortcut::find(hook, opened.peer.be, &flow, origin.before) else {
        return ControlFlow::Continue(Some(origin));
    };
    done(skb.pop(vxlan::OVERHEAD))?;
    count(Counter::FromTunnel);
    flow.l4 -= u64::from(vxlan::OVERHEAD);
    let (ControlFlow::Continue(verdict) | ControlFlow::Break(verdict)) = shortcut::take(skb, hook, &flow, shortcut);
    ControlFlow::Break(verdict)
}

/// A popped packet, with the ECN field that its outer header had, and either what a shortcut needs or the name of its backend.
#[inline(always)]
pub(crate) fn from_tunnel<F: Ip>(
    skb: Skb,
    hook: Hook,
    outer_ecn: u8,
    origin: Option<Origin>,
    named: Option<Named<F>>,
) -> Stage<Verdict> {
    count(Counter::FromTunnel);
    let mut flow = done(F::parse(skb, ETH_LEN))?;
    match vxlan::ecn_after(flow.tos, outer_ecn) {
        None => return dropped(DropReason::TunnelEcn),
        Some(ecn) if ecn != flow.tos & 3 => done(F::set_ecn(skb, ecn))?,
        Some(_) => {}
    }
    let next = route::lookup::<F>(named.map_or(flow.tuple.dst, |named| named.addr));
    match next {
        // Clients in the cluster are not served this way.
        _ if named.is_some() && !direct::is_nobodys::<F>(flow.tuple.src) => return dropped(DropReason::SourceSpoofed),
        Next::Pod { .. } if named.is_some() => {}
        _ if named.is_some() => return dropped(DropReason::NoSuchPod),
        Next::Pod { .. } if flow.ttl <= 1 => return to_slow_path(skb),
        // `shunt0` lets this node's own addresses in, for the answers of its node ports: nobody else has them.
        Next::Host if route::owner::<F>(flow.tuple.src) == Some(kind::HOST) => return dropped(DropReason::SourceSpoofed),
        Next::Pod { .. } | Next::Host => {}
        Next::Nobody => return dropped(DropReason::NoSuchPod),
        // A tunnel is no way through this node.
        _ => return dropped(DropReason::NoRoute),
    }
    if fragment::resolve(&mut flow, hook, if named.is_some() { Unknown::Drop } else { Unknown::Reassemble })? {
        return to_slow_path(skb);
    }
    let is_at_node = matches!(next, Next::Host) && service::is_at_node(&flow);
    let (to, fate) = settle(skb, hook, &mut flow, if is_at_node { Frontend::AtNode } else { Frontend::None }, named)?;
    let next = match fate {
        Fate::Nobodys | Fate::AsItIs => next,
        Fate::Translated => route::lookup_as::<F>(to.dst, true),
        Fate::Stacks => return to_slow_path(skb),
        // It came from the wire when its flow was opened.
        Fate::TranslatedThere => return dropped(DropReason::NoRoute),
    };
    if let Some(Origin { peer, before }) = origin
        && let Next::Pod { .. } = next
    {
        shortcut::keep(skb, &flow, before.now(hook, peer.be), &to, next, Tenant::NONE);
    }
    forward::send(skb, hook, &flow, &to, next)
}

/// A packet from the wire itself: ours if it answers a flow that left with a port of this node's, or asks a Service.
#[inline(always)]
pub(crate) fn native<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    let Ok(mut flow) = F::parse(skb, ETH_LEN) else { return ControlFlow::Break(Verdict::Pass) };
    let Some(place) = place::<F>(flow.tuple.dst) else { return ControlFlow::Break(Verdict::Pass) };
    if flow.part != Part::Whole {
        fragment::resolve(&mut flow, hook, Unknown::Pass)?;
    }
    let frontend = frontend(&flow, place);
    let may_be_known = snat::is_ours(flow.tuple.dport) || snat::is_ours(flow.tuple.sport);
    if flow.icmp != Icmp::Error && frontend == Frontend::None && !may_be_known {
        return ControlFlow::Break(Verdict::Pass);
    }
    match settle(skb, hook, &mut flow, frontend, None)? {
        (to, Fate::Translated) => forward::send(skb, hook, &flow, &to, route::lookup_as::<F>(to.dst, true)),
        (to, Fate::TranslatedThere) => direct::send(skb, hook, &flow, &to),
        _ => ControlFlow::Break(Verdict::Pass),
    }
}

/// Where a packet from the wire goes that is for this machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// To an address of this node.
    Node,
    /// To a virtual IP.
    Virtual,
}

/// Which of the two an address is, if it is one.
#[inline(always)]
pub(crate) fn place<F: Ip>(dst: F::Addr) -> Option<Place> {
    if dst == F::node_ip() {
        return Some(Place::Node);
    }
    match route::owner::<F>(dst) {
        Some(kind::SERVICE) => Some(Place::Virtual),
        Some(kind::HOST) => Some(Place::Node),
        _ => None,
    }
}

/// What of a Service a packet to such a place may be for.
#[inline(always)]
pub(crate) fn frontend<F: Ip>(flow: &Flow<F>, place: Place) -> Frontend {
    match place {
        Place::Virtual => Frontend::Virtual,
        Place::Node if service::is_at_node(flow) => Frontend::AtNode,
        Place::Node => Frontend::None,
    }
}

/// A packet that the host's stack sends to a pod: the stack goes on with it, translated if it belongs to a translated flow.
#[inline(always)]
pub(crate) fn from_stack<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    let Ok(flow) = F::parse(skb, ETH_LEN) else { return ControlFlow::Break(Verdict::Pass) };
    go_on(skb, hook, flow)
}

/// A packet that the host's stack sends out by the underlay: likewise, if it may answer a client of a Service that a process of this node saw
/// with a port of the node's.
#[inline(always)]
pub(crate) fn from_process<F: Ip>(skb: Skb, hook: Hook) -> Stage<Verdict> {
    let Ok(flow) = F::parse(skb, ETH_LEN) else { return ControlFlow::Break(Verdict::Pass) };
    if flow.part == Part::Whole && flow.icmp != Icmp::Error && !snat::is_ours(flow.tuple.dport) {
        return ControlFlow::Break(Verdict::Pass);
    }
    go_on(skb, hook, flow)
}

/// Translates what belongs to a translated flow, and lets it go on its way.
#[inline(always)]
fn go_on<F: Ip>(skb: Skb, hook: Hook, mut flow: Flow<F>) -> Stage<Verdict> {
    fragment::resolve(&mut flow, hook, Unknown::Pass)?;
    if !icmp::translate(skb, &mut flow)?
        && let Some(entry) = conntrack::find::<F>(&flow.tuple)
    {
        conntrack::touch(entry, &flow);
        if entry.translates == translates::HERE {
            let to = entry.translated(flow.tuple.proto);
            done(F::rewrite(skb, &flow, &to, &F::mending(&flow.tuple, &to), 0))?;
        }
    }
    ControlFlow::Continue(Verdict::Pass)
}

/// What was found out about a packet that arrives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It belongs to no flow of ours, and opens none.
    Nobodys,
    /// It belongs to a flow of ours in which nothing is translated.
    AsItIs,
    /// It goes on as something else.
    Translated,
    /// It goes on as it is, and becomes something else at the node of the backend that it is for.
    TranslatedThere,
    /// It is the host's stack's to translate.
    Stacks,
}

/// What a packet that arrives must carry, and what was found out about it. `frontend` says whether it is for a Service: at a virtual IP or
/// at an address of this node. `named` is for a Service at another.
#[inline(always)]
fn settle<F: Ip>(
    skb: Skb,
    hook: Hook,
    flow: &mut Flow<F>,
    frontend: Frontend,
    named: Option<Named<F>>,
) -> Stage<(Tuple<F>, Fate)> {
    match icmp::settle(skb, flow)? {
        About::Untranslated => {}
        About::Ours => return ControlFlow::Continue((flow.tuple, Fate::Translated)),
        About::Theirs => return ControlFlow::Continue((flow.tuple, Fate::TranslatedThere)),
    }
    if let Some(named) = named {
        return ControlFlow::Continue((direct::translation(flow, &named)?, Fate::Translated));
    }
    let is_frontend = frontend != Frontend::None;
    match service::resume(flow, is_frontend) {
        Known::Ours(entry) => {
            let fate = match entry.translates {
                translates::NOTHING => Fate::AsItIs,
                translates::THERE => Fate::TranslatedThere,
                _ => {
                    conntrack::note_whole(entry, flow, skb);
                    Fate::Translated
                }
            };
            return ControlFlow::Continue((entry.translated(flow.tuple.proto), fate));
        }
        Known::Stacks => return ControlFlow::Continue((flow.tuple, Fate::Stacks)),
        Known::Nothing => {}
    }
    if if is_frontend { stack::may_have(flow) } else { stack::may_know_arrival() } {
        return ControlFlow::Continue((flow.tuple, Fate::Stacks));
    }
    if !is_frontend {
        return tell_apart(flow);
    }
    if !may_ask(skb, hook, flow) {
        return ControlFlow::Continue((flow.tuple, Fate::Nobodys));
    }
    let mut opening = Opening::of(flow.tuple);
    let client = if skb.ifindex() == node!(underlay_ifindex) { Client::Outside } else { Client::ByOtherWire };
    match service::open(skb, flow, &mut opening, client, frontend == Frontend::Virtual) {
        Served::To(to) if opening.is_theirs() => ControlFlow::Continue((to, Fate::TranslatedThere)),
        Served::To(to) => ControlFlow::Continue((to, Fate::Translated)),
        // The way back leads through the tunnel: the host's stack refuses, which has nobody at this port.
        Served::Refused(_) if hook.tunnelled => ControlFlow::Continue((flow.tuple, Fate::Nobodys)),
        Served::Refused(reason) => ControlFlow::Break(icmp::refuse(skb, hook, flow, reason, answer::PORT_UNREACHABLE, 0)),
        Served::Dropped(reason) => dropped(reason),
        Served::Not | Served::Stacks => ControlFlow::Continue((flow.tuple, Fate::Nobodys)),
    }
}

/// A packet of no known flow that asks no Service. A backend sees a Service's clients with ports of the node's: one that comes from such a port
/// by itself must be told apart. Where the port is taken it gets another; else its flow is noted if a process of this node is asked, whose
/// answers nothing else would tell from a Service's, so that none gets this one.
#[inline(always)]
fn tell_apart<F: Ip>(flow: &Flow<F>) -> Stage<(Tuple<F>, Fate)> {
    let opens = flow.is_syn() || flow.tuple.proto == proto::UDP;
    if !opens || !snat::is_ours(flow.tuple.sport) {
        return ControlFlow::Continue((flow.tuple, Fate::Nobodys));
    }
    let is_taken = conntrack::find::<F>(&flow.tuple.reversed()).is_some_and(|entry| entry.translates == translates::HERE);
    if !is_taken && flow.tuple.dst != F::node_ip() {
        return ControlFlow::Continue((flow.tuple, Fate::Nobodys));
    }
    let mut opening = Opening::of(flow.tuple);
    match snat::open(&mut opening) {
        Ok(()) if opening.to == flow.tuple => ControlFlow::Continue((flow.tuple, Fate::AsItIs)),
        Ok(()) => ControlFlow::Continue((opening.to, Fate::Translated)),
        Err(reason) if is_taken => dropped(reason),
        Err(_) => {
            count(Counter::DirectUntracked);
            ControlFlow::Continue((flow.tuple, Fate::Nobodys))
        }
    }
}

/// What of a Service a packet's destination may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frontend {
    /// Nothing.
    None,
    /// A port at an address of this node.
    AtNode,
    /// A virtual IP.
    Virtual,
}

/// Whether a packet is for this machine and comes from where an answer can go. Everything else is left to the host's stack, which knows what
/// to do with frames that were only overheard, and with martians.
#[inline(always)]
fn may_ask<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>) -> bool {
    (hook.tunnelled || skb.is_addressed_to_us()) && matches!(route::owner::<F>(flow.tuple.src), None | Some(kind::NODE))
}

/// Leaves a popped packet to the host's stack.
#[inline(always)]
fn to_slow_path(skb: Skb) -> Stage<Verdict> {
    count(Counter::SlowPath);
    ControlFlow::Break(deliver::to_host(skb, true))
}
