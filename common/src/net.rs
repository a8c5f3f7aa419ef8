//! Addresses, ports and MACs as they stand in a packet: network order inside, host integers through accessors.

use core::fmt;

/// An address family that the dataplane is instantiated for.
///
/// IPv4 is the instance that has maps today; stages name only this trait.
pub trait Family: Copy + Eq + Ord + fmt::Debug + core::hash::Hash + 'static {
    /// An address of this family, in network order.
    type Addr: Copy + Eq + Ord + fmt::Debug + fmt::Display + core::hash::Hash + 'static;

    /// `EtherType` of the family (host order), IANA "IEEE 802 Numbers".
    const ETHERTYPE: u16;

    /// 32 bits that depend on all of an address.
    fn word(addr: Self::Addr) -> u32;
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct V4;

impl Family for V4 {
    type Addr = Ip4;
    const ETHERTYPE: u16 = 0x0800;

    #[inline(always)]
    fn word(addr: Ip4) -> u32 {
        addr.be
    }
}

abi! {
    /// An IPv4 address in network order. Ordered as loaded, not numerically: see [`Ip4::to_host`].
    pub struct Ip4 {
        /// The address as it stands in the packet.
        pub be: u32,
    }
}

abi! {
    /// A transport port, or an ICMP echo identifier, in network order.
    pub struct Port {
        /// The port as it stands in the packet.
        pub be: u16,
    }

    /// An Ethernet address.
    pub struct Mac {
        /// The six bytes in wire order.
        pub bytes: [u8; 6],
    }
}

impl Ip4 {
    /// 0.0.0.0.
    pub const UNSPECIFIED: Self = Self { be: 0 };

    /// From the four octets as one reads them.
    #[must_use]
    pub const fn new(a: u8, b: u8, c: u8, d: u8) -> Self {
        Self { be: u32::from_ne_bytes([a, b, c, d]) }
    }

    /// From a host-order integer.
    #[must_use]
    #[inline(always)]
    pub const fn from_host(value: u32) -> Self {
        Self { be: value.to_be() }
    }

    /// As a host-order integer, which sorts numerically.
    #[must_use]
    #[inline(always)]
    pub const fn to_host(self) -> u32 {
        u32::from_be(self.be)
    }

    /// Whether this is 127.0.0.0/8 (RFC 1122, 3.2.1.3).
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        self.to_host() >> 24 == 127
    }

    /// Whether this is 224.0.0.0/4 or the limited broadcast address (RFC 1112, RFC 919).
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast_or_broadcast(self) -> bool {
        self.to_host() >> 28 == 0xe || self.be == u32::MAX
    }
}

impl fmt::Display for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        core::net::Ipv4Addr::from(*self).fmt(f)
    }
}

impl From<core::net::Ipv4Addr> for Ip4 {
    fn from(addr: core::net::Ipv4Addr) -> Self {
        Self { be: u32::from_ne_bytes(addr.octets()) }
    }
}

impl From<Ip4> for core::net::Ipv4Addr {
    fn from(addr: Ip4) -> Self {
        Self::from(addr.be.to_ne_bytes())
    }
}

impl Port {
    /// No port: protocols without one, and fragments before their port is known.
    pub const NONE: Self = Self { be: 0 };

    /// From a host-order integer.
    #[must_use]
    #[inline(always)]
    pub const fn from_host(value: u16) -> Self {
        Self { be: value.to_be() }
    }

    /// As a host-order integer.
    #[must_use]
    #[inline(always)]
    pub const fn to_host(self) -> u16 {
        u16::from_be(self.be)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_host().fmt(f)
    }
}

impl Mac {
    /// All zero: "not known".
    pub const ZERO: Self = Self { bytes: [0; 6] };

    /// The first four bytes as loaded, for a single store.
    #[must_use]
    #[inline(always)]
    pub const fn head(self) -> u32 {
        u32::from_ne_bytes([self.bytes[0], self.bytes[1], self.bytes[2], self.bytes[3]])
    }

    /// The last two bytes as loaded, for a single store.
    #[must_use]
    #[inline(always)]
    pub const fn tail(self) -> u16 {
        u16::from_ne_bytes([self.bytes[4], self.bytes[5]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.bytes;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl core::str::FromStr for Mac {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(ParseMacError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() { Err(ParseMacError) } else { Ok(Self { bytes }) }
    }
}

/// A text that is not six colon-separated hexadecimal bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseMacError;

impl fmt::Display for ParseMacError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an Ethernet address: want six hexadecimal bytes with colons, as 02:42:ac:11:00:02")
    }
}

impl core::error::Error for ParseMacError {}

/// IP protocol numbers (IANA "Protocol Numbers").
pub mod proto {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// SCTP.
    pub const SCTP: u8 = 132;
}
