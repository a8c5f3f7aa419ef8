//! How often one thing is written at most, when it fails or somebody else keeps writing another.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);

/// Grows with every attempt, and is forgotten once there has been none for twice the longest pause.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    last: Option<(Instant, Duration)>,
}

impl Pace {
    /// When the next attempt may be made, if not now.
    #[must_use]
    pub fn not_before(&self, now: Instant) -> Option<Instant> {
        self.last.map(|(at, pause)| at + pause).filter(|due| *due > now)
    }

    /// An attempt is made.
    pub fn attempt(&mut self, now: Instant) {
        let recent = self.last.filter(|(at, _)| now.saturating_duration_since(*at) < LONGEST * 2);
        let pause = recent.map_or(FIRST, |(_, pause)| (pause * 2).min(LONGEST));
        self.last = Some((now, pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_bound_and_are_forgotten_in_time_of_peace() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.not_before(now), None);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            pace.attempt(now);
            let due = pace.not_before(now).unwrap();
            assert_eq!(due - now, Duration::from_secs(seconds));
            now = due;
            assert_eq!(pace.not_before(now), None);
        }
        now += LONGEST * 2;
        pace.attempt(now);
        assert_eq!(pace.not_before(now).unwrap() - now, FIRST);
    }
}
