//! The last step: out of our hands, by the shortest way that leads there.

use core::ops::ControlFlow;

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT,
        BPF_FIB_LOOKUP_SKIP_NEIGH, BPF_FIB_LOOKUP_SRC, bpf_fib_lookup as FibLookup,
    },
    helpers::generated::bpf_fib_lookup,
};
use shunt_common::{
    address::kind,
    flow::Tuple,
    icmp::answer,
    net::{Family as _, Ip4, Mac, V4, proto},
    shortcut::Link,
    verdict::{Counter, DropReason, Verdict},
    vxlan::Name,
};

use super::{Hook, Stage, dropped, icmp, neighbour, route};
use crate::{
    count::count,
    maps::node,
    packet::{
        frame::{ETH_LEN, Frame},
        parse::{Flow, Ip},
        skb::{AF_INET, Skb},
        tunnel::{self, Wrap},
    },
};

/// To a pod of this node.
#[inline(always)]
pub(crate) fn to_pod(skb: Skb, hook: Hook, ifindex: u32, mac: Mac) -> Verdict {
    count(Counter::ToLocalPod);
    if !hook.egress {
        return skb.redirect_peer(ifindex);
    }
    // Through the veth the pod's end judges the frame by its destination.
    match skb.set_dst_mac(mac) {
        Ok(()) => skb.redirect(ifindex),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Through the tunnel.
///
/// A packet of the host still carries the route that led it to `shunt0`, and one that has to wait for the neighbour's address is sent by
/// that route afterwards, with the wrong Ethernet header: it needs a route of its own.
#[inline(always)]
pub(crate) fn to_tunnel(skb: Skb, hook: Hook, wrap: Wrap, underlay: Ip4, vtep: Mac) -> Verdict {
    match tunnel::push(skb, wrap, underlay, vtep, hook.tunnelled) {
        Ok(()) => to_underlay(skb, hook, underlay),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Through the tunnel with the name of its backend.
#[inline(always)]
pub(crate) fn to_backend(skb: Skb, hook: Hook, wrap: Wrap, underlay: Ip4, backend: &Name) -> Verdict {
    match tunnel::push(skb, wrap, underlay, Mac::ZERO, hook.tunnelled).and_then(|()| tunnel::name(skb, backend)) {
        Ok(()) => to_underlay(skb, hook, underlay),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A packet that is wrapped for a peer.
#[inline(always)]
fn to_underlay(skb: Skb, hook: Hook, underlay: Ip4) -> Verdict {
    count(Counter::ToTunnel);
    if node!(xdp_forwards) != 0 {
        neighbour::look_after(V4::word(underlay));
    }
    let ifindex = node!(underlay_ifindex);
    let on_link = (underlay.be ^ node!(node_ip).be) & node!(underlay_mask).be == 0;
    if on_link && !hook.egress {
        skb.redirect_neigh(ifindex, AF_INET, [underlay.be, 0, 0, 0])
    } else {
        skb.redirect_routed(ifindex)
    }
}

/// Through the tunnel over a link that is known: nothing is left to look up.
#[inline(always)]
pub(crate) fn to_link(skb: Skb, hook: Hook, wrap: Wrap, underlay: Ip4, vtep: Mac, link: Link) -> Verdict {
    if let Err(reason) = tunnel::push(skb, wrap, underlay, vtep, hook.tunnelled).and_then(|()| skb.write(0, link)) {
        return Verdict::Drop(reason);
    }
    count(Counter::ToTunnel);
    skb.redirect(node!(underlay_ifindex))
}

/// Asks the kernel for the link to a peer of the tunnel. None if the peer is not reached by the underlay's interface, or the MAC of the next
/// hop is not known.
#[inline(always)]
pub(crate) fn look_for_link(frame: impl Frame, underlay: Ip4) -> Link {
    // SAFETY: plain integers and unions of them; all zero is a value.
    let mut params: FibLookup = unsafe { core::mem::zeroed() };
    params.family = AF_INET;
    params.l4_protocol = proto::UDP;
    params.ifindex = node!(underlay_ifindex);
    params.__bindgen_anon_3.ipv4_src = node!(node_ip).be;
    params.__bindgen_anon_4.ipv4_dst = underlay.be;
    let found = ask(frame, &mut params, BPF_FIB_LOOKUP_OUTPUT);
    link_by_underlay(found, &params)
}

/// Asks the routing table. The number that the helper returns.
#[inline(always)]
fn ask(frame: impl Frame, params: &mut FibLookup, flags: u32) -> i64 {
    // SAFETY: the parameters outlive the call and have the length given.
    unsafe { bpf_fib_lookup(frame.context(), params, size_of::<FibLookup>() as i32, flags) }
}

/// The link that a look-up has found, if it leaves by the underlay.
#[inline(always)]
fn link_by_underlay(found: i64, params: &FibLookup) -> Link {
    let is_found = found == i64::from(BPF_FIB_LKUP_RET_SUCCESS) && params.ifindex == node!(underlay_ifindex);
    if is_found { Link::to(Mac { bytes: params.dmac }, Mac { bytes: params.smac }) } else { Link::NONE }
}

/// To the host's stack. On ingress that is where a passed packet goes; what leaves `shunt0` or came through the tunnel enters again at
/// `shunt0`, where the host's routes expect it.
#[inline(always)]
pub(crate) fn to_host(skb: Skb, at_tunnel_device: bool) -> Verdict {
    count(Counter::ToHost);
    if at_tunnel_device { enter_at_tunnel_device(skb) } else { Verdict::Pass }
}

#[inline(always)]
fn enter_at_tunnel_device(skb: Skb) -> Verdict {
    match skb.set_dst_mac(node!(tunnel_mac)) {
        Ok(()) => skb.redirect_ingress(node!(tunnel_ifindex)),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// The address that a flow to the outside leaves with: by the underlay the node's own, by another interface the one that the kernel would give a
/// socket of the node's that is bound to none (BPF_FIB_LOOKUP_SRC, Linux 6.7; where the kernel can't say, the node's own too).
#[inline(always)]
pub(crate) fn look_for_source(skb: Skb, dst: Ip4, proto: u8) -> Ip4 {
    // SAFETY: plain integers and unions of them; all zero is a value.
    let mut params: FibLookup = unsafe { core::mem::zeroed() };
    V4::ask_route(&mut params, Ip4::UNSPECIFIED, dst);
    params.l4_protocol = proto;
    params.ifindex = node!(tunnel_ifindex);
    let found = ask(skb, &mut params, BPF_FIB_LOOKUP_SKIP_NEIGH | BPF_FIB_LOOKUP_SRC);
    if found != i64::from(BPF_FIB_LKUP_RET_SUCCESS) || params.ifindex == node!(underlay_ifindex) {
        return node!(node_ip);
    }
    // SAFETY: an integer whichever family it is of.
    let source = Ip4 { be: unsafe { params.__bindgen_anon_3.ipv4_src } };
    // The answers to an address that is not known to be ours would be nobody's.
    if route::owner::<V4>(source) == Some(kind::HOST) { source } else { node!(node_ip) }
}

/// The way to the outside, by the host's routing table.
pub(crate) struct WayOut(FibLookup);

/// Whether a packet can take the way out at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It can, and the next hop's MAC is known.
    Known,
    /// It can, and the kernel finds the next hop's MAC, or makes sure of it.
    Unknown,
    /// Only in pieces.
    Cut,
}

impl WayOut {
    /// What to ask for a packet of some length that is to leave as `to`.
    #[inline(always)]
    pub(crate) fn of<F: Ip>(to: &Tuple<F>, len: u16) -> Self {
        // SAFETY: plain integers and unions of them; all zero is a value.
        let mut params: FibLookup = unsafe { core::mem::zeroed() };
        F::ask_route(&mut params, to.src, to.dst);
        params.l4_protocol = to.proto;
        params.ifindex = node!(tunnel_ifindex);
        params.__bindgen_anon_1.tot_len = len;
        Self(params)
    }

    /// The link that it begins with, if that is the underlay's and the packet fits, and the next hop's word.
    #[inline(always)]
    pub(crate) fn link(mut self, frame: impl Frame) -> (Link, u32) {
        let found = ask(frame, &mut self.0, 0);
        (link_by_underlay(found, &self.0), self.next_hop_word())
    }

    /// The next hop, once it is found: an IPv4 address is the first word.
    #[inline(always)]
    fn next_hop(&self) -> [u32; 4] {
        // SAFETY: plain integers, of which the look-up replaced the destination by the next hop.
        unsafe { self.0.__bindgen_anon_4.ipv6_dst }
    }

    /// [`Family::word`](shunt_common::net::Family::word) of the next hop.
    #[inline(always)]
    fn next_hop_word(&self) -> u32 {
        let [a, b, c, d] = self.next_hop();
        a ^ b ^ c ^ d
    }

    /// Finds it, before the first change to the packet: who is refused must know it again.
    #[inline(always)]
    pub(crate) fn find<F: Ip>(&mut self, skb: Skb, hook: Hook, flow: &Flow<F>) -> Stage<Passage> {
        let found = ask(skb, &mut self.0, 0);
        if found < 0 {
            return dropped(DropReason::NoRoute);
        }
        let (reason, what, mtu) = match found as u32 {
            BPF_FIB_LKUP_RET_SUCCESS if hook.egress || neighbour::is_looked_after(self.next_hop_word()) => {
                return ControlFlow::Continue(Passage::Known);
            }
            BPF_FIB_LKUP_RET_SUCCESS => return ControlFlow::Continue(Passage::Unknown),
            BPF_FIB_LKUP_RET_NO_NEIGH => return ControlFlow::Continue(Passage::Unknown),
            // With no hop left it is answered here: the stack would tell this node, whose address it has by then.
            BPF_FIB_LKUP_RET_FRAG_NEEDED if !hook.egress && flow.ttl > 1 && F::may_be_cut(skb, ETH_LEN) => {
                return ControlFlow::Continue(Passage::Cut);
            }
            BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                // SAFETY: the look-up filled the MTU in.
                (DropReason::PacketTooBig, answer::TOO_BIG, unsafe { self.0.__bindgen_anon_1.mtu_result })
            }
            _ => (DropReason::NoRoute, answer::HOST_UNREACHABLE, 0),
        };
        ControlFlow::Break(icmp::refuse(skb, hook, flow, reason, what, mtu))
    }

    /// Takes it, without the host's stack: a packet with the node's own source would be a martian where it came in. What is to be cut enters
    /// the stack at `shunt0`, which lets such a source in.
    #[inline(always)]
    pub(crate) fn take(&self, skb: Skb, hook: Hook, passage: Passage) -> Verdict {
        if passage == Passage::Cut {
            count(Counter::SlowPath);
            return enter_at_tunnel_device(skb);
        }
        let found = &self.0;
        count(Counter::ToOutside);
        if passage == Passage::Known {
            let written = skb.set_dst_mac(Mac { bytes: found.dmac }).and_then(|()| skb.write(6, found.smac));
            return match written {
                Ok(()) => skb.redirect(found.ifindex),
                Err(reason) => Verdict::Drop(reason),
            };
        }
        if hook.egress {
            // As for the tunnel.
            return skb.redirect_routed(found.ifindex);
        }
        neighbour::look_after(self.next_hop_word());
        skb.redirect_neigh(found.ifindex, found.family, self.next_hop())
    }
}

/// Whether the tunnel carries a packet whole.
#[inline(always)]
pub(crate) fn fits_tunnel<F: Ip>(skb: Skb, flow: &Flow<F>) -> bool {
    flow.segment_len(skb.gso_size()) <= node!(mtu)
}
