//! The packet that an ICMP error quotes.

use shunt_common::{
    checksum::{self, Mending, fold32},
    flow::Tuple,
    net::{Family, Ip4, Port, V4, proto},
    verdict::DropReason,
};

use super::{
    frame::{Changed, Frame},
    parse::{Flow, Ipv4Header},
    skb::Skb,
};

/// Length of an ICMP error's own header, in front of the quote.
const ICMP_LEN: u64 = 8;

/// What a family must know to read and mend a quote.
pub(crate) trait Quote: Family {
    /// The ends of the quoted packet; `None` if the quote is too short or is of no protocol that we translate.
    fn quoted(skb: Skb, flow: &Flow<Self>) -> Option<Tuple<Self>>;

    /// Makes the quote, which says `from`, say `to`, with its own checksums and the error's.
    fn requote(skb: Skb, flow: &Flow<Self>, from: &Tuple<Self>, to: &Tuple<Self>) -> Changed;
}

/// Offset of the quoted transport header.
#[inline(always)]
fn quoted_l4(flow: &Flow<V4>, header: &Ipv4Header) -> u64 {
    flow.l4 + ICMP_LEN + u64::from(header.version_ihl & 0xf) * 4
}

impl Quote for V4 {
    #[inline(always)]
    fn quoted(skb: Skb, flow: &Flow<V4>) -> Option<Tuple<V4>> {
        let at = flow.l4 + ICMP_LEN;
        let header: Ipv4Header = match skb.read(at) {
            Some(header) => header,
            None => {
                skb.pull(skb.len().min(256)).ok()?;
                skb.read(at)?
            }
        };
        // A quoted later fragment has no ports.
        if header.version_ihl >> 4 != 4 || header.version_ihl & 0xf < 5 || u16::from_be(header.fragment) & 0x1fff != 0 {
            return None;
        }
        let l4 = quoted_l4(flow, &header);
        let [first, second] = skb.read::<[u16; 2]>(l4)?;
        let (sport, dport) = match header.proto {
            proto::TCP | proto::UDP => (Port { be: first }, Port { be: second }),
            proto::ICMP => {
                let id = Port { be: skb.read::<u16>(l4 + 4)? };
                match first.to_ne_bytes()[0] {
                    shunt_common::icmp::kind::ECHO => (id, Port::NONE),
                    shunt_common::icmp::kind::ECHO_REPLY => (Port::NONE, id),
                    _ => return None,
                }
            }
            _ => return None,
        };
        Some(Tuple { src: Ip4 { be: header.src }, dst: Ip4 { be: header.dst }, sport, dport, proto: header.proto })
    }

    #[inline(always)]
    fn requote(skb: Skb, flow: &Flow<V4>, from: &Tuple<V4>, to: &Tuple<V4>) -> Changed {
        let at = flow.l4 + ICMP_LEN;
        let header: Ipv4Header = skb.read(at).ok_or(DropReason::Malformed)?;
        let l4 = quoted_l4(flow, &header);
        let addresses = (!from.src.be) as u64 + to.src.be as u64 + (!from.dst.be) as u64 + to.dst.be as u64;
        let ports = (!from.sport.be as u32 | 0xffff_0000) as u64
            + to.sport.be as u64
            + (!from.dport.be as u32 | 0xffff_0000) as u64
            + to.dport.be as u64;
        // The quoted header's checksum follows its addresses, so that together they leave the error's sum as it was.
        skb.write(at + 10, !checksum::fold((!header.check) as u64 + fold32(addresses) as u64))?;
        skb.write(at + 12, to.src.be)?;
        skb.write(at + 16, to.dst.be)?;
        let mut sum = 0u64;
        let (check_at, covered) = match from.proto {
            proto::TCP => (l4 + 16, fold32(addresses) as u64 + ports),
            proto::UDP => (l4 + 6, fold32(addresses) as u64 + ports),
            _ => (l4 + 2, ports),
        };
        // Quotes may end after eight bytes (RFC 792); a checksum beyond them is left out.
        if let Some(check) = skb.read::<u16>(check_at)
            && !(from.proto == proto::UDP && check == 0)
        {
            let mended = !checksum::fold((!check) as u64 + fold32(covered) as u64);
            skb.write(check_at, mended)?;
            sum += (!check) as u64 + mended as u64;
        }
        if from.proto == proto::ICMP {
            skb.write(l4 + 4, to.sport.be | to.dport.be)?;
        } else {
            skb.write(l4, [to.sport.be, to.dport.be])?;
        }
        sum += ports;
        skb.fix_l4(flow.l4 + 2, &Mending { addresses: 0, all: fold32(sum) }, false)
    }
}
