//! Drops in the log: a line when packets begin to be dropped for a reason, and ever rarer ones while that goes on. The counters and
//! `shunt monitor --drops` have the rest.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use shunt_common::{maps, verdict::DropReason};

use crate::kernel::{maps::Counts, pins::PinDir, table::TableError};

/// Between looks at the counters.
const LOOK: Duration = Duration::from_secs(10);

/// Between lines of one reason: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LAST_PAUSE: Duration = Duration::from_secs(3600);

/// Looks and logs for as long as the agent runs.
pub(super) async fn run(dir: PinDir) {
    let mut log = DropLog::default();
    loop {
        // What cannot be read now is read at the next look.
        if let Ok(counts) = read(&dir) {
            for line in log.look(Instant::now(), &counts) {
                let Line { reason, packets, seconds } = line;
                let (word, what) = (reason.name(), reason.help());
                if is_usual(reason) {
                    tracing::debug!(reason = word, packets, seconds, "packets are dropped: {what}");
                } else {
                    tracing::warn!(reason = word, packets, seconds, "packets are dropped: {what}");
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What pods' own stacks send without being asked; dropping it is in order, day and night.
fn is_usual(reason: DropReason) -> bool {
    matches!(reason, DropReason::Ipv6Unsupported | DropReason::Multicast)
}

fn read(dir: &PinDir) -> Result<Vec<(DropReason, u64)>, TableError> {
    let counts = Counts::open(&maps::DROPS, &dir.map(&maps::DROPS))?;
    DropReason::ALL.iter().map(|reason| Ok((*reason, counts.get(*reason as u32)?))).collect()
}

/// A line to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    reason: DropReason,
    /// Since the last line of this reason, or since the first look.
    packets: u64,
    /// In this time.
    seconds: u64,
}

#[derive(Debug)]
struct Reason {
    /// At the last line, and when that was.
    told: u64,
    told_at: Instant,
    /// At the last look that saw it grow.
    seen: u64,
    grew_at: Instant,
    /// Until the next line.
    pause: Duration,
}

#[derive(Debug, Default)]
struct DropLog {
    reasons: BTreeMap<DropReason, Reason>,
}

impl DropLog {
    /// The lines that are due. What was counted before the first look belongs to an earlier agent's log.
    fn look(&mut self, now: Instant, counts: &[(DropReason, u64)]) -> Vec<Line> {
        let mut lines = Vec::new();
        for &(reason, count) in counts {
            let fresh = Reason { told: count, told_at: now, seen: count, grew_at: now, pause: Duration::ZERO };
            let known = self.reasons.entry(reason).or_insert(fresh);
            if count < known.seen {
                // The map was made anew.
                (known.told, known.seen) = (0, 0);
            }
            if count > known.seen {
                (known.seen, known.grew_at) = (count, now);
            } else if now.duration_since(known.grew_at) >= known.pause {
                // It has ended: the next begin is news.
                known.pause = Duration::ZERO;
            }
            if known.seen > known.told && now.duration_since(known.told_at) >= known.pause {
                let seconds = now.duration_since(known.told_at).as_secs();
                lines.push(Line { reason, packets: known.seen - known.told, seconds });
                (known.told, known.told_at) = (known.seen, now);
                known.pause = (known.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: DropReason = DropReason::NoRoute;

    /// Looks each 10 s with what `count` says; when there was a line, and of how many packets.
    fn told(seconds: u64, count: impl Fn(u64) -> u64) -> Vec<(u64, u64)> {
        let (start, mut log) = (Instant::now(), DropLog::default());
        let looks = (0..=seconds).step_by(10);
        looks
            .flat_map(|second| {
                let lines = log.look(start + Duration::from_secs(second), &[(REASON, count(second))]);
                lines.into_iter().map(move |line| (second, line.packets))
            })
            .collect()
    }

    #[test]
    fn the_first_drop_is_told_at_once_and_what_was_before_is_not() {
        assert_eq!(told(600, |_| 1000), []);
        assert_eq!(told(600, |second| if second < 30 { 1000 } else { 1001 }), [(30, 1)]);
    }

    #[test]
    fn a_flood_is_told_ever_more_rarely() {
        let hour = told(3600, |second| second * 1000);
        let seconds: Vec<u64> = hour.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [10, 70, 190, 430, 910, 1870]);
        assert_eq!(hour[1], (70, 60_000));
        let day = told(86_400, |second| second);
        assert!(day.len() < 32, "{} lines a day", day.len());
        assert_eq!(day.iter().map(|(_, packets)| packets).sum::<u64>(), day.last().unwrap().0, "each packet in one line");
    }

    #[test]
    fn after_a_quiet_time_a_new_begin_is_told_at_once() {
        let bursts = told(4000, |second| u64::from(second >= 10) + u64::from(second >= 3000));
        assert_eq!(bursts, [(10, 1), (3000, 1)]);
    }

    #[test]
    fn a_counter_that_starts_anew_is_followed() {
        assert_eq!(told(100, |second| if second < 50 { 500 } else { 3 }), [(50, 3)]);
    }
}
