//! The choice of a backend.

use crate::{flow::Tuple, net::Family, shortcut};

/// Maps a uniformly random number onto `0..count` without division (Lemire's multiply-shift); 0 if `count` is 0.
#[must_use]
#[inline(always)]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

/// The slot of a flow in a Maglev table of `count` slots: the same on every node, for it depends on the client's packets alone.
#[must_use]
#[inline(always)]
pub fn of_flow<F: Family>(tuple: &Tuple<F>, count: u32) -> u32 {
    pick(shortcut::hash(tuple), count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Ip4, Port, V4, proto};

    #[test]
    fn flows_spread_over_a_table_and_keep_their_slot() {
        const SLOTS: u32 = 1021;
        let flow = |host: u8, port: u16| Tuple::<V4> {
            src: Ip4::new(198, 51, 100, host),
            dst: Ip4::new(203, 0, 113, 1),
            sport: Port::from_host(port),
            dport: Port::from_host(443),
            proto: proto::TCP,
        };
        let mut hits = [0u32; SLOTS as usize];
        for host in 1..=100 {
            for port in 40_000..40_200 {
                let slot = of_flow(&flow(host, port), SLOTS);
                assert_eq!(slot, of_flow(&flow(host, port), SLOTS));
                hits[slot as usize] += 1;
            }
        }
        // 20,000 flows, some 20 a slot.
        assert!(hits.iter().all(|&n| n > 0 && n < 60), "{:?}", (hits.iter().min(), hits.iter().max()));
        assert_eq!(of_flow(&flow(1, 1), 0), 0);
    }

    #[test]
    fn covers_the_range_evenly() {
        const BACKENDS: u32 = 7;
        let mut hits = [0u32; BACKENDS as usize];
        for step in 0..70_000u32 {
            hits[pick(step.wrapping_mul(0x9e37_79b9), BACKENDS) as usize] += 1;
        }
        assert!(hits.iter().all(|&n| (9_900..=10_100).contains(&n)), "{hits:?}");
        assert_eq!(pick(u32::MAX, BACKENDS), BACKENDS - 1);
        assert_eq!(pick(u32::MAX, 0), 0);
    }
}
