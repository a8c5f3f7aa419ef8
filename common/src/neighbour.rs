//! When the kernel was last given a packet to send to a next hop: the map `NEIGHBOURS`.
//!
//! The kernel asks for a next hop's MAC again only if packets go by its neighbour's entry (`neigh_resolve_output` in net/core/neighbour.c). Those
//! for which programs write the Ethernet header themselves don't: so one of them is left to the kernel now and then.

/// Slots of `NEIGHBOURS`, a power of two.
pub const SLOTS: u32 = 1024;

/// For how long one packet is enough, in jiffies: two seconds with CONFIG_HZ=250 and never more than 5.12 s (HZ=100), about as long as the kernel
/// itself waits before it asks (`delay_first_probe_time`, 5 s).
pub const INTERVAL: u32 = 512;

/// The slot of a next hop, by the [word](crate::net::Family::word) of its address. It belongs to the one of them that was used last.
#[must_use]
#[inline(always)]
pub const fn slot(word: u32) -> u32 {
    word.wrapping_mul(0x9e37_79b1) >> (32 - SLOTS.trailing_zeros())
}

/// What is noted of a next hop that the kernel is given a packet for. All zero is nothing.
#[must_use]
#[inline(always)]
pub const fn used(word: u32, jiffies: u64) -> u64 {
    (word as u64) << 32 | jiffies & u32::MAX as u64
}

/// Whether what was noted says that the kernel looks after this next hop's entry.
#[must_use]
#[inline(always)]
pub const fn is_fresh(noted: u64, word: u32, jiffies: u64) -> bool {
    (noted >> 32) as u32 == word && (jiffies as u32).wrapping_sub(noted as u32) < INTERVAL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_one_next_hop_and_holds_for_a_while() {
        // Jiffies begin shortly before 32 bits of them are over (INITIAL_JIFFIES in include/linux/jiffies.h).
        for then in [0, 77, u64::from(u32::MAX) - 5, 1 << 40] {
            let noted = used(0x0102_0304, then);
            assert!(is_fresh(noted, 0x0102_0304, then));
            assert!(is_fresh(noted, 0x0102_0304, then + u64::from(INTERVAL) - 1));
            assert!(!is_fresh(noted, 0x0102_0304, then + u64::from(INTERVAL)));
            assert!(!is_fresh(noted, 0x0102_0305, then));
        }
        assert!(!is_fresh(0, 0x0102_0304, 0), "an empty slot");
    }

    #[test]
    fn next_hops_of_a_network_have_slots_of_their_own() {
        let mut slots = [0u8; SLOTS as usize];
        for host in 1..255 {
            slots[slot(u32::from_ne_bytes([192, 0, 2, host])) as usize] += 1;
        }
        assert!(slots.iter().filter(|&&n| n > 0).count() > 200);
    }
}
