//! What is known of a fragmented datagram: the map `FRAGMENTS`.
//!
//! The first fragment carries the ports and leaves them for the others. One that comes before it cannot be translated: then the
//! whole datagram goes to the host's stack, which reassembles it and hands it back in order.

use crate::net::Port;

/// How the fragments of a datagram go on ([`Fragment::way`]).
pub mod way {
    /// The ports are known: treat every fragment as the first.
    pub const PORTS_KNOWN: u16 = 1;
    /// A later fragment came first: the host's stack puts the datagram together.
    pub const REASSEMBLE: u16 = 2;
}

/// Ticks after which a datagram's identification may be another's: as long as the kernel waits for the rest of one (IP_FRAG_TIME,
/// include/net/ip.h).
const LIFETIME: u16 = 30;

abi! {
    /// Key of `FRAGMENTS`: what identifies a datagram (RFC 791).
    pub struct FragmentKey<F> {
        /// Source address.
        pub src: F::Addr,
        /// Destination address.
        pub dst: F::Addr,
        /// Identification, as loaded.
        pub id: u32,
        /// IP protocol number in the low byte, the hook that saw it above: a datagram crosses several.
        pub proto_hook: u32,
    }
}

abi! {
    /// Value of `FRAGMENTS`.
    pub struct Fragment {
        /// One of [`way`].
        pub way: u16,
        /// When it was written: the low half of [`timeout::tick`](crate::timeout::tick).
        pub since: u16,
        /// Source port.
        pub sport: Port,
        /// Destination port.
        pub dport: Port,
    }
}

impl Fragment {
    /// Whether it is still about the datagram that it was written for.
    #[must_use]
    #[inline(always)]
    pub const fn holds(&self, now: u32) -> bool {
        (now as u16).wrapping_sub(self.since) <= LIFETIME
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_datagram_is_not_taken_for_the_next_with_its_identification() {
        let written = Fragment { way: way::PORTS_KNOWN, since: 65_530, sport: Port::NONE, dport: Port::NONE };
        assert!(written.holds(65_530) && written.holds(65_536 + 24), "half a minute, also where ticks begin anew");
        assert!(!written.holds(65_536 + 25) && !written.holds(65_529));
    }
}
