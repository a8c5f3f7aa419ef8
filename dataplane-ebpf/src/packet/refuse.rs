//! Turning a packet into what refuses it: an ICMP error, or for a SYN to a closed port a reset.
//!
//! The kernel forgets an ICMP error about a connection whose `connect()` is still under way on the same CPU (`sock_owned_by_user`,
//! net/ipv4/tcp_ipv4.c), as it is when the answer comes out of the very call; a reset waits.

use shunt_common::{
    checksum::{Mending, difference, fold32},
    icmp,
    net::{Family, Ip4, V4, proto},
    tcp,
    verdict::DropReason,
};

use super::{
    frame::{Changed, ETH_LEN, Frame},
    parse::Ipv4Header,
    rewrite::ipv4,
    skb::Skb,
};

/// What a family must know to refuse a packet.
pub(crate) trait Refusal: Family {
    /// Makes the packet an error from its destination to its source, `what` as for IPv4 ([`icmp::answer`]), or a reset if it is a SYN to a
    /// port that is unreachable. `mtu` goes with "too big".
    /// Fails if the packet is too short to quote.
    fn refuse(skb: Skb, what: u16, mtu: u16) -> Changed;
}

impl Refusal for V4 {
    #[inline(always)]
    fn refuse(skb: Skb, what: u16, mtu: u16) -> Changed {
        let ip: Ipv4Header = skb.read(ETH_LEN).ok_or(DropReason::Malformed)?;
        // With options the ports stand elsewhere; such a packet is dropped without an answer.
        if ip.version_ihl != 0x45 {
            return Err(DropReason::Malformed);
        }
        if ip.proto == proto::TCP {
            if what == icmp::answer::PORT_UNREACHABLE {
                let header: [u32; 4] = skb.read(TCP).ok_or(DropReason::Malformed)?;
                if let Some(answer) = tcp::reset(header) {
                    return reset(skb, &ip, &header, &answer);
                }
            }
            answer::<10>(skb, &ip, what, mtu, icmp::quote::TCP)
        } else {
            answer::<7>(skb, &ip, what, mtu, icmp::quote::SHORT)
        }
    }
}

/// Where the TCP header of a packet without IP options begins, and where it keeps its checksum.
const TCP: u64 = ETH_LEN + 20;
const TCP_CHECK: u64 = TCP + 16;

/// Turns a SYN around. Swapped addresses and ports leave both checksums as they are.
#[inline(always)]
fn reset(skb: Skb, ip: &Ipv4Header, from: &[u32; 4], to: &[u32; 4]) -> Changed {
    let changed = difference(from[1], to[1]) + difference(from[2], to[2]) + difference(from[3], to[3]);
    skb.fix_l4(TCP_CHECK, &Mending { addresses: 0, all: fold32(changed) }, false)?;
    skb.write(TCP, *to)?;
    skb.write(ETH_LEN + ipv4::SRC, ip.dst)?;
    skb.write(ETH_LEN + ipv4::DST, ip.src)?;
    skb.swap_macs()
}

/// Cuts the packet to its quote of `WORDS` words and puts the error in front.
#[inline(always)]
fn answer<const WORDS: usize>(skb: Skb, ip: &Ipv4Header, what: u16, mtu: u16, quote_len: u32) -> Changed {
    skb.truncate(ETH_LEN as u32 + quote_len)?;
    let quote: [u32; WORDS] = skb.read(ETH_LEN).ok_or(DropReason::Malformed)?;
    let mut sum = 0u64;
    for word in quote {
        sum += word as u64;
    }
    skb.prepend(icmp::HEADERS)?;
    let (src, dst) = (Ip4 { be: ip.dst }, Ip4 { be: ip.src });
    skb.write(ETH_LEN, icmp::error(src, dst, what, mtu, quote_len, fold32(sum)))?;
    skb.swap_macs()
}
