//! Packets as values, built to bytes with every length and checksum computed afresh: what a test expects is never derived from what the
//! program under test did.

use std::net::Ipv4Addr;

use shunt_common::checksum;

/// The Ethernet header that tests use: addresses say nothing unless a test gives them.
pub(crate) const ETHERNET: [u8; 14] = [0xee, 0xee, 0xee, 0xee, 0xee, 0xee, 0x02, 0, 0, 0, 0, 1, 0x08, 0x00];

/// An IPv4 packet.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) ethernet: [u8; 14],
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) ttl: u8,
    pub(crate) tos: u8,
    pub(crate) id: u16,
    /// Flags and offset, host order.
    pub(crate) fragment: u16,
    /// IP options, a multiple of four bytes.
    pub(crate) options: Vec<u8>,
    pub(crate) l4: L4,
}

/// What the packet carries.
#[derive(Clone, Debug)]
pub(crate) enum L4 {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
        payload: Vec<u8>,
    },
    Udp {
        sport: u16,
        dport: u16,
        payload: Vec<u8>,
        zero_checksum: bool,
    },
    /// Type, identifier, payload.
    Echo {
        kind: u8,
        id: u16,
        payload: Vec<u8>,
    },
    /// Type, code, rest of header, quoted bytes.
    IcmpError {
        kind: u8,
        code: u8,
        rest: u32,
        quote: Vec<u8>,
    },
    /// Protocol and bytes as they are: later fragments, other protocols.
    Raw {
        proto: u8,
        bytes: Vec<u8>,
    },
}

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const RST: u8 = 0x04;
pub(crate) const FIN: u8 = 0x01;

pub(crate) fn ip(text: &str) -> Ipv4Addr {
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

pub(crate) fn tcp(src: &str, sport: u16, dst: &str, dport: u16, flags: u8) -> Packet {
    packet(src, dst, L4::Tcp { sport, dport, flags, payload: if flags & SYN == 0 { b"hello".to_vec() } else { Vec::new() } })
}

pub(crate) fn udp(src: &str, sport: u16, dst: &str, dport: u16) -> Packet {
    packet(src, dst, L4::Udp { sport, dport, payload: b"question".to_vec(), zero_checksum: false })
}

pub(crate) fn echo(src: &str, dst: &str, kind: u8, id: u16) -> Packet {
    packet(src, dst, L4::Echo { kind, id, payload: b"0123456789abcdef".to_vec() })
}

pub(crate) fn raw(src: &str, dst: &str, proto: u8, bytes: Vec<u8>) -> Packet {
    packet(src, dst, L4::Raw { proto, bytes })
}

/// An ICMP error that quotes all of `about`.
pub(crate) fn error(src: &str, dst: &str, kind: u8, code: u8, about: &Packet) -> Packet {
    packet(src, dst, L4::IcmpError { kind, code, rest: 0, quote: about.bytes()[14..].to_vec() })
}

impl Packet {
    pub(crate) fn from(mut self, src: &str) -> Self {
        self.src = ip(src);
        self
    }

    pub(crate) fn to(mut self, dst: &str) -> Self {
        self.dst = ip(dst);
        self
    }

    pub(crate) fn sport(mut self, port: u16) -> Self {
        match &mut self.l4 {
            L4::Tcp { sport, .. } | L4::Udp { sport, .. } => *sport = port,
            L4::Echo { id, .. } => *id = port,
            _ => panic!("no port to set"),
        }
        self
    }

    pub(crate) fn dport(mut self, port: u16) -> Self {
        match &mut self.l4 {
            L4::Tcp { dport, .. } | L4::Udp { dport, .. } => *dport = port,
            L4::Echo { id, .. } => *id = port,
            _ => panic!("no port to set"),
        }
        self
    }

    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// One hop on.
    pub(crate) fn aged(self) -> Self {
        let ttl = self.ttl - 1;
        self.ttl(ttl)
    }

    pub(crate) fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    pub(crate) fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    pub(crate) fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub(crate) fn payload(mut self, bytes: Vec<u8>) -> Self {
        match &mut self.l4 {
            L4::Tcp { payload, .. } | L4::Udp { payload, .. } | L4::Echo { payload, .. } => *payload = bytes,
            _ => panic!("no payload to set"),
        }
        self
    }

    pub(crate) fn zero_checksum(mut self) -> Self {
        match &mut self.l4 {
            L4::Udp { zero_checksum, .. } => *zero_checksum = true,
            _ => panic!("only UDP may go without a checksum"),
        }
        self
    }

    pub(crate) fn macs(mut self, dst: [u8; 6], src: [u8; 6]) -> Self {
        self.ethernet[..6].copy_from_slice(&dst);
        self.ethernet[6..12].copy_from_slice(&src);
        self
    }

    /// On the wire, Ethernet header included.
    pub(crate) fn bytes(&self) -> Vec<u8> {
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
