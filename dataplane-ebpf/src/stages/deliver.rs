//! The last step: out of our hands, by the shortest way that leads there.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
    },
    helpers::generated::bpf_fib_lookup,
};
use shunt_common::{
    icmp::unreachable,
    net::{Ip4, Mac},
    verdict::{Counter, DropReason, Verdict},
};

use super::{Hook, icmp};
use crate::{
    count::count,
    maps::node,
    packet::{
        parse::{Flow, Ip},
        skb::{AF_INET, Skb},
        tunnel,
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
pub(crate) fn to_tunnel<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, underlay: Ip4, vtep: Mac) -> Verdict {
    if let Err(reason) = tunnel::push(skb, flow.tos, underlay, vtep) {
        return Verdict::Drop(reason);
    }
    count(Counter::ToTunnel);
    let ifindex = node!(underlay_ifindex);
    let on_link = (underlay.be ^ node!(node_ip).be) & node!(underlay_mask).be == 0;
    if on_link && !hook.egress {
        skb.redirect_neigh(ifindex, AF_INET, [underlay.be, 0, 0, 0])
    } else {
        skb.redirect_routed(ifindex)
    }
}

/// To the host's stack. On ingress that is where a passed packet goes; what leaves `shunt0` or came through the tunnel enters again at
/// `shunt0`, where the host's routes expect it.
#[inline(always)]
pub(crate) fn to_host(skb: Skb, at_tunnel_device: bool) -> Verdict {
    count(Counter::ToHost);
    if !at_tunnel_device {
        return Verdict::Pass;
    }
    match skb.set_dst_mac(node!(tunnel_mac)) {
        Ok(()) => skb.redirect_ingress(node!(tunnel_ifindex)),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// To the outside, by the host's routing table, without its stack: a packet with the node's own source would be a martian there.
#[inline(always)]
pub(crate) fn to_outside<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>) -> Verdict {
    // SAFETY: plain integers and unions of them; all zero is a value.
    let mut params: FibLookup = unsafe { core::mem::zeroed() };
    F::ask_route(&mut params, flow.tuple.src, flow.tuple.dst);
    params.l4_protocol = flow.tuple.proto;
    params.ifindex = node!(tunnel_ifindex);
    params.__bindgen_anon_1.tot_len = if skb.gso_size() == 0 { flow.ip_len as u16 } else { 0 };
    // SAFETY: the parameters live on the stack and have the length given.
    let found = unsafe { bpf_fib_lookup(skb.raw().cast(), &raw mut params, size_of::<FibLookup>() as i32, 0) };
    if found < 0 {
        return Verdict::Drop(DropReason::NoRoute);
    }
    match found as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            let written = skb.set_dst_mac(Mac { bytes: params.dmac }).and_then(|()| skb.write(6, params.smac));
            if let Err(reason) = written {
                return Verdict::Drop(reason);
            }
            count(Counter::ToOutside);
            skb.redirect(params.ifindex)
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            count(Counter::ToOutside);
            if hook.egress {
                // As for the tunnel.
                return skb.redirect_routed(params.ifindex);
            }
            // SAFETY: the look-up replaced the destination by the next hop.
            let next_hop = unsafe { params.__bindgen_anon_4.ipv6_dst };
            skb.redirect_neigh(params.ifindex, params.family, next_hop)
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => {
            // SAFETY: the look-up filled the MTU in.
            let mtu = unsafe { params.__bindgen_anon_1.mtu_result };
            icmp::refuse(skb, hook, flow, DropReason::PacketTooBig, unreachable::TOO_BIG, mtu)
        }
        _ => icmp::refuse(skb, hook, flow, DropReason::NoRoute, unreachable::HOST, 0),
    }
}

/// Whether the tunnel carries a packet whole.
#[inline(always)]
pub(crate) fn fits_tunnel<F: Ip>(skb: Skb, flow: &Flow<F>) -> bool {
    flow.segment_len(skb.gso_size()) <= node!(mtu)
}
