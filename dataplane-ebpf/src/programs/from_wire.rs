//! TC ingress of the underlay: pops the tunnel, and takes in the answers to what left with the node's address.

use core::ops::ControlFlow;

use aya_ebpf::{macros::classifier, programs::TcContext};
use shunt_common::{
    event::program,
    net::V4,
    verdict::{DropReason, Verdict},
    vxlan,
};

use super::{act, ethertype, from_wire_xdp::Mark, skb};
use crate::{
    maps::FamilyMaps,
    packet::{
        parse::{HEADERS, Ipv4Header},
        skb::{ETH_LEN, Skb},
        tunnel::{self, Headers},
    },
    stages::{
        Hook, Stage, done, dropped, peer, receive,
        route::{self, Next},
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
    if let Some(mark) = skb.meta::<Mark>().filter(Mark::is_valid) {
        return receive::from_tunnel::<V4>(skb, TUNNEL, mark.ecn(), None);
    }
    if skb.read::<u16>(12) != Some(ethertype::IPV4) {
        return ControlFlow::Continue(Verdict::Pass);
    }
    let Some(ip) = skb.read::<Ipv4Header>(ETH_LEN) else { return ControlFlow::Continue(Verdict::Pass) };
    match tunnel::destination(&ip, |at| skb.read(at)) {
        None => return receive::native::<V4>(skb, HOOK),
        Some(dst) if dst == V4::node_ip() => {}
        // The idle tunnel device would take what is sent to another address of this node, unchecked.
        Some(dst) if matches!(route::lookup::<V4>(dst), Next::Host) => return dropped(DropReason::TunnelMalformed),
        Some(_) => return ControlFlow::Continue(Verdict::Pass),
    }
    // A device may have split the inner headers off.
    if skb.read::<Headers>(ETH_LEN).is_none() {
        done(skb.pull(skb.len().min(HEADERS)))?;
    }
    let Some(headers) = skb.read::<Headers>(ETH_LEN) else { return dropped(DropReason::TunnelMalformed) };
    let opened = done(tunnel::open(&headers, skb.len() - ETH_LEN as u32))?;
    let origin = receive::shortcut::<V4>(skb, TUNNEL, &opened)?;
    peer::check(opened.peer)?;
    done(skb.pop(vxlan::OVERHEAD))?;
    receive::from_tunnel::<V4>(skb, TUNNEL, opened.ecn, origin)
}
