//! Forgets flows that have been silent for too long. Programs write `CONNTRACK`; here entries are only removed, both of a flow together.

use std::time::Duration;

use shunt_common::{
    conntrack::{CtEntry, CtKey, age, kind},
    net::V4,
    timeout,
};

use super::{
    sys::Cursor,
    table::{Table, TableError},
};

/// Between rounds.
const PAUSE: Duration = Duration::from_secs(5);

/// Between rounds while the table is nearly full, or a round did not come to its end.
const PAUSE_PRESSED: Duration = Duration::from_secs(1);

/// How many times as long as a round worked is rested after it, unless that is shorter than the pauses above: 1.5 % of a core.
const REST: u32 = 66;

/// Of so many entries one must go for a round to have paid: while the table is nearly full, the next is not put off.
const PAYS: u64 = 64;

/// Entries whose other half may be looked up in one round, about 1 us each: this bounds what a round costs.
const LOOKUPS: usize = 32_768;

/// No flow of any protocol in any state is forgotten sooner.
const SHORTEST: u32 = if timeout::ICMP < timeout::CLOSED { timeout::ICMP } else { timeout::CLOSED };

/// Percentage of the table above which rounds come faster.
const PRESSED_PERCENT: u64 = 75;

type Flows = Table<CtKey<V4>, CtEntry<V4>>;

/// Where the sweep stands.
#[derive(Debug, Default)]
pub struct Sweeper {
    cursor: Cursor,
    seen: u64,
    entries: u64,
    /// Whether all of the table was walked with [`Care::Thorough`].
    is_sound: bool,
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Entries looked at.
    pub seen: u64,
    /// Entries removed.
    pub removed: u64,
    /// Whether it came to the table's end.
    pub complete: bool,
}

/// What the sweep makes of one entry by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Alive whatever its other half says.
    Alive,
    /// Its other half decides with it.
    AskPeer,
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Care {
    /// At every silent entry together with its other half, which an agent that was killed amid a removal may have removed.
    Thorough,
    /// At an entry that is silent for longer than its own state allows. If its flow may go sooner for what its other half has seen, that
    /// half, which is met too, says so: which spares a look-up for nearly every flow that is only silent.
    Usual,
}

fn look(entry: &CtEntry<V4>, proto: u8, now: u32, care: Care) -> Look {
    let limit = match care {
        Care::Thorough => SHORTEST,
        Care::Usual => entry.timeout(entry.seen, proto),
    };
    if age(now, entry.last_seen) <= limit { Look::Alive } else { Look::AskPeer }
}

/// The two keys of a flow in the order of their removal: the reply goes first, so that a packet in between meets a whole flow or
/// none, and never lays a new original over an old reply that is about to go.
fn removal_order(key: CtKey<V4>, entry: &CtEntry<V4>) -> [CtKey<V4>; 2] {
    let peer = entry.peer(key.proto as u8);
    if entry.kind == kind::REPLY { [key, peer] } else { [peer, key] }
}

impl Sweeper {
    /// One round over as much of the table as the budget allows, from where the last one ended.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn round(&mut self, flows: &Flows, now: u32) -> Result<Round, TableError> {
        let mut lookups = 0;
        let mut removed = 0;
        let mut failure = None;
        let mut seen = 0;
        let care = if self.is_sound { Care::Usual } else { Care::Thorough };
        let complete = flows.walk(&mut self.cursor, |keys, entries| {
            seen += keys.len() as u64;
            for (key, entry) in keys.iter().zip(entries) {
                if look(entry, key.proto as u8, now, care) == Look::Alive {
                    continue;
                }
                lookups += 1;
                match sweep_flow(flows, *key, entry, now) {
                    Ok(count) => removed += count,
                    Err(error) => {
                        failure = Some(error);
                        return false;
                    }
                }
            }
            lookups < LOOKUPS
        })?;
        self.seen += seen;
        if complete {
            self.entries = std::mem::take(&mut self.seen).saturating_sub(removed);
            self.is_sound = true;
        }
        failure.map_or(Ok(Round { seen, removed, complete }), Err)
    }

    /// How long to wait after a round that had the CPU for so long.
    #[must_use]
    pub fn pause(&self, round: Round, worked: Duration, capacity: u32) -> Duration {
        let pressed = self.entries * 100 > u64::from(capacity) * PRESSED_PERCENT;
        if pressed && round.removed * PAYS >= round.seen.max(1) {
            return PAUSE_PRESSED;
        }
        let pause = if pressed || !round.complete { PAUSE_PRESSED } else { PAUSE };
        pause.max(worked * REST)
    }

    /// Entries that were left when the table's end was last reached.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }
}

/// Removes a flow if both its halves are silent for too long; how many entries went.
fn sweep_flow(flows: &Flows, key: CtKey<V4>, entry: &CtEntry<V4>, now: u32) -> Result<u64, TableError> {
    let proto = key.proto as u8;
    let peer = flows.get(&entry.peer(proto))?;
    if !entry.is_expired(peer.as_ref(), proto, now) {
        return Ok(0);
    }
    // A packet may have come since the batch was read.
    match flows.get(&key)? {
        Some(entry) if entry.is_expired(peer.as_ref(), proto, now) => {}
        _ => return Ok(0),
    }
    let mut removed = 0;
    for key in removal_order(key, entry) {
        removed += u64::from(flows.delete(&key)?);
    }
    Ok(removed)
}

/// The present tick of the clock that programs stamp flows with.
///
/// # Errors
/// None on Linux; the clock exists since 2.6.
pub fn now() -> std::io::Result<u32> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(timeout::tick(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64))
}

#[cfg(test)]
mod tests {
    use shunt_common::{
        conntrack::seen,
        flow::Tuple,
        net::{Ip4, Port, proto},
    };

    use super::*;

    fn flow() -> [(CtKey<V4>, CtEntry<V4>); 2] {
        let tuple = |dst: Ip4, dport| Tuple::<V4> {
            src: Ip4::new(10, 244, 1, 2),
            dst,
            sport: Port::from_host(40_000),
            dport: Port::from_host(dport),
            proto: proto::UDP,
        };
        CtEntry::pair(&tuple(Ip4::new(10, 96, 0, 1), 53), &tuple(Ip4::new(10, 244, 2, 3), 5353), 1, 1, 1000)
    }

    #[test]
    fn an_entry_is_alive_for_as_long_as_its_own_state_allows() {
        let [(_, entry), _] = flow();
        let look = |entry: &CtEntry<V4>, proto, now, care| look(entry, proto, now, care) == Look::AskPeer;
        assert!(!look(&entry, proto::UDP, 1000 + timeout::UDP, Care::Usual));
        assert!(look(&entry, proto::UDP, 1001 + timeout::UDP, Care::Usual));
        assert!(!look(&entry, proto::UDP, 1000 + SHORTEST, Care::Thorough));
        assert!(look(&entry, proto::UDP, 1001 + SHORTEST, Care::Thorough));
        assert!(!look(&entry, proto::UDP, 999, Care::Thorough), "a clock that is behind");
    }

    #[test]
    fn a_flow_that_may_go_is_noticed_by_one_of_its_halves() {
        use timeout::{CLOSE_WAIT, CLOSED, ESTABLISHED, ICMP, OTHER, SYN_SENT, UDP};
        let [(_, original), (_, reply)] = flow();
        let limits = [0, CLOSED, CLOSE_WAIT, ESTABLISHED, ICMP, OTHER, SYN_SENT, UDP];
        let ages = limits.into_iter().flat_map(|limit| [limit, limit + 1]);
        let all = seen::ANY | seen::FIN | seen::RST | seen::ACK | seen::STRAY_RST;
        let seen = (0..=all).filter(|seen| seen & !all == 0);
        let states: Vec<(u8, u32)> = ages.flat_map(|age| seen.clone().map(move |seen| (seen, age))).collect();
        let now = 1_000_000;
        let (mut gone, mut asked) = (0, 0);
        for proto in [proto::TCP, proto::UDP, proto::ICMP, proto::SCTP] {
            let notices = |half: &CtEntry<V4>| look(half, proto, now, Care::Usual) == Look::AskPeer;
            for &(seen, age) in &states {
                let one = CtEntry { seen, last_seen: now - age, ..original };
                for &(seen, age) in &states {
                    let other = CtEntry { seen, last_seen: now - age, ..reply };
                    let is_noticed = notices(&one) || notices(&other);
                    asked += u32::from(is_noticed);
                    if one.is_expired(Some(&other), proto, now) {
                        gone += 1;
                        assert!(is_noticed, "{one:?} {other:?}");
                    }
                }
            }
        }
        assert!(gone > 0 && asked > gone);
    }

    #[test]
    fn the_reply_goes_first_from_whichever_half_is_met() {
        let [(original, original_entry), (reply, reply_entry)] = flow();
        assert_eq!(removal_order(original, &original_entry), [reply, original]);
        assert_eq!(removal_order(reply, &reply_entry), [reply, original]);
    }

    #[test]
    fn rounds_come_faster_under_pressure_and_slower_after_much_work_in_vain() {
        let sweeper = |entries| Sweeper { entries, ..Sweeper::default() };
        let in_vain = Round { seen: 100, removed: 0, complete: true };
        let none = Duration::ZERO;
        assert_eq!(sweeper(75).pause(in_vain, none, 100), PAUSE);
        assert_eq!(sweeper(76).pause(in_vain, none, 100), PAUSE_PRESSED);
        assert_eq!(sweeper(0).pause(Round { complete: false, ..in_vain }, none, 100), PAUSE_PRESSED);
        let much = Duration::from_millis(300);
        let rest = much * REST;
        assert!(much.as_secs_f64() / (much + rest).as_secs_f64() < 0.02);
        assert_eq!([75, 76].map(|entries| sweeper(entries).pause(in_vain, much, 100)), [rest; 2]);
        let paid = Round { removed: 2, ..in_vain };
        assert_eq!([75, 76].map(|entries| sweeper(entries).pause(paid, much, 100)), [rest, PAUSE_PRESSED]);
    }
}
