//! Tracked flows: the map `CONNTRACK`.
//!
//! Every flow has two entries, made and removed together: [`kind::ORIGINAL`] under the tuple that its opener sends, [`kind::REPLY`]
//! under the tuple that the other end answers with. Each holds the tuple that a packet under its key leaves with, whose reverse is the
//! other's key. A direct flow of a pod has them too, with nothing translated: they reserve its tuples, so that no translated flow is
//! ever laid over a live direct one or the other way round.

use crate::{
    flow::Tuple,
    net::{Family, Mac, Port},
    timeout,
};

/// What an entry is ([`CtEntry::kind`]).
pub mod kind {
    /// From the opener.
    pub const ORIGINAL: u8 = 1;
    /// Towards the opener.
    pub const REPLY: u8 = 2;
}

/// Who translates the packets of a flow ([`CtEntry::translates`]).
pub mod translates {
    /// Nobody: they go on as they are.
    pub const NOTHING: u8 = 0;
    /// We do, as the entry says.
    pub const HERE: u8 = 1;
    /// The host's stack does, by a translation that it has known since before we came: its packets are left to it.
    pub const STACK: u8 = 2;
    /// The backend's node does, and answers by itself: packets of the opener go there as they are, with the name of the backend that the
    /// entry has. Those of the backend are not seen.
    pub const THERE: u8 = 3;
}

/// What becomes of a packet of a flow that is not known, by index 0 of the map `TAKEOVER`.
pub mod takeover {
    /// We decide, as ever.
    pub const NONE: u32 = 0;
    /// It is left to the host's stack, which may know it, unless it begins a connection.
    pub const TAKING: u32 = 1;
    /// It is left to the host's stack in any case.
    pub const GIVING_BACK: u32 = 2;
}

/// What was seen of packets under one entry ([`CtEntry::seen`]).
pub mod seen {
    /// Any packet.
    pub const ANY: u8 = 1;
    /// A TCP FIN.
    pub const FIN: u8 = 2;
    /// A TCP RST that its receiver believes, and nothing since.
    pub const RST: u8 = 4;
    /// A TCP segment that acknowledges, so that the other end has answered.
    pub const ACK: u8 = 8;
    /// A packet from the wire or the tunnel whose transport checksum stood in it, whole; noted only where the program at XDP asks for it.
    pub const WHOLE: u8 = 16;
    /// A TCP RST that its receiver would not believe, and nothing since.
    pub const STRAY_RST: u8 = 32;
}

/// Whether the receiver of a RST believes it: where it expects the sender to go on (RFC 9293, 3.10.7.4), which is what it acknowledged last. Both
/// by their highest byte.
///
/// That is 16 to 32 MiB: a flow's entry learns of an acknowledgement when a packet goes the long way, once in a [`window`](crate::shortcut::window).
/// Of resets with a random sequence number one in 128 is believed; who sends more in a window than that, and then resets, is not, and its flow is
/// kept for longer than it had to be.
#[must_use]
#[inline(always)]
pub const fn believes_reset(acknowledged: u8, sequence: u8) -> bool {
    sequence.wrapping_sub(acknowledged) <= 1
}

/// Where a packet goes once it is translated, as [`Hop::kind`] says it.
pub mod hop {
    /// Not known: look it up.
    pub const UNKNOWN: u32 = 0;
    /// To a pod of this node: `target` is its host-side interface, `mac` the pod's.
    pub const POD: u32 = 1;
    /// Through the tunnel: `target` is the peer's address in network order, `mac` its VTEP's.
    pub const TUNNEL: u32 = 2;
    /// To this host.
    pub const HOST: u32 = 3;
    /// To the outside with the node's address.
    pub const OUTSIDE: u32 = 4;
}

abi! {
    /// A flow's next hop, remembered so that its packets need no other look-up. Valid as long as nobody's address and no route has changed since
    /// (`EPOCH`), for packets that enter where the first one did: which also makes it proof that the source is not spoofed.
    pub struct Hop {
        /// One of [`hop`].
        pub kind: u32,
        /// Value of `EPOCH` when it was looked up.
        pub epoch: u32,
        /// The interface that the packets enter by.
        pub ingress: u32,
        /// See [`hop`].
        pub target: u32,
        /// See [`hop`].
        pub mac: Mac,
        /// Zero.
        pub reserved: u16,
    }
}

impl Hop {
    /// Nothing remembered.
    pub const UNKNOWN: Self = Self { kind: hop::UNKNOWN, epoch: 0, ingress: 0, target: 0, mac: Mac::ZERO, reserved: 0 };
}

abi! {
    /// Key of `CONNTRACK`: the tuple of a packet, as it stands in the packet.
    pub struct CtKey<F> {
        /// Source address.
        pub src: F::Addr,
        /// Destination address.
        pub dst: F::Addr,
        /// Source port.
        pub sport: Port,
        /// Destination port.
        pub dport: Port,
        /// IP protocol number, widened so that the key has no padding.
        pub proto: u32,
    }

    /// Value of `CONNTRACK`.
    pub struct CtEntry<F> {
        /// Source that a packet leaves with.
        pub src: F::Addr,
        /// Destination likewise.
        pub dst: F::Addr,
        /// Source port likewise.
        pub sport: Port,
        /// Destination port likewise.
        pub dport: Port,
        /// When a packet last met this entry: see [`timeout::tick`].
        pub last_seen: u32,
        /// Backend id of a Service's flow, else 0.
        pub backend: u32,
        /// [`Backend::generation`](crate::service::Backend::generation) when the backend was chosen.
        pub generation: u32,
        /// One of [`kind`].
        pub kind: u8,
        /// One of [`translates`]: `HERE` if the tuple that packets leave with differs from the key.
        pub translates: u8,
        /// Bits of [`seen`].
        pub seen: u8,
        /// Highest byte of the sequence number that a TCP packet acknowledged here last, see [`believes_reset`]; with [`seen::ACK`].
        pub acknowledged: u8,
        /// Where packets go.
        pub hop: Hop,
    }
}

impl<F: Family> CtKey<F> {
    /// The key of a packet.
    #[must_use]
    #[inline(always)]
    pub fn of(tuple: &Tuple<F>) -> Self {
        Self { src: tuple.src, dst: tuple.dst, sport: tuple.sport, dport: tuple.dport, proto: tuple.proto as u32 }
    }

    /// The tuple that this is the key of.
    #[must_use]
    #[inline(always)]
    pub fn tuple(&self) -> Tuple<F> {
        Tuple { src: self.src, dst: self.dst, sport: self.sport, dport: self.dport, proto: self.proto as u8 }
    }
}

impl<F: Family> CtEntry<F> {
    /// The opener's entry of a flow, under the key of `original`: its packets go on as `translated`.
    #[must_use]
    #[inline(always)]
    pub fn original(original: &Tuple<F>, translated: &Tuple<F>, backend: u32, generation: u32, now: u32) -> Self {
        let mut entry = Self::reply(original, translated, backend, generation, now);
        entry.turn(original, translated);
        entry
    }

    /// Makes a flow's [`reply`](Self::reply) the other half, in place: a program has no room for both.
    #[inline(always)]
    pub fn turn(&mut self, original: &Tuple<F>, translated: &Tuple<F>) {
        self.src = translated.src;
        self.dst = translated.dst;
        self.sport = translated.sport;
        self.dport = translated.dport;
        self.kind = kind::ORIGINAL;
        self.translates = (original != translated) as u8;
        self.seen = seen::ANY;
    }

    /// The other entry of the flow, under the key of the answer to `translated`.
    #[must_use]
    #[inline(always)]
    pub fn reply(original: &Tuple<F>, translated: &Tuple<F>, backend: u32, generation: u32, now: u32) -> Self {
        Self {
            src: original.dst,
            dst: original.src,
            sport: original.dport,
            dport: original.sport,
            last_seen: now,
            backend,
            generation,
            kind: kind::REPLY,
            translates: (original != translated) as u8,
            seen: 0,
            acknowledged: 0,
            hop: Hop::UNKNOWN,
        }
    }

    /// Both entries of a flow, each with its key.
    #[must_use]
    pub fn pair(original: &Tuple<F>, translated: &Tuple<F>, backend: u32, generation: u32, now: u32) -> [(CtKey<F>, Self); 2] {
        [
            (CtKey::of(original), Self::original(original, translated, backend, generation, now)),
            (CtKey::of(&translated.reversed()), Self::reply(original, translated, backend, generation, now)),
        ]
    }

    /// Both entries of a flow that the host's stack translates, from what it says of it.
    #[must_use]
    pub fn left_to_stack(original: &Tuple<F>, translated: &Tuple<F>, now: u32) -> [(CtKey<F>, Self); 2] {
        Self::pair(original, translated, 0, 0, now).map(|(key, entry)| (key, Self { translates: translates::STACK, ..entry }))
    }

    /// The tuple that a packet under this entry leaves with.
    #[must_use]
    #[inline(always)]
    pub fn translated(&self, proto: u8) -> Tuple<F> {
        Tuple { src: self.src, dst: self.dst, sport: self.sport, dport: self.dport, proto }
    }

    /// The key of the flow's other entry.
    #[must_use]
    #[inline(always)]
    pub fn peer(&self, proto: u8) -> CtKey<F> {
        CtKey::of(&self.translated(proto).reversed())
    }

    /// Whether the flow of this entry and its peer (if that still exists) has been silent for longer than its state allows.
    #[must_use]
    #[inline(always)]
    pub fn is_expired(&self, peer: Option<&Self>, proto: u8, now: u32) -> bool {
        let (peer_seen, last) = match peer {
            Some(peer) => {
                (peer.seen, if age(now, peer.last_seen) < age(now, self.last_seen) { peer.last_seen } else { self.last_seen })
            }
            None => (0, self.last_seen),
        };
        age(now, last) > self.timeout(peer_seen, proto)
    }

    /// Ticks of silence after which the flow of this entry is forgotten, from what was seen under its other entry.
    #[must_use]
    #[inline(always)]
    pub const fn timeout(&self, peer_seen: u8, proto: u8) -> u32 {
        if self.translates == translates::THERE {
            timeout::of_one_way(proto, self.seen | peer_seen)
        } else {
            timeout::of(proto, self.seen, peer_seen)
        }
    }

    /// Whether the TCP connection of this entry is over, from what was seen under its other entry.
    #[must_use]
    #[inline(always)]
    pub const fn is_closed(&self, peer_seen: u8) -> bool {
        if self.translates == translates::THERE {
            (self.seen | peer_seen) & (seen::FIN | seen::RST) != 0
        } else {
            timeout::is_closed(self.seen, peer_seen)
        }
    }
}

/// Ticks since `then`; 0 if another CPU's clock made it the future.
#[must_use]
#[inline(always)]
pub const fn age(now: u32, then: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if age > u32::MAX / 2 { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ip4, V4, proto};

    fn tuple(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16) -> Tuple<V4> {
        let ip = |[a, b, c, d]: [u8; 4]| Ip4::new(a, b, c, d);
        Tuple { src: ip(src), dst: ip(dst), sport: Port::from_host(sport), dport: Port::from_host(dport), proto: proto::TCP }
    }

    #[test]
    fn each_half_of_a_flow_names_the_other() {
        let original = tuple([10, 244, 1, 2], [10, 96, 0, 1], 40_000, 80);
        let translated = tuple([10, 244, 1, 2], [10, 244, 2, 3], 40_000, 8080);
        let [(ok, oe), (rk, re)] = CtEntry::pair(&original, &translated, 7, 1, 100);
        assert_eq!(oe.peer(proto::TCP), rk);
        assert_eq!(re.peer(proto::TCP), ok);
        assert_eq!(oe.translated(proto::TCP), translated);
        assert_eq!(re.translated(proto::TCP), original.reversed());
        assert_eq!((oe.translates, re.translates), (1, 1));
        assert_eq!(CtEntry::original(&original, &original, 0, 0, 0).translates, 0);
    }

    #[test]
    fn a_flow_lives_while_either_half_does() {
        let t = tuple([10, 244, 1, 2], [10, 96, 0, 1], 40_000, 80);
        let original = CtEntry::original(&t, &t, 0, 0, 100);
        let mut reply = CtEntry::reply(&t, &t, 0, 0, 100);
        assert!(!original.is_expired(Some(&reply), proto::TCP, 100 + timeout::SYN_SENT));
        assert!(original.is_expired(Some(&reply), proto::TCP, 101 + timeout::SYN_SENT));
        reply.seen = seen::ANY;
        reply.last_seen = 1000;
        assert!(!original.is_expired(Some(&reply), proto::TCP, 1000 + timeout::ESTABLISHED));
        assert!(!reply.is_expired(Some(&original), proto::TCP, 1000 + timeout::ESTABLISHED));
        assert!(reply.is_expired(Some(&original), proto::TCP, 1001 + timeout::ESTABLISHED));
        assert!(!reply.is_expired(Some(&original), proto::TCP, 99), "a clock that is behind expires nothing");
    }

    #[test]
    fn a_flow_whose_answers_go_another_way_lives_by_its_opener() {
        let t = tuple([198, 51, 100, 7], [192, 0, 2, 1], 40_000, 30_080);
        let to = tuple([198, 51, 100, 7], [10, 244, 2, 3], 40_000, 8080);
        let [(_, mut original), (_, mut reply)] = CtEntry::pair(&t, &to, 7, 1, 100);
        for entry in [&mut original, &mut reply] {
            entry.translates = translates::THERE;
        }
        let ends = |original: &CtEntry<V4>, after: u32| {
            assert!(!original.is_expired(Some(&reply), proto::TCP, 100 + after));
            assert!(original.is_expired(Some(&reply), proto::TCP, 101 + after));
            assert!(!reply.is_expired(Some(original), proto::TCP, 100 + after), "both halves end together");
            assert!(reply.is_expired(Some(original), proto::TCP, 101 + after));
        };
        ends(&original, timeout::SYN_SENT);
        original.seen |= seen::ACK;
        ends(&original, timeout::ESTABLISHED);
        assert!(!original.is_closed(0));
        original.seen |= seen::FIN;
        ends(&original, timeout::ONE_WAY_CLOSING);
        assert!(original.is_closed(0), "its tuple may serve another");
    }
}
