//! Whether the agent's loop turns.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Beats with each turn of the loop, which takes the state's lock: a turn that does not come means that the loop or whoever has the lock is
/// stuck. What the API server does is no part of it.
#[derive(Debug)]
pub(super) struct Pulse {
    origin: Instant,
    /// Milliseconds since the origin, 0 before the first.
    last: AtomicU64,
}

impl Pulse {
    /// The loop looks at everything twice a minute; writing the largest cluster takes seconds.
    const PATIENCE: Duration = Duration::from_secs(180);

    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), last: AtomicU64::new(0) }
    }

    /// The loop has come round.
    pub(super) fn beat(&self) {
        self.beat_at(self.origin.elapsed());
    }

    fn beat_at(&self, elapsed: Duration) {
        self.last.store(millis(elapsed).max(1), Relaxed);
    }

    /// Why a new process should be tried.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_at(self.origin.elapsed())
    }

    fn check_at(&self, elapsed: Duration) -> Result<(), String> {
        let last = match self.last.load(Relaxed) {
            // Waiting for the first cluster state is no fault of ours.
            0 => return Ok(()),
            last => Duration::from_millis(last),
        };
        let silent = elapsed.saturating_sub(last);
        if silent <= Self::PATIENCE {
            return Ok(());
        }
        Err(format!("the agent's loop has not come round for {} s: it is stuck; its log says at what", silent.as_secs()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_is_told_and_one_that_was_never_started_is_not() {
        let pulse = Pulse::new();
        let hour = Duration::from_secs(3600);
        assert_eq!(pulse.check_at(hour), Ok(()));
        pulse.beat_at(hour);
        assert_eq!(pulse.check_at(hour + Pulse::PATIENCE), Ok(()));
        let error = pulse.check_at(hour + Pulse::PATIENCE + Duration::from_secs(1)).unwrap_err();
        assert!(error.contains("for 181 s"), "{error}");
        pulse.beat_at(hour + hour);
        assert_eq!(pulse.check_at(hour + hour), Ok(()));
        assert_eq!(Pulse::new().check(), Ok(()));
    }
}
