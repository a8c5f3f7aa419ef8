//! XDP of the underlay, optional: pops the tunnel before an skb exists and leaves the rest to `from_wire`.

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_meta},
    macros::xdp,
    programs::XdpContext,
};
use shunt_common::{
    net::{Ip4, Port, V4},
    verdict::DropReason,
    vxlan,
};

use super::ethertype;
use crate::{
    count,
    maps::FamilyMaps,
    packet::{
        parse::Ipv4Header,
        skb::ETH_LEN,
        tunnel::{self, Headers},
    },
    stages::{direct::Named, peer},
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
    match run(&ctx) {
        Ok(()) => XDP_PASS,
        Err(reason) => {
            count::count_drop(reason);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn run(ctx: &XdpContext) -> Result<(), DropReason> {
    // What is not clearly a good tunnel packet for this node is left to `from_wire`, which sees the same bytes.
    if read::<u16>(ctx, 12) != Some(ethertype::IPV4) {
        return Ok(());
    }
    let Some(ip) = read::<Ipv4Header>(ctx, ETH_LEN) else { return Ok(()) };
    if tunnel::destination(&ip, |at| read(ctx, at)) != Some(V4::node_ip()) {
        return Ok(());
    }
    let Some(headers) = read::<Headers>(ctx, ETH_LEN) else { return Ok(()) };
    let available = (ctx.data_end() - ctx.data()) as u32 - ETH_LEN as u32;
    let opened = tunnel::open(&headers, available)?;
    if !peer::is_node(opened.peer) {
        return Err(DropReason::TunnelPeerUnknown);
    }
    if !opened.is_credible(read(ctx, tunnel::INNER_DST)) {
        return Err(DropReason::SourceSpoofed);
    }
    // The outer Ethernet header becomes the inner one's: its destination is this node.
    let Some(ethernet) = read::<[u16; 7]>(ctx, 0) else { return Ok(()) };
    let raw = ctx.as_ptr().cast();
    // SAFETY: a valid context; the packet is longer than what is cut off, as `open` has seen.
    if unsafe { bpf_xdp_adjust_head(raw, vxlan::OVERHEAD as i32) } != 0 {
        return Err(DropReason::RewriteFailed);
    }
    write(ctx, ctx.data(), ethernet)?;
    // SAFETY: a valid context.
    if unsafe { bpf_xdp_adjust_meta(raw, -(size_of::<Mark>() as i32)) } != 0 {
        return Err(DropReason::RewriteFailed);
    }
    let (backend, port) = opened.name.map_or((Ip4::UNSPECIFIED, 0), |name| (name.addr, u32::from(name.port.be)));
    let mark = ctx.metadata();
    if mark + size_of::<Mark>() > ctx.data() {
        return Err(DropReason::RewriteFailed);
    }
    // SAFETY: within the metadata as checked.
    unsafe { (mark as *mut Mark).write(Mark { magic: MAGIC, ecn: opened.ecn as u32, backend, port }) };
    Ok(())
}

/// Reads `T` at `offset`, if the packet holds it.
#[inline(always)]
fn read<T: Copy>(ctx: &XdpContext, offset: u64) -> Option<T> {
    let start = ctx.data() + offset as usize;
    if start + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet as checked; any bytes are a `T`.
    Some(unsafe { (start as *const T).read() })
}

/// Writes `T` at `start`.
#[inline(always)]
fn write<T>(ctx: &XdpContext, start: usize, value: T) -> Result<(), DropReason> {
    if start + size_of::<T>() > ctx.data_end() {
        return Err(DropReason::TunnelMalformed);
    }
    // SAFETY: within the packet as checked.
    unsafe { (start as *mut T).write(value) };
    Ok(())
}
