//! The choice of a backend.

/// Maps a uniformly random number onto `0..count` without division (Lemire's multiply-shift); 0 if `count` is 0.
#[must_use]
#[inline(always)]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::pick;

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
