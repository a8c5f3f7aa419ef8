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

/// Entries whose other half may be looked up in one round, about 1 us each: this bounds what a round costs.
const LOOKUPS: usize = 32_768;

/// No flow of any protocol in any state is forgotten sooner: an entry younger than this needs no second look.
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
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
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

fn look(entry: &CtEntry<V4>, now: u32) -> Look {
    if age(now, entry.last_seen) <= SHORTEST { Look::Alive } else { Look::AskPeer }
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
        let complete = flows.walk(&mut self.cursor, |keys, entries| {
            seen += keys.len() as u64;
            for (key, entry) in keys.iter().zip(entries) {
                if look(entry, now) == Look::Alive {
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
        }
        failure.map_or(Ok(Round { removed, complete }), Err)
    }

    /// How long to wait after a round.
    #[must_use]
    pub fn pause(&self, round: Round, capacity: u32) -> Duration {
        let pressed = self.entries * 100 > u64::from(capacity) * PRESSED_PERCENT;
        if pressed || !round.complete { PAUSE_PRESSED } else { PAUSE }
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
    fn a_young_entry_is_alive_and_an_older_one_asks_its_peer() {
        let [(_, entry), _] = flow();
        assert_eq!(look(&entry, 1000 + SHORTEST), Look::Alive);
        assert_eq!(look(&entry, 1001 + SHORTEST), Look::AskPeer);
        assert_eq!(look(&entry, 999), Look::Alive, "a clock that is behind");
    }

    #[test]
    fn the_reply_goes_first_from_whichever_half_is_met() {
        let [(original, original_entry), (reply, reply_entry)] = flow();
        assert_eq!(removal_order(original, &original_entry), [reply, original]);
        assert_eq!(removal_order(reply, &reply_entry), [reply, original]);
    }

    #[test]
    fn rounds_come_faster_under_pressure() {
        let sweeper = |entries| Sweeper { entries, ..Sweeper::default() };
        let complete = Round { removed: 0, complete: true };
        assert_eq!(sweeper(75).pause(complete, 100), PAUSE);
        assert_eq!(sweeper(76).pause(complete, 100), PAUSE_PRESSED);
        assert_eq!(sweeper(0).pause(Round { complete: false, ..complete }, 100), PAUSE_PRESSED);
    }
}
