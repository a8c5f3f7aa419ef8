//! Pushing and popping VXLAN (RFC 7348).

use shunt_common::{
    net::{Family, Ip4, Mac, proto},
    shortcut,
    verdict::DropReason,
    vxlan::{self, Name, Outer},
};

use super::{
    frame::{Changed, ETH_LEN, Frame},
    parse::{Flow, Ipv4Header},
    skb::Skb,
};
use crate::maps::node;

/// What the outer header of a packet has from the inner one.
#[derive(Clone, Copy)]
pub(crate) struct Wrap {
    /// Type of service.
    pub(crate) tos: u8,
    /// A hash of the flow.
    pub(crate) hash: u32,
    /// IPv4 identification.
    pub(crate) id: u16,
}

impl Wrap {
    /// For a packet as it was when it was parsed: each packet of a flow gets the same source port.
    #[inline(always)]
    pub(crate) fn of<F: Family>(flow: &Flow<F>, id: u16) -> Self {
        Self { tos: flow.tos, hash: shortcut::hash(&flow.tuple), id }
    }
}

/// Wraps a packet for a peer; `again` if it came out of the tunnel. The outer Ethernet header is left to the redirect.
#[inline(always)]
pub(crate) fn push(skb: Skb, wrap: Wrap, underlay: Ip4, vtep: Mac, again: bool) -> Changed {
    match skb.push(vxlan::OVERHEAD) {
        // Popped at TC, and at XDP if that succeeds.
        Err(_) if again => skb.push_again(vxlan::OVERHEAD)?,
        done => done?,
    }
    cover(skb, wrap, underlay, vtep)
}

/// Writes the headers of a packet that has room for them.
#[inline(always)]
pub(crate) fn cover(frame: impl Frame, wrap: Wrap, underlay: Ip4, vtep: Mac) -> Changed {
    let outer = Outer {
        total_len: (frame.len() - ETH_LEN as u32) as u16,
        tos: wrap.tos,
        id: wrap.id,
        src: node!(node_ip),
        dst: underlay,
        sport: vxlan::source_port(wrap.hash),
        dport: node!(vxlan_port),
        vni: node!(vni),
        inner_src: node!(tunnel_mac),
        inner_dst: vtep,
    };
    frame.write(ETH_LEN, outer.words())?;
    frame.write(ETH_LEN + vxlan::OVERHEAD as u64 - 2, 0x0800u16.to_be())
}

/// Names the backend of a packet that was wrapped for its node.
#[inline(always)]
pub(crate) fn name(skb: Skb, backend: &Name) -> Changed {
    skb.write(ETH_LEN + u64::from(Name::AT), backend.words())
}

/// Where the inner destination address stands in a tunnel packet, from the start of its Ethernet header.
pub(crate) const INNER_DST: u64 = ETH_LEN + vxlan::OVERHEAD as u64 + core::mem::offset_of!(Ipv4Header, dst) as u64;

/// What the outer headers of a tunnel packet say.
#[derive(Clone, Copy)]
pub(crate) struct Opened {
    /// Who sent it.
    pub(crate) peer: Ip4,
    /// The outer ECN field.
    pub(crate) ecn: u8,
    /// The backend that the packet comes with, if it is named.
    pub(crate) name: Option<Name>,
}

impl Opened {
    /// Whether a packet to this inner address may have the name that it has, if it has one: a node speaks of its own node ports.
    #[inline(always)]
    pub(crate) fn is_credible(&self, inner_dst: Option<u32>) -> bool {
        self.name.is_none() || inner_dst == Some(self.peer.be)
    }
}

/// The outer headers after Ethernet and before the inner IP header, without IP options.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Headers {
    ip: Ipv4Header,
    sport: u16,
    dport: u16,
    udp_len: u16,
    udp_check: u16,
    flags: u32,
    vni: u32,
    inner_macs: [u16; 6],
    inner_ethertype: u16,
}

const _: () = assert!(core::mem::offset_of!(Headers, inner_ethertype) + 2 == vxlan::OVERHEAD as usize);

/// Where an IPv4 packet to the tunnel's port is addressed; `None` for everything else.
///
/// With IP options the port stands further on. A later fragment has none: its first one decides, and without that there is no datagram.
#[inline(always)]
pub(crate) fn destination(ip: &Ipv4Header, dport_at: impl FnOnce(u64) -> Option<u16>) -> Option<Ip4> {
    if ip.proto != proto::UDP || u16::from_be(ip.fragment) & 0x1fff != 0 {
        return None;
    }
    let dport = dport_at(ETH_LEN + u64::from(ip.version_ihl & 0xf) * 4 + 2)?;
    if dport == node!(vxlan_port).be { Some(Ip4 { be: ip.dst }) } else { None }
}

/// Checks the headers of a packet to the tunnel's port that has `available` bytes from the outer IP header on.
///
/// The UDP checksum, where there is one, is left to what carries the packet: RFC 7348 lets the receiver ignore it, and the inner
/// packet has its own.
#[inline(always)]
pub(crate) fn open(headers: &Headers, available: u32) -> Result<Opened, DropReason> {
    let fragmented = u16::from_be(headers.ip.fragment) & 0x3fff != 0;
    let whole = available >= vxlan::OVERHEAD + 20;
    if headers.ip.version_ihl != 0x45 || fragmented || !whole || headers.flags & vxlan::FLAGS_BE != vxlan::FLAGS_BE {
        return Err(DropReason::TunnelMalformed);
    }
    // The low byte of the word is reserved and ignored on receipt.
    if (headers.vni ^ vxlan::vni_be(node!(vni))) & vxlan::vni_be(0x00ff_ffff) != 0 {
        return Err(DropReason::TunnelVniUnknown);
    }
    if headers.inner_ethertype != 0x0800u16.to_be() {
        return Err(DropReason::ProtocolUnsupported);
    }
    let name = Name::of(headers.inner_macs, node!(tunnel_mac));
    Ok(Opened { peer: Ip4 { be: headers.ip.src }, ecn: headers.ip.tos & 3, name })
}
