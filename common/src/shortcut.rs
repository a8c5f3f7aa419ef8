//! What was decided for a flow's packets, kept by each CPU for itself: the map `SHORTCUTS`, a small cache in front of `CONNTRACK`.
//!
//! A slot belongs to whichever flow came last. A shortcut is taken only while nothing that it was decided from has changed: addresses and
//! routes (`EPOCH`), the flow's entry (`CHANGES`), its backend; and for no longer than a [`window`], so that the entry in `CONNTRACK` still
//! hears of its flow many times within the shortest timeout.

use crate::{
    checksum::Mending,
    conntrack::{CtKey, Hop},
    flow::Tuple,
    net::{Family, Mac, Port},
};

/// Slots of each CPU's `SHORTCUTS`, a power of two.
pub const SLOTS: u32 = 4096;

/// Stamps in `CHANGES`, a power of two.
pub const STAMPS: u32 = 65_536;

/// The window that a time in jiffies is in: 64 of them, a quarter of a second with CONFIG_HZ=250 and never more than 0.64 s (HZ=100).
#[must_use]
#[inline(always)]
pub const fn window(jiffies: u64) -> u32 {
    (jiffies >> 6) as u32
}

/// A hash of a packet's tuple: its slots in `SHORTCUTS` and `CHANGES`, and the tunnel's source port.
#[must_use]
#[inline(always)]
pub fn hash<F: Family>(tuple: &Tuple<F>) -> u32 {
    // Odd numbers with their bits in disorder (2^64 divided by the golden ratio, and a prime of xxHash): of such a product the upper bits
    // depend on all of a 32-bit factor.
    const ENDS: u64 = 0x9e37_79b9_7f4a_7c15;
    const PORTS: u64 = 0xc2b2_ae3d_27d4_eb4f;
    let ends = F::word(tuple.src) ^ F::word(tuple.dst).rotate_left(16);
    let ports = ((tuple.sport.be as u32) << 16 | tuple.dport.be as u32) ^ tuple.proto as u32;
    (((ends as u64).wrapping_mul(ENDS) ^ (ports as u64).wrapping_mul(PORTS)) >> 32) as u32
}

/// The slot of a hash in `SHORTCUTS`.
#[must_use]
#[inline(always)]
pub const fn slot(hash: u32) -> u32 {
    // The upper bits of a product are the ones that all of the input has mixed.
    hash >> (32 - SLOTS.trailing_zeros())
}

/// The stamp of a hash in `CHANGES`.
#[must_use]
#[inline(always)]
pub const fn stamp(hash: u32) -> u32 {
    hash >> (32 - STAMPS.trailing_zeros())
}

abi! {
    /// Value of `SHORTCUTS`. All zero is an empty slot: shortcuts are for TCP and UDP only.
    pub struct Shortcut<F> {
        /// The tuple of the packets it is for.
        pub key: CtKey<F>,
        /// The program that may take it: one of [`program`](crate::event::program).
        pub program: u32,
        /// The [`window`] that it was decided in.
        pub window: u32,
        /// The flow's stamp in `CHANGES` when it was decided.
        pub stamp: u32,
        /// Backend that must still have its tenant, else 0.
        pub backend: u32,
        /// [`Backend::generation`](crate::service::Backend::generation) of that tenant.
        pub generation: u32,
        /// The next tunnel packet's IPv4 identification, in the lower half.
        pub id: u32,
        /// What it does to the checksums.
        pub mending: Mending,
        /// Source that the packets leave with.
        pub src: F::Addr,
        /// Destination likewise.
        pub dst: F::Addr,
        /// Source port likewise.
        pub sport: Port,
        /// Destination port likewise.
        pub dport: Port,
        /// Where they go. Its `ingress` is where they must come from: an interface, or for tunnel packets a peer's address.
        pub hop: Hop,
        /// The Ethernet header that takes tunnel packets to the next node or router, as far as it is known.
        pub link: Link,
    }
}

abi! {
    /// Destination and source MAC, as the first twelve bytes of a frame are loaded. All zero is none.
    pub struct Link {
        /// Bytes 0 to 3, 4 to 7 and 8 to 11.
        pub words: [u32; 3],
    }
}

impl Link {
    /// Not known, or of a device without such addresses.
    pub const NONE: Self = Self { words: [0; 3] };

    /// From one MAC to another.
    #[must_use]
    #[inline(always)]
    pub const fn to(dst: Mac, src: Mac) -> Self {
        let ([.., d4, d5], [s0, s1, s2, s3, s4, s5]) = (dst.bytes, src.bytes);
        Self { words: [dst.head(), u32::from_ne_bytes([d4, d5, s0, s1]), u32::from_ne_bytes([s2, s3, s4, s5])] }
    }

    /// Whether it leads anywhere: no station has the address zero.
    #[must_use]
    #[inline(always)]
    pub const fn is_known(&self) -> bool {
        let [head, middle, _] = self.words;
        let [d4, d5, ..] = middle.to_ne_bytes();
        head != 0 || d4 != 0 || d5 != 0
    }
}

/// What holds when a packet arrives: a shortcut is taken under the same conditions that it was made under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The packet's stamp in `CHANGES`.
    pub stamp: u32,
    /// `EPOCH`.
    pub epoch: u32,
    /// See [`window`].
    pub window: u32,
    /// The program that handles the packet.
    pub program: u32,
    /// Where the packet came from: see [`Shortcut::hop`].
    pub ingress: u32,
}

impl<F: Family> Shortcut<F> {
    /// Whether it is for this packet and still in force.
    #[must_use]
    #[inline(always)]
    pub fn holds(&self, tuple: &Tuple<F>, now: &Now) -> bool {
        self.key.sport == tuple.sport
            && self.key.dport == tuple.dport
            && self.key.src == tuple.src
            && self.key.dst == tuple.dst
            && self.key.proto == tuple.proto as u32
            && self.program == now.program
            && self.window == now.window
            && self.stamp == now.stamp
            && self.hop.epoch == now.epoch
            && self.hop.ingress == now.ingress
    }

    /// The tuple that packets leave with.
    #[must_use]
    #[inline(always)]
    pub fn translated(&self) -> Tuple<F> {
        Tuple { src: self.src, dst: self.dst, sport: self.sport, dport: self.dport, proto: self.key.proto as u8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        conntrack::hop,
        net::{Ip4, Mac, V4, proto},
    };

    fn tuple(host: u8, port: u16) -> Tuple<V4> {
        Tuple {
            src: Ip4::new(10, 244, 1, host),
            dst: Ip4::new(10, 96, 0, 1),
            sport: Port::from_host(port),
            dport: Port::from_host(80),
            proto: proto::TCP,
        }
    }

    const NOW: Now = Now { stamp: 5, epoch: 6, window: 7, program: 1, ingress: 9 };

    fn kept(tuple: &Tuple<V4>) -> Shortcut<V4> {
        Shortcut {
            key: CtKey::of(tuple),
            program: NOW.program,
            window: NOW.window,
            stamp: NOW.stamp,
            backend: 0,
            generation: 0,
            id: 0,
            mending: Mending { addresses: 0, all: 0 },
            src: tuple.src,
            dst: tuple.dst,
            sport: tuple.sport,
            dport: tuple.dport,
            hop: Hop { kind: hop::POD, epoch: NOW.epoch, ingress: NOW.ingress, target: 3, mac: Mac::ZERO, reserved: 0 },
            link: Link::NONE,
        }
    }

    #[test]
    fn a_link_is_the_beginning_of_a_frame() {
        let link = Link::to(Mac { bytes: [2, 3, 4, 5, 6, 7] }, Mac { bytes: [10, 11, 12, 13, 14, 15] });
        assert_eq!(link.words.map(u32::to_ne_bytes).concat(), [2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15]);
        assert!(link.is_known());
        assert!(Link::to(Mac { bytes: [0, 0, 0, 0, 0, 1] }, Mac::ZERO).is_known());
        assert!(!Link::to(Mac::ZERO, Mac { bytes: [2; 6] }).is_known() && !Link::NONE.is_known());
    }

    #[test]
    fn a_shortcut_holds_for_its_flow_under_its_conditions_only() {
        let own = tuple(2, 40_000);
        let shortcut = kept(&own);
        assert!(shortcut.holds(&own, &NOW));
        assert_eq!(shortcut.translated(), own);
        for other in [
            tuple(3, 40_000),
            tuple(2, 40_001),
            Tuple { dst: Ip4::new(10, 96, 0, 2), ..own },
            Tuple { dport: Port::from_host(81), ..own },
            Tuple { proto: proto::UDP, ..own },
        ] {
            assert!(!shortcut.holds(&other, &NOW), "{other:?}");
        }
        for later in [
            Now { stamp: 6, ..NOW },
            Now { epoch: 7, ..NOW },
            Now { window: 8, ..NOW },
            Now { program: 3, ..NOW },
            Now { ingress: 10, ..NOW },
        ] {
            assert!(!shortcut.holds(&own, &later), "{later:?}");
        }
    }

    #[test]
    fn a_window_is_a_part_of_every_timeout() {
        assert_eq!(window(63), 0);
        assert_eq!(window(64), 1);
        // At the slowest clock that Linux has.
        const HZ: u64 = 100;
        assert!(window(u64::from(crate::timeout::ICMP) * HZ) > 5);
    }

    #[test]
    fn flows_of_neighbours_spread_over_slots_and_stamps() {
        const FLOWS: usize = 1024;
        let mut slots = [0u8; SLOTS as usize];
        let mut stamps = [0u8; STAMPS as usize];
        for host in 0..32 {
            for port in 0..32 {
                let hash = hash(&tuple(host, 40_000 + port));
                slots[slot(hash) as usize] += 1;
                stamps[stamp(hash) as usize] += 1;
            }
        }
        // Thrown at random, 1,024 balls would hit some 906 of 4,096 boxes.
        assert!(slots.iter().filter(|&&n| n > 0).count() > FLOWS * 8 / 10);
        assert!(stamps.iter().filter(|&&n| n > 0).count() > FLOWS * 9 / 10);
    }
}
