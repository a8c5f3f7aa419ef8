//! What is known of a fragmented datagram: the map `FRAGMENTS`.
//!
//! The first fragment carries the ports and leaves them for the others. One that comes before it cannot be translated: then the
//! whole datagram goes to the host's stack, which reassembles it and hands it back in order.

use crate::net::Port;

/// How the fragments of a datagram go on ([`Fragment::way`]).
pub mod way {
    /// The ports are known: treat every fragment as the first.
    pub const PORTS_KNOWN: u32 = 1;
    /// A later fragment came first: the host's stack puts the datagram together.
    pub const REASSEMBLE: u32 = 2;
}

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
        pub way: u32,
        /// Source port.
        pub sport: Port,
        /// Destination port.
        pub dport: Port,
    }
}
