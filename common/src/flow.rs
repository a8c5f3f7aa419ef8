//! A packet's five-tuple, from where the packet stands.

use crate::net::{Family, Port};

/// Source and destination as one packet carries them. Not a map type: see [`CtKey`](crate::conntrack::CtKey).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port, or the identifier of an ICMP echo request.
    pub sport: Port,
    /// Destination port, or the identifier of an ICMP echo reply.
    pub dport: Port,
    /// IP protocol number.
    pub proto: u8,
}

impl<F: Family> Tuple<F> {
    /// The tuple of the answer.
    #[must_use]
    #[inline(always)]
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport, proto: self.proto }
    }
}
