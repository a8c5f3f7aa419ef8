//! Packets as values, built to bytes with every length and checksum computed afresh: what a test expects is never derived from what the
//! program under test did.

use std::net::Ipv4Addr;

use shunt_common::checksum;

use super::dataplane::{NODE_IP, PEER_MAC, TUNNEL_MAC};

/// The Ethernet header that tests use: addresses say nothing unless a test gives them.
pub const ETHERNET: [u8; 14] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0x02, 0, 0, 0, 0, 1, 0x08, 0x00];

/// An IPv4 packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Ethernet header.
    pub ethernet: [u8; 14],
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Time to live.
    pub ttl: u8,
    /// Type of service, ECN included.
    pub tos: u8,
    /// Identification, host order.
    pub id: u16,
    /// Flags and offset, host order.
    pub fragment: u16,
    /// IP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// What it carries.
    pub l4: L4,
}

/// What the packet carries.
#[derive(Clone, Debug)]
pub enum L4 {
    /// A TCP segment.
    Tcp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Flags as they stand in the header's byte 13.
        flags: u8,
        /// Data.
        payload: Vec<u8>,
    },
    /// A UDP datagram.
    Udp {
        /// Source port.
        sport: u16,
        /// Destination port.
        dport: u16,
        /// Data.
        payload: Vec<u8>,
        /// Whether the sender left the checksum out.
        zero_checksum: bool,
    },
    /// An ICMP echo.
    Echo {
        /// Type.
        kind: u8,
        /// Identifier.
        id: u16,
        /// Data.
        payload: Vec<u8>,
    },
    /// An ICMP error.
    IcmpError {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The header's second word.
        rest: u32,
        /// What it quotes.
        quote: Vec<u8>,
    },
    /// Later fragments, other protocols.
    Raw {
        /// Protocol number.
        proto: u8,
        /// Bytes as they are.
        bytes: Vec<u8>,
    },
}

/// Synchronise.
pub const SYN: u8 = 0x02;
/// Acknowledgement is valid.
pub const ACK: u8 = 0x10;
/// Reset.
pub const RST: u8 = 0x04;
/// No more data from the sender.
pub const FIN: u8 = 0x01;

/// An address from text.
pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address in a test")
}

fn packet(src: &str, dst: &str, l4: L4) -> Packet {
    Packet {
        ethernet: ETHERNET,
        src: ip(src),
        dst: ip(dst),
        ttl: 64,
        tos: 0,
        id: 0x1234,
        fragment: 0x4000,
        options: Vec::new(),
        l4,
    }
}

/// A TCP segment, with five bytes of data unless it is a SYN.
pub fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8) -> Packet {
    packet(src, dst, L4::Tcp { sport, dport, flags, payload: if flags & SYN == 0 { b"hello".to_vec() } else { Vec::new() } })
}

/// A UDP datagram with eight bytes of data.
pub fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Packet {
    packet(src, dst, L4::Udp { sport, dport, payload: b"question".to_vec(), zero_checksum: false })
}

/// An ICMP echo of a type (8 asks, 0 answers).
pub fn echo(src: &str, dst: &str, kind: u8, id: u16) -> Packet {
    packet(src, dst, L4::Echo { kind, id, payload: b"0123456789abcdef".to_vec() })
}

/// Any other protocol.
pub fn raw(src: &str, dst: &str, proto: u8, bytes: Vec<u8>) -> Packet {
    packet(src, dst, L4::Raw { proto, bytes })
}

/// A tunnel packet from a node, with the inner frame addressed as the peer would.
pub fn tunnel(from: &str, inner: &Packet, tos: u8) -> Packet {
    let frame = inner.clone().macs(TUNNEL_MAC, PEER_MAC).bytes();
    let payload = [&[8, 0, 0, 0, 0, 0, 1, 0][..], &frame].concat();
    udp(from, 55_555, NODE_IP, 8472).payload(payload).zero_checksum().tos(tos)
}

/// An ICMP error that quotes all of `about`.
pub fn error(src: &str, dst: &str, kind: u8, code: u8, about: &Packet) -> Packet {
    packet(src, dst, L4::IcmpError { kind, code, rest: 0, quote: about.bytes()[14..].to_vec() })
}

impl Packet {
    /// With another source.
    pub fn from(mut self, src: &str) -> Self {
        self.src = ip(src);
        self
    }

    /// With another destination.
    pub fn to(mut self, dst: &str) -> Self {
        self.dst = ip(dst);
        self
    }

    /// With another source port, or identifier.
    pub fn sport(mut self, port: u16) -> Self {
        match &mut self.l4 {
            L4::Tcp { sport, .. } | L4::Udp { sport, .. } => *sport = port,
            L4::Echo { id, .. } => *id = port,
            _ => panic!("no port to set"),
        }
        self
    }

    /// With another destination port, or identifier.
    pub fn dport(mut self, port: u16) -> Self {
        match &mut self.l4 {
            L4::Tcp { dport, .. } | L4::Udp { dport, .. } => *dport = port,
            L4::Echo { id, .. } => *id = port,
            _ => panic!("no port to set"),
        }
        self
    }

    /// With another time to live.
    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// One hop on.
    pub fn aged(self) -> Self {
        let ttl = self.ttl - 1;
        self.ttl(ttl)
    }

    /// With another type of service.
    pub fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    /// With other flags and fragment offset.
    pub fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// With IP options.
    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    /// With other data.
    pub fn payload(mut self, bytes: Vec<u8>) -> Self {
        match &mut self.l4 {
            L4::Tcp { payload, .. } | L4::Udp { payload, .. } | L4::Echo { payload, .. } => *payload = bytes,
            _ => panic!("no payload to set"),
        }
        self
    }

    /// Without a UDP checksum.
    pub fn zero_checksum(mut self) -> Self {
        match &mut self.l4 {
            L4::Udp { zero_checksum, .. } => *zero_checksum = true,
            _ => panic!("only UDP may go without a checksum"),
        }
        self
    }

    /// With other Ethernet ends: destination and source.
    pub fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.ethernet[..6].copy_from_slice(&dst);
        self.ethernet[6..12].copy_from_slice(&src);
        self
    }

    /// On the wire, Ethernet header included.
    pub fn bytes(&self) -> Vec<u8> {
        let (proto, l4) = self.l4_bytes();
        let header_len = 20 + self.options.len();
        let mut header = vec![0x40 | (header_len / 4) as u8, self.tos];
        header.extend(((header_len + l4.len()) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, proto, 0, 0]);
        header.extend(self.src.octets());
        header.extend(self.dst.octets());
        header.extend(&self.options);
        let check = checksum::of(&header);
        header[10..12].copy_from_slice(&check.to_ne_bytes());
        [&self.ethernet[..], &header, &l4].concat()
    }

    fn l4_bytes(&self) -> (u8, Vec<u8>) {
        match &self.l4 {
            L4::Tcp { sport, dport, flags, payload } => {
                let mut bytes =
                    [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, *flags, 0xff, 0xff]]
                        .concat();
                bytes.extend([0; 4]);
                bytes.extend(payload);
                self.seal(6, &mut bytes, 16);
                (6, bytes)
            }
            L4::Udp { sport, dport, payload, zero_checksum } => {
                let len = 8 + payload.len() as u16;
                let mut bytes = [&sport.to_be_bytes()[..], &dport.to_be_bytes(), &len.to_be_bytes(), &[0, 0]].concat();
                bytes.extend(payload);
                if !zero_checksum {
                    self.seal(17, &mut bytes, 6);
                }
                (17, bytes)
            }
            L4::Echo { kind, id, payload } => {
                let mut bytes = [&[*kind, 0, 0, 0][..], &id.to_be_bytes(), &[0, 1], payload].concat();
                let check = checksum::of(&bytes);
                bytes[2..4].copy_from_slice(&check.to_ne_bytes());
                (1, bytes)
            }
            L4::IcmpError { kind, code, rest, quote } => {
                let mut bytes = [&[*kind, *code, 0, 0][..], &rest.to_be_bytes(), quote].concat();
                let check = checksum::of(&bytes);
                bytes[2..4].copy_from_slice(&check.to_ne_bytes());
                (1, bytes)
            }
            L4::Raw { proto, bytes } => (*proto, bytes.clone()),
        }
    }

    /// Fills in a transport checksum with its pseudo header (RFC 9293, RFC 768).
    fn seal(&self, proto: u8, bytes: &mut [u8], at: usize) {
        let mut covered =
            [&self.src.octets()[..], &self.dst.octets(), &[0, proto], &(bytes.len() as u16).to_be_bytes()].concat();
        covered.extend_from_slice(bytes);
        let check = match checksum::of(&covered) {
            0 => 0xffff,
            check => check,
        };
        bytes[at..at + 2].copy_from_slice(&check.to_ne_bytes());
    }
}
