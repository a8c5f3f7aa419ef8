//! TCP flags and the segment that refuses a connection (RFC 9293).

/// Flags in the fourteenth byte of the header.
pub mod flag {
    /// The sender is done.
    pub const FIN: u8 = 0x01;
    /// The beginning.
    pub const SYN: u8 = 0x02;
    /// The connection is over.
    pub const RST: u8 = 0x04;
    /// The acknowledgment number counts.
    pub const ACK: u8 = 0x10;
}

/// What turns a header's first four words, as stored, into the reset that answers a SYN; `None` if it is no SYN.
///
/// RFC 9293, 3.5.2, group 1: sequence number 0, acknowledging the SYN. Ports change places. Length and options stay: the packet is not
/// cut, so that a checksum that is still to be filled in stays where it is.
#[must_use]
#[inline(always)]
pub const fn reset(header: [u32; 4]) -> Option<[u32; 4]> {
    let [ports, seq, _, last] = header;
    let [offset, flags, ..] = last.to_ne_bytes();
    if flags & (flag::SYN | flag::ACK | flag::RST | flag::FIN) != flag::SYN {
        return None;
    }
    let acknowledges = u32::from_be(seq).wrapping_add(1).to_be();
    Some([ports.rotate_left(16), 0, acknowledges, u32::from_ne_bytes([offset & 0xf0, flag::RST | flag::ACK, 0, 0])])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8) -> [u32; 4] {
        [[0x9c, 0x40, 0, 80], [0xff; 4], [0; 4], [0xa0, flags, 0xfa, 0xf0]].map(u32::from_ne_bytes)
    }

    #[test]
    fn a_syn_is_answered_with_a_reset_that_acknowledges_it() {
        let answer = reset(header(flag::SYN)).map(|words| words.map(u32::to_ne_bytes));
        assert_eq!(answer, Some([[0, 80, 0x9c, 0x40], [0; 4], [0; 4], [0xa0, 0x14, 0, 0]]), "the sequence number wraps");
    }

    #[test]
    fn nothing_else_is() {
        for flags in [0, flag::ACK, flag::SYN | flag::ACK, flag::SYN | flag::RST, flag::SYN | flag::FIN] {
            assert_eq!(reset(header(flags)), None, "{flags:#x}");
        }
    }
}
