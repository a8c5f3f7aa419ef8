//! VXLAN on the wire (RFC 7348) and what crosses a tunnel besides the packet (RFC 6040).

use crate::{
    checksum,
    net::{Ip4, Mac, Port},
};

/// What the tunnel adds before the inner IP header: IPv4, UDP, VXLAN, inner Ethernet.
pub const OVERHEAD: u32 = 20 + 8 + 8 + 14;

/// The I flag: the VNI is valid (RFC 7348 section 5), as the first word of the header is loaded.
pub const FLAGS_BE: u32 = 0x0800_0000_u32.to_be();

/// The second word of the header as loaded: VNI in the upper 24 bits.
#[must_use]
#[inline(always)]
pub const fn vni_be(vni: u32) -> u32 {
    (vni << 8).to_be()
}

/// Outer source port: entropy of the inner flow in the range that RFC 7348 section 5 recommends.
#[must_use]
#[inline(always)]
pub const fn source_port(hash: u32) -> Port {
    Port::from_host(49152 | ((hash ^ (hash >> 16)) & 0x3fff) as u16)
}

/// The MAC of a node's tunnel end unless it says another: `72:73` (locally administered, unicast) and the bytes of its IPv4 address.
#[must_use]
pub const fn derived_mac(addr: Ip4) -> Mac {
    let [a, b, c, d] = addr.be.to_ne_bytes();
    Mac { bytes: [0x72, 0x73, a, b, c, d] }
}

/// A backend, named beside a packet for it: direct server return.
///
/// The node that a client from the outside has asked sends the packet as it came, so that the backend's node knows the client and what it
/// asked for; the backend that was chosen stands in the inner Ethernet header, whose addresses have no other meaning between our nodes.
/// The destination is `72:74` and the backend's address, the source `72:74:00:00` and its port: nobody's VTEP, so that a node that doesn't know
/// of names takes no such packet for one of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// The backend's address.
    pub addr: Ip4,
    /// The backend's port.
    pub port: Port,
}

/// What both addresses of a name begin with, as loaded.
const NAME_PREFIX: u16 = 0x7274_u16.to_be();

impl Name {
    /// Where the inner Ethernet addresses begin, in bytes from the outer IPv4 header on.
    pub const AT: u32 = OVERHEAD - 14;

    /// The inner destination and source addresses as 32-bit words as stored.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u32; 3] {
        let [p0, p1] = NAME_PREFIX.to_ne_bytes();
        let [a, b, c, d] = self.addr.be.to_ne_bytes();
        let [q0, q1] = self.port.be.to_ne_bytes();
        [u32::from_ne_bytes([p0, p1, a, b]), u32::from_ne_bytes([c, d, p0, p1]), u32::from_ne_bytes([0, 0, q0, q1])]
    }

    /// The name in inner destination and source addresses, as 16-bit words as loaded. `own` is the receiver's VTEP: what is sent to
    /// that has no name, whoever sends it.
    #[must_use]
    #[inline(always)]
    pub fn of(macs: [u16; 6], own: Mac) -> Option<Self> {
        let [prefix, head, tail, sender, zero, port] = macs;
        if prefix != NAME_PREFIX || sender != NAME_PREFIX || zero != 0 {
            return None;
        }
        let ([p0, p1], [h0, h1], [t0, t1]) = (prefix.to_ne_bytes(), head.to_ne_bytes(), tail.to_ne_bytes());
        if own.head() == u32::from_ne_bytes([p0, p1, h0, h1]) && own.tail() == tail {
            return None;
        }
        Some(Self { addr: Ip4 { be: u32::from_ne_bytes([h0, h1, t0, t1]) }, port: Port { be: port } })
    }
}

/// The ECN field of the inner header after it left the tunnel, `None` if the packet must be dropped.
///
/// RFC 6040 section 4.2, figure 4; arguments and result are the two ECN bits (RFC 3168: 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE).
#[must_use]
#[inline(always)]
pub const fn ecn_after(inner: u8, outer: u8) -> Option<u8> {
    match (inner & 3, outer & 3) {
        (0, 3) => None,
        (0, _) => Some(0),
        (_, 3) => Some(3),
        (2, 1) => Some(1),
        (inner, _) => Some(inner),
    }
}

/// Everything between the outer Ethernet header and the inner IP header.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Total length of the outer IPv4 packet in bytes.
    pub total_len: u16,
    /// The outer type of service: the inner one, ECN included (RFC 6040 normal mode).
    pub tos: u8,
    /// IPv4 identification.
    pub id: u16,
    /// This node's address.
    pub src: Ip4,
    /// The peer's address.
    pub dst: Ip4,
    /// See [`source_port`].
    pub sport: Port,
    /// The tunnel's UDP port.
    pub dport: Port,
    /// Network identifier.
    pub vni: u32,
    /// This node's VTEP.
    pub inner_src: Mac,
    /// The peer's VTEP.
    pub inner_dst: Mac,
}

impl Outer {
    /// The header as 32-bit words as stored, without the inner `EtherType` that ends it. The UDP checksum is zero (RFC 7348 section 5).
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u32; 12] {
        let udp_len = self.total_len.wrapping_sub(20);
        let first = (0x4500_0000_u32 | (self.tos as u32) << 16 | self.total_len as u32).to_be();
        let second = ((self.id as u32) << 16).to_be();
        // TTL 64, UDP.
        let third = 0x4011_0000_u32.to_be();
        let sum = first as u64 + second as u64 + third as u64 + self.src.be as u64 + self.dst.be as u64;
        let [c0, c1] = (!checksum::fold(sum)).to_ne_bytes();
        let [s0, s1] = self.sport.be.to_ne_bytes();
        let [d0, d1] = self.dport.be.to_ne_bytes();
        let [.., t4, t5] = self.inner_dst.bytes;
        let [f0, f1, f2, f3, f4, f5] = self.inner_src.bytes;
        [
            first,
            second,
            third | u32::from_ne_bytes([0, 0, c0, c1]),
            self.src.be,
            self.dst.be,
            u32::from_ne_bytes([s0, s1, d0, d1]),
            ((udp_len as u32) << 16).to_be(),
            FLAGS_BE,
            vni_be(self.vni),
            self.inner_dst.head(),
            u32::from_ne_bytes([t4, t5, f0, f1]),
            u32::from_ne_bytes([f2, f3, f4, f5]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_rfc_7348() {
        let outer = Outer {
            total_len: 134,
            tos: 0x02,
            id: 0x1234,
            src: Ip4::new(192, 0, 2, 1),
            dst: Ip4::new(192, 0, 2, 2),
            sport: Port::from_host(50_000),
            dport: Port::from_host(8472),
            vni: 1,
            inner_src: Mac { bytes: [2, 0, 0, 0, 0, 1] },
            inner_dst: Mac { bytes: [2, 0, 0, 0, 0, 2] },
        };
        let bytes: [u8; OVERHEAD as usize - 2] = core::array::from_fn(|i| outer.words()[i / 4].to_ne_bytes()[i % 4]);
        assert_eq!(&bytes[..10], &[0x45, 0x02, 0, 134, 0x12, 0x34, 0, 0, 64, 17]);
        assert_eq!(checksum::of(&bytes[..20]), 0, "a valid header sums to zero");
        assert_eq!(&bytes[12..20], &[192, 0, 2, 1, 192, 0, 2, 2]);
        assert_eq!(&bytes[20..28], &[0xc3, 0x50, 0x21, 0x18, 0, 114, 0, 0]);
        assert_eq!(&bytes[28..36], &[8, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(&bytes[36..], &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_name_is_read_as_it_was_written_and_is_nobodys_address() {
        let name = Name { addr: Ip4::new(10, 244, 2, 3), port: Port::from_host(8080) };
        let bytes: [u8; 12] = core::array::from_fn(|i| name.words()[i / 4].to_ne_bytes()[i % 4]);
        assert_eq!(bytes, [0x72, 0x74, 10, 244, 2, 3, 0x72, 0x74, 0, 0, 0x1f, 0x90]);
        let macs = |bytes: [u8; 12]| core::array::from_fn(|i| u16::from_ne_bytes([bytes[2 * i], bytes[2 * i + 1]]));
        let own = derived_mac(Ip4::new(192, 0, 2, 2));
        assert_eq!(Name::of(macs(bytes), own), Some(name));
        for (at, byte) in [(0, 0x02), (1, 0x73), (6, 0x02), (7, 0x73), (8, 1), (9, 1)] {
            let mut other = bytes;
            other[at] = byte;
            assert_eq!(Name::of(macs(other), own), None, "{other:x?}");
        }
        let [ours @ .., _, _, _, _, _, _] = bytes;
        assert_eq!(Name::of(macs(bytes), Mac { bytes: ours }), None, "it is for the tunnel's end itself");
    }

    #[test]
    fn ecn_leaves_the_tunnel_as_rfc_6040_figure_4() {
        let table = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in table.iter().enumerate() {
            for (outer, expected) in row.iter().enumerate() {
                assert_eq!(ecn_after(inner as u8, outer as u8), *expected, "inner {inner} outer {outer}");
            }
        }
    }

    #[test]
    fn the_derived_mac_holds_the_address_as_one_reads_it() {
        assert_eq!(derived_mac(Ip4::new(192, 0, 2, 1)), Mac { bytes: [0x72, 0x73, 192, 0, 2, 1] });
    }

    #[test]
    fn source_ports_stay_in_the_recommended_range() {
        for hash in [0, 1, 0xffff, 0x10000, u32::MAX] {
            assert!(source_port(hash).to_host() >= 49152);
        }
    }
}
