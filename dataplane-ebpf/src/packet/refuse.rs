//! Turning a packet into the ICMP error that refuses it.

use shunt_common::{
    icmp,
    net::{Family, Ip4, V4, proto},
    verdict::DropReason,
};

use super::{
    parse::Ipv4Header,
    rewrite::fold32,
    skb::{Changed, ETH_LEN, Skb},
};

/// What a family must know to refuse a packet.
pub(crate) trait Refusal: Family {
    /// Makes the packet a destination unreachable from its destination to its source, code as for IPv4. `mtu` goes with "too big".
    /// Fails if the packet is too short to quote.
    fn refuse(skb: Skb, code: u8, mtu: u16) -> Changed;
}

impl Refusal for V4 {
    #[inline(always)]
    fn refuse(skb: Skb, code: u8, mtu: u16) -> Changed {
        let ip: Ipv4Header = skb.read(ETH_LEN).ok_or(DropReason::Malformed)?;
        // With options the ports stand elsewhere; such a packet is dropped without an answer.
        if ip.version_ihl != 0x45 {
            return Err(DropReason::Malformed);
        }
        if ip.proto == proto::TCP {
            answer::<10>(skb, &ip, code, mtu, icmp::quote::TCP)
        } else {
            answer::<7>(skb, &ip, code, mtu, icmp::quote::SHORT)
        }
    }
}

/// Cuts the packet to its quote of `WORDS` words and puts the error in front.
#[inline(always)]
fn answer<const WORDS: usize>(skb: Skb, ip: &Ipv4Header, code: u8, mtu: u16, quote_len: u32) -> Changed {
    skb.truncate(ETH_LEN as u32 + quote_len)?;
    let quote: [u32; WORDS] = skb.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    let mut sum = 0u64;
    for word in quote {
        sum += word as u64;
    }
    skb.prepend(icmp::HEADERS)?;
    let (src, dst) = (Ip4 { be: ip.dst }, Ip4 { be: ip.src });
    skb.write(ETH_LEN, icmp::unreachable(src, dst, code, mtu, quote_len, fold32(sum)))?;
    skb.swap_macs()
}
