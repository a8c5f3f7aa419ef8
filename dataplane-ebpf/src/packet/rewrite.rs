//! Changing what a packet says of its ends and its age, with every checksum kept right.

use shunt_common::{
    checksum,
    flow::Tuple,
    net::{Family, V4, proto},
    verdict::DropReason,
};

use super::{
    parse::{Flow, Ipv4Header, Part},
    skb::{Changed, ETH_LEN, Skb},
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
    /// Makes the packet that `flow` was read from carry `to` instead. What is equal is not touched.
    fn rewrite(skb: Skb, flow: &Flow<Self>, to: &Tuple<Self>) -> Changed;

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

/// The difference that a changed 32-bit word makes to a sum.
#[inline(always)]
pub(super) const fn difference(from: u32, to: u32) -> u64 {
    (!from) as u64 + to as u64
}

/// A 64-bit sum folded to 32 bits, as helpers take it.
#[inline(always)]
pub(super) const fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

impl Rewrite for V4 {
    #[inline(always)]
    fn rewrite(skb: Skb, flow: &Flow<V4>, to: &Tuple<V4>) -> Changed {
        let from = &flow.tuple;
        let addresses = fold32(difference(from.src.be, to.src.be) + difference(from.dst.be, to.dst.be));
        let ports_change = from.sport != to.sport || from.dport != to.dport;
        if flow.part != Part::Later {
            if let Some((check, covers_addresses)) = check_field(from.proto) {
                let is_udp = from.proto == proto::UDP;
                if covers_addresses && (from.src != to.src || from.dst != to.dst) {
                    skb.fix_l4(flow.l4 + check, addresses, true, is_udp)?;
                }
                if ports_change {
                    // Words of zero-extended ports: their difference is that of the 16-bit words.
                    let ports = difference(from.sport.be as u32, to.sport.be as u32)
                        + difference(from.dport.be as u32, to.dport.be as u32);
                    skb.fix_l4(flow.l4 + check, fold32(ports), false, is_udp)?;
                }
            } else if ports_change {
                // SCTP's CRC covers the whole packet: it cannot be mended by a difference.
                return Err(DropReason::RewriteFailed);
            }
            if ports_change {
                match from.proto {
                    // One of the two is the identifier, the other zero.
                    proto::ICMP => skb.write::<u16>(flow.l4 + 4, to.sport.be | to.dport.be)?,
                    _ => skb.write::<[u16; 2]>(flow.l4, [to.sport.be, to.dport.be])?,
                }
            }
        }
        let ip: Ipv4Header = skb.read(ETH_LEN).ok_or(DropReason::Malformed)?;
        let check = !checksum::fold((!ip.check) as u64 + addresses as u64);
        skb.write(ETH_LEN + ipv4::CHECK, check)?;
        skb.write(ETH_LEN + ipv4::SRC, to.src.be)?;
        skb.write(ETH_LEN + ipv4::DST, to.dst.be)
    }

    #[inline(always)]
    fn age(skb: Skb) -> Changed {
        // TTL is the first byte of its 16-bit word.
        let [ttl_proto, check] = skb.read::<[u16; 2]>(ETH_LEN + ipv4::TTL).ok_or(DropReason::Malformed)?;
        let older = ttl_proto.wrapping_sub(u16::from_ne_bytes([1, 0]));
        skb.write(ETH_LEN + ipv4::TTL, [older, checksum::replace16(check, ttl_proto, older)])
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
