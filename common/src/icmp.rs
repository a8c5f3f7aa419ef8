//! ICMP numbers and the header of an error (RFC 792).

use crate::{checksum, net::Ip4};

/// ICMP types.
pub mod kind {
    /// Echo reply.
    pub const ECHO_REPLY: u8 = 0;
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 3;
    /// Echo request.
    pub const ECHO: u8 = 8;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// What we answer: the type in the upper byte, the code in the lower one.
pub mod answer {
    use super::kind;

    /// Host unreachable.
    pub const HOST_UNREACHABLE: u16 = (kind::UNREACHABLE as u16) << 8 | 1;
    /// Port unreachable: `connect()` fails with ECONNREFUSED.
    pub const PORT_UNREACHABLE: u16 = (kind::UNREACHABLE as u16) << 8 | 3;
    /// Fragmentation needed and DF set (RFC 1191).
    pub const TOO_BIG: u16 = (kind::UNREACHABLE as u16) << 8 | 4;
    /// The last hop was here.
    pub const TTL_EXCEEDED: u16 = (kind::TIME_EXCEEDED as u16) << 8;
}

/// What an error quotes of a packet without IP options: RFC 792 asks for the header and 64 bits more.
pub mod quote {
    /// IP header and 8 bytes.
    pub const SHORT: u32 = 28;
    /// IP header and TCP header: the kernel does not cut a packet in front of a checksum that is still to be filled in.
    pub const TCP: u32 = 40;
}

/// Length of the new IP and ICMP headers in front of the quote.
pub const HEADERS: u32 = 28;

/// The IPv4 and ICMP headers of an error with a quote of `quote_len` bytes, as 32-bit words as stored.
///
/// `what` is one of [`answer`]; `quote_sum` is the unfolded sum of the quote's 16-bit words as loaded; `mtu` goes with [`answer::TOO_BIG`] and is 0 otherwise.
#[must_use]
#[inline(always)]
pub const fn error(src: Ip4, dst: Ip4, what: u16, mtu: u16, quote_len: u32, quote_sum: u32) -> [u32; 7] {
    let first = (0x4500_0000_u32 | (HEADERS + quote_len)).to_be();
    // TTL 64, protocol 1, no fragment bits, identification 0.
    let third = 0x4001_0000_u32.to_be();
    let ip = first as u64 + third as u64 + src.be as u64 + dst.be as u64;
    let ip_check = !checksum::fold(ip);
    let icmp = ((what as u32) << 16).to_be();
    let rest = (mtu as u32).to_be();
    let icmp_check = !checksum::fold(icmp as u64 + rest as u64 + quote_sum as u64);
    [first, 0, third | low_half(ip_check), src.be, dst.be, icmp | low_half(icmp_check), rest]
}

/// A checksum as the last two bytes of a stored word.
#[inline(always)]
const fn low_half(check: u16) -> u32 {
    let [a, b] = check.to_ne_bytes();
    u32::from_ne_bytes([0, 0, a, b])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_checksums_hold() {
        let quote: [u8; quote::SHORT as usize] = core::array::from_fn(|i| i as u8 * 7);
        let sum: u32 = quote.chunks(2).map(|w| u32::from(u16::from_ne_bytes([w[0], w[1]]))).sum();
        let words = error(Ip4::new(10, 96, 0, 1), Ip4::new(10, 244, 1, 2), answer::TOO_BIG, 1450, quote::SHORT, sum);
        let headers: [u8; HEADERS as usize] = core::array::from_fn(|i| words[i / 4].to_ne_bytes()[i % 4]);
        assert_eq!(&headers[..4], &[0x45, 0, 0, 56]);
        assert_eq!(checksum::of(&headers[..20]), 0);
        let mut message = [0u8; 36];
        message[..8].copy_from_slice(&headers[20..]);
        message[8..].copy_from_slice(&quote);
        assert_eq!(&message[..2], &[3, 4]);
        assert_eq!(&message[6..8], &1450u16.to_be_bytes());
        assert_eq!(checksum::of(&message), 0);
    }
}
