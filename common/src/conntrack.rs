//! Tracked flows: the map `CONNTRACK`.
//!
//! A key names the two ends in a canonical order, so that both directions of one conversation meet the same entry and a
//! packet learns, in one lookup, whether it runs with the entry or against it. A translated flow has two entries, made and removed
//! together: [`kind::ORIGINAL`] under the tuple the client uses, [`kind::REPLY`] under the one the backend answers with;
//! each holds the translation for packets that run its way, and so the other's key. An untranslated flow of a pod has
//! one entry, [`kind::DIRECT`]: it reserves the tuple, so that no translated flow can be laid over a live direct one.

use crate::{
    flow::Tuple,
    net::{Family, Port},
};

/// What an entry is ([`CtEntry::kind`]).
pub mod kind {
    /// Not translated; holds its tuple.
    pub const DIRECT: u8 = 0;
    /// Client towards the Service or the outside.
    pub const ORIGINAL: u8 = 1;
    /// Backend or outside towards the client.
    pub const REPLY: u8 = 2;
}

/// What was seen of a flow ([`CtEntry::seen`]): bits for packets that run with the entry; shifted left by four, against it.
pub mod seen {
    /// Any packet.
    pub const ANY: u8 = 1;
    /// A TCP FIN.
    pub const FIN: u8 = 2;
    /// A TCP RST, and nothing since.
    pub const RST: u8 = 4;
    /// Shift for packets that run against the entry.
    pub const AGAINST: u32 = 4;
}

abi! {
    /// Key of `CONNTRACK`: both ends in canonical order (`low` is the end whose address, then port, loads smaller).
    pub struct CtKey<F> {
        /// Address of the low end.
        pub low: F::Addr,
        /// Address of the high end.
        pub high: F::Addr,
        /// Port of the low end.
        pub low_port: Port,
        /// Port of the high end.
        pub high_port: Port,
        /// IP protocol number, widened so that the key has no padding.
        pub proto: u32,
    }

    /// Value of `CONNTRACK`.
    pub struct CtEntry<F> {
        /// Source that a packet running this entry's way leaves with.
        pub src: F::Addr,
        /// Destination likewise.
        pub dst: F::Addr,
        /// Source port likewise.
        pub sport: Port,
        /// Destination port likewise.
        pub dport: Port,
        /// When a packet last met this entry, in seconds of CLOCK_MONOTONIC.
        pub last_seen: u32,
        /// Backend id of a Service's flow, else 0.
        pub backend: u32,
        /// [`Backend::generation`](crate::service::Backend::generation) when the backend was chosen.
        pub generation: u32,
        /// One of [`kind`].
        pub kind: u8,
        /// 1 if the entry's way runs from the low end to the high end.
        pub from_low: u8,
        /// Bits of [`seen`].
        pub seen: u8,
        /// Zero.
        pub reserved: u8,
    }
}

impl<F: Family> CtKey<F> {
    /// The key of a packet, and whether the packet runs from the low end to the high end.
    #[must_use]
    #[inline(always)]
    pub fn of(tuple: &Tuple<F>) -> (Self, bool) {
        let from_low = F::raw_before(tuple.src, tuple.dst) || (tuple.src == tuple.dst && tuple.sport.be <= tuple.dport.be);
        let key = if from_low {
            Self { low: tuple.src, high: tuple.dst, low_port: tuple.sport, high_port: tuple.dport, proto: tuple.proto as u32 }
        } else {
            Self { low: tuple.dst, high: tuple.src, low_port: tuple.dport, high_port: tuple.sport, proto: tuple.proto as u32 }
        };
        (key, from_low)
    }

    /// The tuple of a packet with this key that runs the given way.
    #[must_use]
    pub fn tuple(&self, from_low: bool) -> Tuple<F> {
        let forward =
            Tuple { src: self.low, dst: self.high, sport: self.low_port, dport: self.high_port, proto: self.proto as u8 };
        if from_low { forward } else { forward.reversed() }
    }
}

impl<F: Family> CtEntry<F> {
    /// The tuple that a packet running this entry's way leaves with.
    #[must_use]
    #[inline(always)]
    pub fn translated(&self, proto: u8) -> Tuple<F> {
        Tuple { src: self.src, dst: self.dst, sport: self.sport, dport: self.dport, proto }
    }

    /// The key of the other half of a translated flow.
    #[must_use]
    #[inline(always)]
    pub fn peer(&self, proto: u8) -> CtKey<F> {
        CtKey::of(&self.translated(proto)).0
    }

    /// Whether a packet that runs `from_low` runs this entry's way.
    #[must_use]
    #[inline(always)]
    pub fn runs_with(&self, from_low: bool) -> bool {
        self.from_low == from_low as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ip4, V4, proto};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn both_directions_share_a_key_and_differ_in_way(src: u32, dst: u32, sport: u16, dport: u16) {
            prop_assume!((src, sport) != (dst, dport));
            let tuple = Tuple::<V4> {
                src: Ip4 { be: src }, dst: Ip4 { be: dst }, sport: Port { be: sport }, dport: Port { be: dport }, proto: proto::TCP,
            };
            let (key, way) = CtKey::of(&tuple);
            let (back, other_way) = CtKey::of(&tuple.reversed());
            prop_assert_eq!(key, back);
            prop_assert_ne!(way, other_way);
            prop_assert_eq!(key.tuple(way), tuple);
        }
    }
}
