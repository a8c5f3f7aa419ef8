//! At XDP: packets from the wire that leave by the wire, translated, before an skb exists. They are a client's outside, whose backend is on
//! another node, and the answers.
//!
//! It only ever goes on with what others have begun: whole packets of TCP and UDP flows under way that [`receive`] has translated before. All
//! that opens, ends or refuses, and all that is not certain, is left to the program at TC as it came.

use core::ops::ControlFlow;

use shunt_common::{
    address::kind as address,
    conntrack::{kind, seen, translates},
    event::program,
    net::{Family as _, V4},
    shortcut::{Link, Now, Shortcut},
    verdict::{Counter, Verdict},
    vxlan,
};

use super::{
    Hook, Stage,
    deliver::{self, WayOut},
    done, neighbour, peer,
    receive::{self, Frontend},
    route::{self, Next},
    service::{self, Known},
    shortcut::{self, Before, Tenant},
    snat,
};
use crate::{
    count::count,
    maps::node,
    packet::{
        frame::{ETH_LEN, Frame},
        parse::{Flow, Ip},
        tunnel::{self, Opened, Wrap},
        xdp::Xdp,
    },
};

const HOOK: Hook = Hook { program: program::FROM_WIRE_XDP, egress: false, tunnelled: false };

/// A packet from the wire itself. Goes on with what is not to be sent from here.
#[inline(always)]
pub(crate) fn native<F: Ip>(packet: Xdp) -> Stage<()> {
    if node!(xdp_forwards) == 0 {
        return ControlFlow::Continue(());
    }
    let Some(flow) = F::parse_plain(packet, ETH_LEN) else { return ControlFlow::Continue(()) };
    let Some(place) = receive::place::<F>(flow.tuple.dst) else { return ControlFlow::Continue(()) };
    // Asked of each packet, for a Service may go.
    let frontend = receive::frontend(&flow, place) != Frontend::None;
    if !frontend && !snat::is_ours(flow.tuple.dport) {
        return ControlFlow::Continue(());
    }
    let (before, ingress) = (Before::of(&flow), node!(underlay_ifindex));
    let known = match shortcut::find(HOOK, ingress, &flow, before) {
        Some(shortcut) => Some(shortcut),
        None => decide(packet, &flow, frontend, before.now(HOOK, ingress)),
    };
    match known {
        Some(shortcut) => send(packet, &flow, shortcut, false),
        None => ControlFlow::Continue(()),
    }
}

/// A packet in the tunnel, for this node's own address.
#[inline(always)]
pub(crate) fn tunnelled<F: Ip>(packet: Xdp, opened: &Opened) -> Stage<()> {
    if node!(xdp_forwards) == 0 || opened.name.is_some() {
        return ControlFlow::Continue(());
    }
    let Some(flow) = F::parse_plain(packet.inner(), ETH_LEN) else { return ControlFlow::Continue(()) };
    if vxlan::ecn_after(flow.tos, opened.ecn) != Some(flow.tos & 3) {
        return ControlFlow::Continue(());
    }
    let (before, ingress) = (Before::of(&flow), opened.peer.be);
    let known = match shortcut::find(HOOK, ingress, &flow, before) {
        Some(shortcut) => Some(shortcut),
        // What proves the source: see `receive::from_tunnel`.
        None if !peer::is_node(opened.peer) || route::owner::<F>(flow.tuple.src) == Some(address::HOST) => None,
        None => decide(packet, &flow, service::is_at_node(&flow), before.now(HOOK, ingress)),
    };
    match known {
        Some(shortcut) => send(packet, &flow, shortcut, true),
        None => ControlFlow::Continue(()),
    }
}

/// What becomes of a packet of a known flow, kept for those that follow: also that it is to be left alone, which a shortcut without a link says.
#[inline(always)]
fn decide<F: Ip>(packet: Xdp, flow: &Flow<F>, frontend: bool, now: Now) -> Option<&'static mut Shortcut<F>> {
    let Known::Ours(entry) = service::resume(flow, frontend) else { return None };
    let to = entry.translated(flow.tuple.proto);
    let next = match entry.translates {
        translates::HERE if entry.seen & seen::WHOLE == 0 => return None,
        translates::HERE => route::lookup_as::<F>(to.dst, true),
        _ => Next::Host,
    };
    // An answer goes on whatever became of its backend.
    let tenant = if entry.kind == kind::ORIGINAL {
        Tenant { backend: entry.backend, generation: entry.generation }
    } else {
        Tenant::NONE
    };
    let (link, next_hop) = match next {
        Next::Tunnel { underlay, .. } => (deliver::look_for_link(packet, underlay), V4::word(underlay)),
        // As long as any that `send` lets go, so that none has to be too big for the way.
        Next::Outside => WayOut::of(&to, node!(mtu) as u16).link(packet),
        _ => (Link::NONE, 0),
    };
    // What is sent from here goes past the kernel's neighbours: now and then `from_wire` gives it a packet, so that it notices when one has another MAC.
    if link.is_known() && !neighbour::is_looked_after(next_hop) {
        return None;
    }
    let shortcut = shortcut::put(flow, now, &to, next, tenant)?;
    shortcut.link = link;
    Some(shortcut)
}

/// Sends a packet as its shortcut says; `unwrap` if it is in the tunnel.
#[inline(always)]
fn send<F: Ip>(packet: Xdp, flow: &Flow<F>, shortcut: &mut Shortcut<F>, unwrap: bool) -> Stage<()> {
    if !shortcut.link.is_known() || flow.ip_len > node!(mtu) {
        return ControlFlow::Continue(());
    }
    let to = shortcut.translated();
    if let Some(Next::Tunnel { underlay, vtep }) = Next::of(&shortcut.hop) {
        // Without room in front of it the packet is whole still, and an skb has some.
        if !unwrap && packet.push().is_err() {
            return ControlFlow::Continue(());
        }
        let wrap = Wrap::of(flow, shortcut::next_id(shortcut, 1));
        done(F::rewrite(packet.inner(), flow, &to, &shortcut.mending, 1))?;
        done(tunnel::cover(packet, wrap, underlay, vtep))?;
        count(Counter::ToTunnel);
    } else {
        if unwrap {
            done(packet.pop())?;
        }
        done(F::rewrite(packet, flow, &to, &shortcut.mending, 1))?;
        count(Counter::ToOutside);
    }
    if unwrap {
        count(Counter::FromTunnel);
    }
    count(Counter::XdpForwarded);
    done(packet.write(0, shortcut.link))?;
    ControlFlow::Break(Verdict::Redirect)
}
