//! Internet checksum arithmetic (RFC 1071, RFC 1624), over words as they are loaded: the sum is byte-order independent.

/// Folds a sum of 16-bit words to 16 bits.
#[must_use]
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum after a 32-bit word at an even offset changed from `from` to `to` (RFC 1624, equation 3).
#[must_use]
#[inline(always)]
pub const fn replace32(check: u16, from: u32, to: u32) -> u16 {
    !fold((!check) as u64 + (!from) as u64 + to as u64)
}

/// The checksum after a 16-bit word changed from `from` to `to`.
#[must_use]
#[inline(always)]
pub const fn replace16(check: u16, from: u16, to: u16) -> u16 {
    !fold((!check) as u64 + (!from) as u64 + to as u64)
}

/// The checksum of words as loaded, their check field taken as zero.
#[must_use]
pub fn of(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    let mut words = bytes.chunks_exact(2);
    for word in &mut words {
        sum += u64::from(u16::from_ne_bytes([word[0], word[1]]));
    }
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    !fold(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn matches_the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(of(&bytes).to_ne_bytes(), [0x22, 0x0d]);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_fresh_sum(mut bytes in proptest::collection::vec(any::<u8>(), 8..64), to: u32, at in 0usize..1) {
            // A checksum's two zeros are the same number; a buffer of zeros alone could show either.
            bytes[7] |= 1;
            let before = of(&bytes);
            let from = u32::from_ne_bytes(bytes[at * 4..at * 4 + 4].try_into().unwrap());
            bytes[at * 4..at * 4 + 4].copy_from_slice(&to.to_ne_bytes());
            prop_assert_eq!(replace32(before, from, to), of(&bytes));
        }
    }
}
