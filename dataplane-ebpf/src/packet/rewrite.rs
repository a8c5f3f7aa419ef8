//! Changing what a packet says of its ends and its age, with every checksum kept right.

use shunt_common::{
    checksum::{self, Mending, difference, fold32},
    flow::Tuple,
    net::{Family, V4, proto},
    verdict::DropReason,
};

use super::{
    frame::{Changed, ETH_LEN, Frame},
    parse::{Flow, Ipv4Header, Part},
    skb::Skb,
};

/// Offsets in the IPv4 header (RFC 791).
pub(super) mod ipv4 {
    pub(in crate::packet) const TOS: u64 = 1;
    pub(in crate::packet) const TTL: u64 = 8;
    pub(in crate::packet) const CHECK: u64 = 10;
    pub(in crate::packet) const SRC: u64 = 12;
    pub(in crate::packet) const DST: u64 = 16;
}

/// What a family must know to rewrite its header.
pub(crate) trait Rewrite: Family {
    /// What a packet's checksums must be mended by when it carries `to` instead of `from`.
    fn mending(from: &Tuple<Self>, to: &Tuple<Self>) -> Mending;

    /// Makes the packet that `flow` was read from carry `to` instead, and some hops older.
    fn rewrite(frame: impl Frame, flow: &Flow<Self>, to: &Tuple<Self>, mending: &Mending, hops: u8) -> Changed;

    /// One hop older.
    fn age(skb: Skb) -> Changed;

    /// Replaces the ECN field.
    fn set_ecn(skb: Skb, ecn: u8) -> Changed;
}

/// Where a transport header keeps its checksum, and whether that covers the addresses; `None` if it has none that we mend.
#[inline(always)]
fn check_field(protocol: u8) -> Option<(u64, bool)> {
    match protocol {
        proto::TCP => Some((16, true)),
        proto::UDP => Some((6, true)),
        proto::ICMP => Some((2, false)),
        _ => None,
    }
}

impl Rewrite for V4 {
    #[inline(always)]
    fn mending(from: &Tuple<V4>, to: &Tuple<V4>) -> Mending {
        let addresses = fold32(difference(from.src.be, to.src.be) + difference(from.dst.be, to.dst.be));
        // Words of zero-extended ports: their difference is that of the 16-bit words.
        let ports = difference(from.sport.be as u32, to.sport.be as u32) + difference(from.dport.be as u32, to.dport.be as u32);
        Mending { addresses, all: fold32(addresses as u64 + ports) }
    }

    #[inline(always)]
    fn rewrite(frame: impl Frame, flow: &Flow<V4>, to: &Tuple<V4>, mending: &Mending, hops: u8) -> Changed {
        let from = &flow.tuple;
        let ports_change = from.sport != to.sport || from.dport != to.dport;
        if flow.part != Part::Later {
            match check_field(from.proto) {
                Some((check, true)) => frame.fix_l4(flow.l4 + check, mending, from.proto == proto::UDP)?,
                Some((check, false)) if ports_change => {
                    let ports = fold32(mending.all as u64 + (!mending.addresses) as u64);
                    frame.fix_l4(flow.l4 + check, &Mending { addresses: 0, all: ports }, false)?;
                }
                // SCTP's CRC covers the whole packet: it cannot be mended by a difference.
                None if ports_change => return Err(DropReason::RewriteFailed),
                _ => {}
            }
            if ports_change {
                match from.proto {
                    // One of the two is the identifier, the other zero.
                    proto::ICMP => frame.write::<u16>(flow.l4 + 4, to.sport.be | to.dport.be)?,
                    _ => frame.write::<[u16; 2]>(flow.l4, [to.sport.be, to.dport.be])?,
                }
            }
        }
        frame.change::<[u32; 3]>(ETH_LEN + ipv4::TTL, |[word, ..]| {
            let [ttl, protocol, c0, c1] = word.to_ne_bytes();
            // TTL is the first byte of its 16-bit word.
            let older = mending.addresses as u64 + !u16::from_ne_bytes([hops, 0]) as u64;
            let [c0, c1] = checksum::mend_whole(u16::from_ne_bytes([c0, c1]), fold32(older), false).to_ne_bytes();
            [u32::from_ne_bytes([ttl.wrapping_sub(hops), protocol, c0, c1]), to.src.be, to.dst.be]
        })
    }

    #[inline(always)]
    fn age(skb: Skb) -> Changed {
        skb.change::<[u16; 2]>(ETH_LEN + ipv4::TTL, |[ttl_proto, check]| {
            let older = ttl_proto.wrapping_sub(u16::from_ne_bytes([1, 0]));
            [older, checksum::replace16(check, ttl_proto, older)]
        })
    }

    #[inline(always)]
    fn set_ecn(skb: Skb, ecn: u8) -> Changed {
        let ip: Ipv4Header = skb.read(ETH_LEN).ok_or(DropReason::Malformed)?;
        let tos = (ip.tos & !3) | ecn;
        if tos == ip.tos {
            return Ok(());
        }
        let check = checksum::replace16(ip.check, u16::from_ne_bytes([0, ip.tos]), u16::from_ne_bytes([0, tos]));
        skb.write(ETH_LEN + ipv4::TOS, tos)?;
        skb.write(ETH_LEN + ipv4::CHECK, check)
    }
}
