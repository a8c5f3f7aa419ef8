//! Whether `CONNTRACK` has room for new flows, as far as an operator should hear of it.

use std::time::{Duration, Instant};

/// Percentage of the table from which on little is missing, and below which all is well again.
const PRESSED: u64 = 90;
const EASED: u64 = 80;

/// How long a refusal is told of. Flows that fill the table for a moment are gone before anybody looks.
const MEMORY: Duration = Duration::from_secs(60);

/// Why the table is a trouble. The texts have no figures that change: those are in metrics and below `Maps` in `shunt status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Pressed {
    #[error(
        "CONNTRACK is full: packets that would have begun one flow more than the {flows} that fit are dropped (conntrack_full); live flows go \
         on. Raise `conntrackMax`, or see who holds so many with `shunt get conntrack`"
    )]
    Full { flows: u32 },
    #[error(
        "CONNTRACK is nearly full: more than {PRESSED} % of the {flows} flows that fit are there, and what comes on top will be dropped. \
         Raise `conntrackMax`, or see who holds so many with `shunt get conntrack`"
    )]
    NearlyFull { flows: u32 },
}

/// What was seen of the table.
#[derive(Debug, Default)]
pub(super) struct FlowTable {
    /// Drops for want of room until the last look; those from before the first are an earlier agent's news.
    refused: Option<u64>,
    refused_at: Option<Instant>,
    is_pressed: bool,
}

impl FlowTable {
    /// Of maps that are yet to be made: whatever is refused is news.
    pub(super) fn to_be_made() -> Self {
        Self { refused: Some(0), ..Self::default() }
    }

    /// After a sweep that left so many `entries` (two a flow) of so many that fit, with so many packets `refused` since the programs were
    /// loaded first.
    pub(super) fn look(&mut self, entries: u64, capacity: u32, refused: u64, now: Instant) -> Result<(), Pressed> {
        if self.refused.replace(refused).is_some_and(|before| refused > before) {
            self.refused_at = Some(now);
        }
        let percent = entries * 100 / u64::from(capacity.max(1));
        self.is_pressed = percent >= if self.is_pressed { EASED } else { PRESSED };
        let flows = capacity / 2;
        match self.refused_at {
            Some(at) if now.saturating_duration_since(at) < MEMORY => Err(Pressed::Full { flows }),
            _ if self.is_pressed => Err(Pressed::NearlyFull { flows }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_told_until_there_is_clearly_more() {
        let (mut table, now) = (FlowTable::default(), Instant::now());
        let mut told = |entries| table.look(entries, 2000, 0, now).is_err();
        assert_eq!([0, 1799, 1800, 1700, 1600, 1599, 1799].map(&mut told), [false, false, true, true, true, false, false]);
        assert_eq!(table.look(1900, 2000, 0, now), Err(Pressed::NearlyFull { flows: 1000 }));
    }

    #[test]
    fn a_refusal_is_told_for_a_minute_and_an_earlier_agents_is_not() {
        let (mut table, start) = (FlowTable::default(), Instant::now());
        let mut told = |refused, seconds| table.look(10, 2000, refused, start + Duration::from_secs(seconds));
        let full = Err(Pressed::Full { flows: 1000 });
        assert_eq!([told(7, 0), told(8, 5), told(8, 64), told(8, 65), told(9, 70)], [Ok(()), full, full, Ok(()), full]);
        assert_eq!(FlowTable::to_be_made().look(10, 2000, 7, start), full);
    }
}
