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

/// The difference that a changed 32-bit word makes to a sum.
#[must_use]
#[inline(always)]
pub const fn difference(from: u32, to: u32) -> u64 {
    (!from) as u64 + to as u64
}

/// A 64-bit sum folded to 32 bits.
#[must_use]
#[inline(always)]
pub const fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// A transport checksum left to the device (`CHECKSUM_PARTIAL`: the field holds the sum of the pseudo header), after the pseudo header
/// changed by `difference`.
#[must_use]
#[inline(always)]
pub const fn mend_partial(check: u16, difference: u32) -> u16 {
    fold(check as u64 + difference as u64)
}

/// A whole transport checksum after what it covers changed by `difference`. `optional` is UDP's: zero says that there is none, and stays;
/// a sum of zero is written as its other form (RFC 768).
#[must_use]
#[inline(always)]
pub const fn mend_whole(check: u16, difference: u32, optional: bool) -> u16 {
    if optional && check == 0 {
        return 0;
    }
    let mended = !fold((!check) as u64 + difference as u64);
    if optional && mended == 0 { 0xffff } else { mended }
}

abi! {
    /// What a translation does to a packet's checksums: differences of sums, folded to 32 bits.
    pub struct Mending {
        /// Of the addresses alone: for the IP header and the pseudo header.
        pub addresses: u32,
        /// Of addresses and ports.
        pub all: u32,
    }
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
        fn a_mended_checksum_equals_a_fresh_one(mut bytes in proptest::collection::vec(any::<u8>(), 12..64), to: [u32; 2]) {
            bytes[9] |= 1;
            let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let before = of(&bytes);
            let partial = !before;
            let changed = fold32(difference(word(&bytes, 0), to[0]) + difference(word(&bytes, 4), to[1]));
            bytes[..4].copy_from_slice(&to[0].to_ne_bytes());
            bytes[4..8].copy_from_slice(&to[1].to_ne_bytes());
            let after = of(&bytes);
            prop_assert_eq!(mend_whole(before, changed, false), after);
            prop_assert_eq!(mend_partial(partial, changed), !after);
            if before != 0 {
                prop_assert_eq!(mend_whole(before, changed, true), if after == 0 { 0xffff } else { after });
            }
        }
    }

    #[test]
    fn a_datagram_without_a_checksum_gets_none() {
        assert_eq!(mend_whole(0, 0x1234, true), 0);
        assert_ne!(mend_whole(0, 0x1234, false), 0, "TCP has no such thing");
        // A sum of zero is written as its other form, or it would say that there is none.
        assert_eq!(mend_whole(1, fold32(difference(0, 1)), true), 0xffff);
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
