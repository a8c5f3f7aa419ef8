//! A packet's headers, read once into a [`Flow`].

use aya_ebpf::bindings::bpf_fib_lookup as FibLookup;
use shunt_common::{
    flow::Tuple,
    icmp,
    net::{Family, Ip4, Port, V4, proto},
    verdict::DropReason,
    vxlan::Name,
};

use super::{
    frame::{ETH_LEN, Frame},
    refuse::Refusal,
    rewrite::Rewrite,
    skb::{AF_INET, Skb},
};
use crate::{maps::FamilyMaps, packet::quote::Quote, subprograms::Subprograms};

/// TCP flags as they stand in the header's byte 13 (RFC 9293).
pub(crate) mod tcp {
    /// No more data from the sender.
    pub(crate) const FIN: u8 = 0x01;
    /// Synchronise.
    pub(crate) const SYN: u8 = 0x02;
    /// Reset.
    pub(crate) const RST: u8 = 0x04;
    /// Acknowledgement is valid.
    pub(crate) const ACK: u8 = 0x10;
}

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it.
    Whole,
    /// The first fragment: it has the ports.
    First,
    /// A later fragment: it has none.
    Later,
}

/// What kind of ICMP a packet is, as far as translation goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Icmp {
    /// Not ICMP, or a kind that is not translated.
    None,
    /// Echo request.
    Echo,
    /// Echo reply.
    EchoReply,
    /// An error that quotes the packet it is about.
    Error,
}

/// All that the stages need to know of a packet. Offsets are from the start of the Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Flow<F: Family> {
    /// Ends and protocol. Ports are zero where the packet has none.
    pub(crate) tuple: Tuple<F>,
    /// Offset of the transport header.
    pub(crate) l4: u64,
    /// Length of the transport header, as far as segmentation repeats it.
    pub(crate) l4_len: u32,
    /// TCP flags, else 0.
    pub(crate) tcp_flags: u8,
    /// Highest byte of a TCP sequence number: of the next that the packet asks for; of a RST, its own. In one, for want of stack.
    pub(crate) sequence: u8,
    /// Time to live.
    pub(crate) ttl: u8,
    /// Type of service, ECN included.
    pub(crate) tos: u8,
    /// Whole or fragment.
    pub(crate) part: Part,
    /// Identification, as loaded.
    pub(crate) id: u16,
    /// Kind of ICMP.
    pub(crate) icmp: Icmp,
    /// Length of the IP packet in bytes.
    pub(crate) ip_len: u32,
}

impl<F: Family> Flow<F> {
    /// Whether this opens a TCP connection.
    #[inline(always)]
    pub(crate) fn is_syn(&self) -> bool {
        self.tuple.proto == proto::TCP && self.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN
    }

    /// Whether this is a packet of a flow under way as most are: all of a datagram that carries data, with a hop to go.
    #[inline(always)]
    pub(crate) fn is_plain(&self) -> bool {
        let follows = match self.tuple.proto {
            proto::TCP => self.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0,
            proto::UDP => true,
            _ => false,
        };
        follows && self.part == Part::Whole && self.ttl > 1
    }

    /// The largest IP packet that leaves once this one is segmented.
    #[inline(always)]
    pub(crate) fn segment_len(&self, gso_size: u32) -> u32 {
        if gso_size == 0 { self.ip_len } else { (self.l4 - ETH_LEN) as u32 + self.l4_len + gso_size }
    }
}

/// An address family whose packets can be read and rewritten.
pub(crate) trait Ip: FamilyMaps + Rewrite + Quote + Refusal + Subprograms {
    /// Reads a packet's headers, from the IP header at an offset on.
    fn parse(skb: Skb, at: u64) -> Result<Flow<Self>, DropReason>;

    /// The same for a packet as most are ([`Flow::is_plain`], and without IP options), in one go; `None` for every other, right or wrong.
    fn parse_plain(frame: impl Frame, at: u64) -> Option<Flow<Self>>;

    /// Whether a router may cut a packet, at an offset, into fragments. One that is a fragment already is not: all of a datagram have to go
    /// one way, or who puts them together waits for what went past it.
    fn may_be_cut(frame: impl Frame, at: u64) -> bool;

    /// Whether an address is multicast or broadcast.
    fn is_multicast(addr: Self::Addr) -> bool;

    /// How a backend is named in the tunnel.
    fn name(addr: Self::Addr, port: Port) -> Name;

    /// The family and the ends of a packet, as a look-up in the routing table takes them.
    fn ask_route(question: &mut FibLookup, src: Self::Addr, dst: Self::Addr);
}

/// An IPv4 header without options (RFC 791).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Ipv4Header {
    pub(crate) version_ihl: u8,
    pub(crate) tos: u8,
    pub(crate) total_len: u16,
    pub(crate) id: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) proto: u8,
    pub(crate) check: u16,
    pub(crate) src: u32,
    pub(crate) dst: u32,
}

/// Don't fragment, in host order.
const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments follow, in host order.
const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset, in host order.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Enough for every header that is read: the tunnel's, Ethernet, IP with options, the start of TCP.
pub(crate) const HEADERS: u32 = shunt_common::vxlan::OVERHEAD + ETH_LEN as u32 + 60 + 20;

impl Ip for V4 {
    #[inline(always)]
    fn is_multicast(addr: Ip4) -> bool {
        addr.is_multicast_or_broadcast()
    }

    #[inline(always)]
    fn may_be_cut(frame: impl Frame, at: u64) -> bool {
        let fragment = frame.read::<u16>(at + core::mem::offset_of!(Ipv4Header, fragment) as u64);
        fragment.is_some_and(|word| word & (DONT_FRAGMENT | MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be() == 0)
    }

    #[inline(always)]
    fn name(addr: Ip4, port: Port) -> Name {
        Name { addr, port }
    }

    #[inline(always)]
    fn ask_route(question: &mut FibLookup, src: Ip4, dst: Ip4) {
        question.family = AF_INET;
        question.__bindgen_anon_3.ipv4_src = src.be;
        question.__bindgen_anon_4.ipv4_dst = dst.be;
    }

    #[inline(always)]
    fn parse(skb: Skb, at: u64) -> Result<Flow<V4>, DropReason> {
        // Headers are linear as a rule; a packet from a device that splits them is mended here.
        let ip: Ipv4Header = match skb.read(at) {
            Some(ip) => ip,
            None => {
                skb.pull(skb.len().min(HEADERS)).map_err(|_| DropReason::Malformed)?;
                skb.read(at).ok_or(DropReason::Malformed)?
            }
        };
        let header_len = u32::from(ip.version_ihl & 0xf) * 4;
        if ip.version_ihl >> 4 != 4 || header_len < 20 {
            return Err(DropReason::Malformed);
        }
        let available = skb.len() - at as u32;
        // A segment train longer than 64 KiB says 0 (BIG TCP, net/ipv4/ip_output.c).
        let ip_len = match u32::from(u16::from_be(ip.total_len)) {
            0 if skb.gso_size() != 0 => available,
            len => len,
        };
        if ip_len < header_len || ip_len > available {
            return Err(DropReason::Malformed);
        }
        let fragment = u16::from_be(ip.fragment);
        let part = if fragment & FRAGMENT_OFFSET != 0 {
            Part::Later
        } else if fragment & MORE_FRAGMENTS != 0 {
            Part::First
        } else {
            Part::Whole
        };
        let mut flow = Flow {
            tuple: Tuple {
                src: Ip4 { be: ip.src },
                dst: Ip4 { be: ip.dst },
                sport: Port::NONE,
                dport: Port::NONE,
                proto: ip.proto,
            },
            l4: at + header_len as u64,
            l4_len: 8,
            tcp_flags: 0,
            sequence: 0,
            ttl: ip.ttl,
            tos: ip.tos,
            part,
            id: ip.id,
            icmp: Icmp::None,
            ip_len,
        };
        if part != Part::Later {
            parse_l4(skb, &mut flow, ip_len - header_len)?;
        }
        Ok(flow)
    }

    #[inline(always)]
    fn parse_plain(frame: impl Frame, at: u64) -> Option<Flow<V4>> {
        let headers: PlainHeaders = frame.read(at)?;
        let ip = headers.ip;
        let ip_len = u32::from(u16::from_be(ip.total_len));
        let is_fragment = ip.fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET).to_be() != 0;
        if ip.version_ihl != 0x45 || is_fragment || ip.ttl <= 1 || ip_len < 28 || ip_len > frame.len() - at as u32 {
            return None;
        }
        let l4 = at + size_of::<Ipv4Header>() as u64;
        let len = ip_len - size_of::<Ipv4Header>() as u32;
        let (l4_len, tcp_flags, sequence) = match ip.proto {
            proto::UDP => {
                let udp_len = u32::from(u16::from_be(headers.udp_len));
                if (udp_len < 8 || udp_len > len) && frame.gso_size() == 0 {
                    return None;
                }
                (8, 0, 0)
            }
            proto::TCP => {
                let [sequence, _, _, _, offset, flags] = frame.read::<[u8; 6]>(l4 + 8)?;
                let l4_len = u32::from(offset >> 4) * 4;
                if l4_len < 20 || l4_len > len || flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0 {
                    return None;
                }
                (l4_len, flags, sequence)
            }
            _ => return None,
        };
        Some(Flow {
            tuple: Tuple {
                src: Ip4 { be: ip.src },
                dst: Ip4 { be: ip.dst },
                sport: Port { be: headers.sport },
                dport: Port { be: headers.dport },
                proto: ip.proto,
            },
            l4,
            l4_len,
            tcp_flags,
            sequence,
            ttl: ip.ttl,
            tos: ip.tos,
            part: Part::Whole,
            id: ip.id,
            icmp: Icmp::None,
            ip_len,
        })
    }
}

/// An IPv4 header without options, and what TCP and UDP both begin with.
#[repr(C)]
#[derive(Clone, Copy)]
struct PlainHeaders {
    ip: Ipv4Header,
    sport: u16,
    dport: u16,
    /// UDP's length, else part of TCP's sequence number.
    udp_len: u16,
}

/// Reads what matters of the transport header, whose packet has `len` bytes from there on.
#[inline(always)]
fn parse_l4<F: Family>(skb: Skb, flow: &mut Flow<F>, len: u32) -> Result<(), DropReason> {
    let needs = match flow.tuple.proto {
        proto::TCP => 20,
        proto::UDP | proto::ICMP => 8,
        proto::SCTP => 12,
        _ => return Ok(()),
    };
    if len < needs {
        return Err(DropReason::Malformed);
    }
    let l4 = flow.l4;
    let [first, second] = match skb.read::<[u16; 2]>(l4) {
        Some(words) => words,
        None => {
            skb.pull(skb.len().min(HEADERS)).map_err(|_| DropReason::Malformed)?;
            skb.read(l4).ok_or(DropReason::Malformed)?
        }
    };
    match flow.tuple.proto {
        proto::TCP => {
            let [own, _, _, _, acknowledged, _, _, _, offset, flags] =
                skb.read::<[u8; 10]>(l4 + 4).ok_or(DropReason::Malformed)?;
            flow.l4_len = u32::from(offset >> 4) * 4;
            if flow.l4_len < 20 || flow.l4_len > len {
                return Err(DropReason::Malformed);
            }
            flow.tcp_flags = flags;
            flow.sequence = if flags & tcp::RST != 0 { own } else { acknowledged };
        }
        proto::ICMP => {
            // Type is the first byte on the wire.
            let [kind, _] = first.to_ne_bytes();
            let id = Port { be: skb.read::<u16>(l4 + 4).ok_or(DropReason::Malformed)? };
            flow.icmp = match kind {
                icmp::kind::ECHO => {
                    flow.tuple.sport = id;
                    Icmp::Echo
                }
                icmp::kind::ECHO_REPLY => {
                    flow.tuple.dport = id;
                    Icmp::EchoReply
                }
                icmp::kind::UNREACHABLE | icmp::kind::TIME_EXCEEDED | icmp::kind::PARAMETER_PROBLEM => Icmp::Error,
                _ => Icmp::None,
            };
            return Ok(());
        }
        proto::UDP => {
            let udp_len = u32::from(u16::from_be(skb.read::<u16>(l4 + 4).ok_or(DropReason::Malformed)?));
            // A first fragment announces the whole datagram; a segment train may announce its first segment or nothing.
            if flow.part == Part::Whole && skb.gso_size() == 0 && (udp_len < 8 || udp_len > len) {
                return Err(DropReason::Malformed);
            }
        }
        _ => {}
    }
    flow.tuple.sport = Port { be: first };
    flow.tuple.dport = Port { be: second };
    Ok(())
}
