//! Maglev tables (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
//!
//! A table depends on its backends' addresses and ports alone, so that every node of every architecture builds the same one; and when a
//! backend comes or goes, nearly all places keep theirs.

use std::net::Ipv4Addr;

use crate::compile::desired::Target;

/// Primes; the smallest that gives each backend [`PLACES`] or more, so that no backend has more than 1/25 above its share.
const SIZES: [u32; 6] = [251, 1021, 4093, 16_381, 65_521, 262_139];
const PLACES: usize = 25;

/// How many places the table of so many backends has.
pub(super) fn size(backends: usize) -> u32 {
    let largest = SIZES[SIZES.len() - 1];
    match backends {
        0 => 0,
        _ => SIZES.into_iter().find(|&size| backends.saturating_mul(PLACES) <= size as usize).unwrap_or(largest),
    }
}

/// Which of the backends has each place, by its index. Their order only decides between those that want the same place in the same turn.
pub(super) fn table(backends: &[Target]) -> Vec<u32> {
    let size = size(backends.len());
    let mut order: Vec<(Target, u32)> = backends.iter().copied().zip(0..).collect();
    order.sort_unstable_by_key(|(target, _)| (target.addr.to_host(), target.port.to_host()));
    let mut turns: Vec<Turn> = order.iter().map(|(target, index)| Turn::of(target, *index, size)).collect();
    let mut table = vec![u32::MAX; size as usize];
    let mut left = size;
    while left > 0 {
        for turn in &mut turns {
            if left == 0 {
                break;
            }
            while table[turn.place as usize] != u32::MAX {
                turn.advance(size);
            }
            table[turn.place as usize] = turn.backend;
            turn.advance(size);
            left -= 1;
        }
    }
    table
}

/// A backend's way through all places, in its own order.
struct Turn {
    backend: u32,
    place: u32,
    skip: u32,
}

impl Turn {
    fn of(target: &Target, backend: u32, size: u32) -> Self {
        let [a, b, c, d] = Ipv4Addr::from(target.addr).octets();
        let [high, low] = target.port.to_host().to_be_bytes();
        let hash = hash(&[a, b, c, d, high, low]);
        // The size is a prime: every skip but 0 comes past every place.
        Self { backend, place: (hash >> 32) as u32 % size, skip: hash as u32 % (size - 1) + 1 }
    }

    fn advance(&mut self, size: u32) {
        self.place = (self.place + self.skip) % size;
    }
}

/// FNV-1a with a finish that spreads every bit over the whole (that of splitmix64): nodes of all versions must agree on it.
fn hash(bytes: &[u8]) -> u64 {
    let folded = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mixed = (folded ^ folded >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shunt_common::net::{Ip4, Port};

    use super::*;

    fn target(n: u16) -> Target {
        let [high, low] = n.to_be_bytes();
        Target { addr: Ip4::new(10, 244, high, low), port: Port::from_host(8080) }
    }

    /// Who has each place.
    fn holders(backends: &[Target]) -> Vec<Target> {
        table(backends).into_iter().map(|index| backends[index as usize]).collect()
    }

    #[test]
    fn sizes_are_primes_that_leave_room() {
        for size in SIZES {
            assert!((2..size).take_while(|divisor| divisor * divisor <= size).all(|divisor| size % divisor != 0), "{size}");
        }
        for (backends, expected) in [(0, 0), (1, 251), (10, 251), (11, 1021), (40, 1021), (41, 4093), (1000, 65_521)] {
            assert_eq!(size(backends), expected, "{backends}");
        }
        assert_eq!(size(usize::MAX), 262_139);
    }

    /// A change here breaks up connections wherever nodes of two versions serve one address.
    #[test]
    fn the_table_is_the_same_for_ever() {
        assert_eq!(hash(&[10, 244, 0, 1, 0x1f, 0x90]), 0x089d_fd50_40da_72cb);
        let places: Vec<u32> = table(&[target(1), target(2), target(3)]).into_iter().take(24).collect();
        assert_eq!(places, [1, 2, 1, 1, 0, 0, 1, 2, 2, 1, 2, 0, 2, 2, 0, 1, 0, 1, 1, 0, 0, 0, 0, 2]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn places_are_shared_evenly_whatever_the_order(backends in proptest::collection::btree_set(any::<u16>(), 1..60), turn in any::<u16>()) {
            let mut backends: Vec<Target> = backends.into_iter().map(target).collect();
            let table = holders(&backends);
            let counts: Vec<_> = backends.iter().map(|backend| table.iter().filter(|holder| *holder == backend).count()).collect();
            let fair = table.len() / backends.len();
            prop_assert!(counts.iter().all(|&count| count == fair || count == fair + 1), "{counts:?}");
            let middle = usize::from(turn) % backends.len();
            backends.rotate_left(middle);
            prop_assert_eq!(holders(&backends), table);
        }

        #[test]
        fn who_stays_keeps_nearly_all(backends in proptest::collection::btree_set(any::<u16>(), 12..40), gone in any::<proptest::sample::Index>()) {
            let all: Vec<Target> = backends.into_iter().map(target).collect();
            let mut fewer = all.clone();
            let gone = fewer.remove(gone.index(all.len()));
            let (before, after) = (holders(&all), holders(&fewer));
            prop_assert_eq!(before.len(), after.len(), "of one size");
            let moved = before.iter().zip(&after).filter(|(before, after)| before != after && **before != gone).count();
            // Of 20,000 clusters like these the worst moves 11 %; by a remainder nine of ten places would.
            prop_assert!(moved * 5 < before.len(), "{moved} of {} places moved without need", before.len());
        }
    }
}
