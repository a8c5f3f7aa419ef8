//! TC ingress of the underlay and of the node's other wires: pops the tunnel, and takes in the answers to what left with the node's address.

use core::ops::ControlFlow;

use aya_ebpf::{macros::classifier, programs::TcContext};
use shunt_common::{
    address::kind,
    event::program,
    net::V4,
    verdict::{DropReason, Verdict},
    vxlan,
};

use super::{act, ethertype, from_wire_xdp::Mark, skb};
use crate::{
    maps::FamilyMaps,
    packet::{
        frame::{ETH_LEN, Frame},
        parse::{HEADERS, Ipv4Header},
        skb::Skb,
        tunnel::{self, Headers},
    },
    stages::{
        Hook, Stage,
        direct::Named,
        done, dropped, peer,
        receive::{self, Origin},
        route,
    },
};

const HOOK: Hook = Hook { program: program::FROM_WIRE, egress: false, tunnelled: false };
const TUNNEL: Hook = Hook { tunnelled: true, ..HOOK };

#[classifier]
#[inline(always)]
fn from_wire(ctx: TcContext) -> i32 {
    let skb = skb(&ctx);
    act(skb, HOOK, run(skb))
}

#[inline(always)]
fn run(skb: Skb) -> Stage<Verdict> {
    let Popped { ecn, origin, named } = match skb.meta::<Mark>().filter(Mark::is_valid) {
        Some(mark) => Popped { ecn: mark.ecn(), origin: None, named: mark.named() },
        None => pop(skb)?,
    };
    receive::from_tunnel(skb, TUNNEL, ecn, origin, named)
}

/// What is known of a packet that was popped.
struct Popped {
    ecn: u8,
    origin: Option<Origin>,
    named: Option<Named<V4>>,
}

/// Pops the tunnel's headers. What has none is not for it, or goes the short way, ends here.
#[inline(always)]
fn pop(skb: Skb) -> Stage<Popped> {
    // What a VLAN's tag was on is its own interface's.
    if skb.is_tagged() || skb.read::<u16>(12) != Some(ethertype::IPV4) {
        return ControlFlow::Break(Verdict::Pass);
    }
    let Some(ip) = skb.read::<Ipv4Header>(ETH_LEN) else { return ControlFlow::Break(Verdict::Pass) };
    match tunnel::destination(&ip, |at| skb.read(at)) {
        None => {
            let (ControlFlow::Continue(verdict) | ControlFlow::Break(verdict)) = receive::native::<V4>(skb, HOOK);
            return ControlFlow::Break(verdict);
        }
        // At another address of this node too: of a change one node hears before the other. And the idle tunnel device would take it unchecked.
        Some(dst) if dst == V4::node_ip() || route::owner::<V4>(dst) == Some(kind::HOST) => {}
        Some(_) => return ControlFlow::Break(Verdict::Pass),
    }
    // A device may have split the inner headers off.
    if skb.read::<Headers>(ETH_LEN).is_none() {
        done(skb.pull(skb.len().min(HEADERS)))?;
    }
    let Some(headers) = skb.read::<Headers>(ETH_LEN) else { return dropped(DropReason::TunnelMalformed) };
    let opened = done(tunnel::open(&headers, skb.len() - ETH_LEN as u32))?;
    let origin = if opened.name.is_none() { receive::shortcut::<V4>(skb, TUNNEL, &opened)? } else { None };
    peer::check(opened.peer)?;
    if !opened.is_credible(skb.read(tunnel::INNER_DST)) {
        return dropped(DropReason::SourceSpoofed);
    }
    done(skb.pop(vxlan::OVERHEAD))?;
    let named = opened.name.map(|name| Named { addr: name.addr, port: name.port });
    ControlFlow::Continue(Popped { ecn: opened.ecn, origin, named })
}
