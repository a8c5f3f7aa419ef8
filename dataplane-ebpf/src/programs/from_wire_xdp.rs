//! XDP of the underlay, optional: before an skb exists, sends back out what only comes by (`stages::turn_back`), pops the tunnel of the rest,
//! and leaves it to `from_wire`.

use core::ops::ControlFlow;

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
    macros::xdp,
    programs::XdpContext,
};
use shunt_common::{
    config::xdp_forwards,
    net::{Ip4, Port, V4},
    verdict::{DropReason, Verdict},
};

use super::ethertype;
use crate::{
    count,
    maps::{FamilyMaps, node},
    packet::{
        frame::{ETH_LEN, Frame},
        parse::Ipv4Header,
        tunnel::{self, Headers},
        xdp::Xdp,
    },
    stages::{Stage, direct::Named, done, dropped, peer, turn_back},
};

/// What a popped packet carries in front of it, so that `from_wire` knows it for one: nothing but an XDP program can put it there.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Mark {
    magic: u32,
    ecn: u32,
    /// The backend that it came with, all zero for none.
    backend: Ip4,
    port: u32,
}

/// Tells our mark from the metadata of somebody else's program.
const MAGIC: u32 = u32::from_be_bytes(*b"shnt");

impl Mark {
    /// Whether it is ours.
    #[inline(always)]
    pub(super) fn is_valid(&self) -> bool {
        self.magic == MAGIC
    }

    /// The ECN field of the outer header.
    #[inline(always)]
    pub(super) fn ecn(&self) -> u8 {
        self.ecn as u8 & 3
    }

    /// The backend that the packet came with.
    #[inline(always)]
    pub(super) fn named(&self) -> Option<Named<V4>> {
        if self.backend == Ip4::UNSPECIFIED {
            return None;
        }
        Some(Named { addr: self.backend, port: Port { be: self.port as u16 } })
    }
}

#[xdp]
#[inline(always)]
fn from_wire_xdp(ctx: XdpContext) -> u32 {
    let packet = Xdp::new(ctx.as_ptr().cast());
    match run(packet) {
        ControlFlow::Continue(()) | ControlFlow::Break(Verdict::Pass) => XDP_PASS,
        ControlFlow::Break(Verdict::Redirect) if node!(xdp_forwards) == xdp_forwards::REDIRECT => {
            packet.redirect(node!(underlay_ifindex))
        }
        ControlFlow::Break(Verdict::Redirect) => XDP_TX,
        ControlFlow::Break(Verdict::Counted) => XDP_DROP,
        ControlFlow::Break(Verdict::Drop(reason)) => {
            count::count_drop(reason);
            XDP_DROP
        }
    }
}

/// Goes on with what is `from_wire`'s, which sees the same bytes, or what was inside of the tunnel's.
#[inline(always)]
fn run(packet: Xdp) -> Stage<()> {
    if packet.read::<u16>(12) != Some(ethertype::IPV4) {
        return ControlFlow::Continue(());
    }
    let Some(ip) = packet.read::<Ipv4Header>(ETH_LEN) else { return ControlFlow::Continue(()) };
    match tunnel::destination(&ip, |at| packet.read(at)) {
        None => turn_back::native::<V4>(packet),
        Some(dst) if dst == V4::node_ip() => tunnelled(packet),
        Some(_) => ControlFlow::Continue(()),
    }
}

/// A tunnel packet for this node.
#[inline(always)]
fn tunnelled(packet: Xdp) -> Stage<()> {
    let Some(headers) = packet.read::<Headers>(ETH_LEN) else { return ControlFlow::Continue(()) };
    let opened = done(tunnel::open(&headers, packet.len() - ETH_LEN as u32))?;
    let inner_dst = packet.read(tunnel::INNER_DST);
    // Most are for pods.
    if inner_dst == Some(V4::node_ip().be) {
        turn_back::tunnelled::<V4>(packet, &opened)?;
    }
    if !peer::is_node(opened.peer) {
        return dropped(DropReason::TunnelPeerUnknown);
    }
    if !opened.is_credible(inner_dst) {
        return dropped(DropReason::SourceSpoofed);
    }
    let (backend, port) = opened.name.map_or((Ip4::UNSPECIFIED, 0), |name| (name.addr, u32::from(name.port.be)));
    // Nobody would know what a popped packet is without its mark: where the driver carries none `from_wire` pops.
    if packet.put_meta(Mark { magic: MAGIC, ecn: opened.ecn as u32, backend, port }).is_err() {
        return ControlFlow::Continue(());
    }
    // The outer Ethernet header becomes the inner one's: its destination is this node.
    let Some(ethernet) = packet.read::<[u16; 7]>(0) else { return dropped(DropReason::TunnelMalformed) };
    done(packet.pop())?;
    done(packet.write(0, ethernet))
}
