//! Tracked flows as rows: the two entries of a flow are one row.

use std::{collections::BTreeMap, net::SocketAddrV4};

use anyhow::Context;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use shunt_common::{
    conntrack::{CtEntry, CtKey, age, kind, translates},
    flow::Tuple,
    net::V4,
    timeout,
};

use super::flow_state;
use crate::{
    cli::output::{Row, protocol, span},
    kernel::read::FlowRow,
};

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ConntrackRow {
    protocol: String,
    /// As its opener sends.
    original: Ends,
    /// As the other end answers.
    reply: Ends,
    translated: bool,
    state: &'static str,
    idle_seconds: u64,
    /// Until it is forgotten, if it stays silent.
    timeout_seconds: u64,
    /// Of a Service's flow.
    backend: Option<u32>,
    /// Whether only one of its two entries was found: it was read while it changed, or a half was lost.
    half: bool,
}

/// Source and destination.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Ends {
    source: SocketAddrV4,
    destination: SocketAddrV4,
}

impl Ends {
    fn of(tuple: &Tuple<V4>) -> Self {
        Self {
            source: SocketAddrV4::new(tuple.src.into(), tuple.sport.to_host()),
            destination: SocketAddrV4::new(tuple.dst.into(), tuple.dport.to_host()),
        }
    }
}

impl Row for ConntrackRow {
    const COLUMNS: &'static [&'static str] = &["PROTOCOL", "ORIGINAL", "REPLY", "STATE", "IDLE", "TIMEOUT"];

    fn cells(&self) -> Vec<String> {
        let ends = |ends: &Ends| format!("{} -> {}", ends.source, ends.destination);
        vec![
            self.protocol.clone(),
            ends(&self.original),
            ends(&self.reply),
            self.state.to_owned(),
            span(self.idle_seconds),
            span(self.timeout_seconds),
        ]
    }
}

/// The clock that programs stamp entries with, in ticks.
pub(super) fn now() -> anyhow::Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the monotonic clock")?;
    Ok(timeout::tick(std::time::Duration::from(now).as_nanos() as u64))
}

/// By protocol, then by the opener's tuple.
pub(super) fn rows(flows: Vec<FlowRow>, now: u32) -> Vec<ConntrackRow> {
    let mut entries: BTreeMap<CtKey<V4>, CtEntry<V4>> = flows.into_iter().collect();
    let mut rows = Vec::new();
    while let Some((key, entry)) = entries.pop_first() {
        let peer_key = entry.peer(key.proto as u8);
        rows.push(row(key, entry, entries.remove(&peer_key), now));
    }
    rows.sort_unstable();
    rows
}

fn row(key: CtKey<V4>, entry: CtEntry<V4>, peer: Option<CtEntry<V4>>, now: u32) -> ConntrackRow {
    let proto = key.proto as u8;
    let (this, that) = (key.tuple(), entry.peer(proto).tuple());
    let peer_seen = peer.map_or(0, |peer| peer.seen);
    let is_original = entry.kind == kind::ORIGINAL;
    let (original, reply) = if is_original { (this, that) } else { (that, this) };
    let (original_seen, reply_seen) = if is_original { (entry.seen, peer_seen) } else { (peer_seen, entry.seen) };
    let idle = peer.map_or(u32::MAX, |peer| age(now, peer.last_seen)).min(age(now, entry.last_seen));
    let left = entry.timeout(peer_seen, proto).saturating_sub(idle);
    ConntrackRow {
        protocol: protocol(proto),
        original: Ends::of(&original),
        reply: Ends::of(&reply),
        translated: entry.translates != 0,
        state: flow_state::of(proto, entry.translates == translates::THERE, original_seen, reply_seen),
        idle_seconds: seconds(idle),
        timeout_seconds: seconds(left),
        backend: (entry.backend != 0).then_some(entry.backend),
        half: peer.is_none(),
    }
}

/// Ticks of 2^30 ns as seconds.
fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << 30) / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use shunt_common::{
        conntrack::seen,
        net::{Ip4, Port, proto},
    };

    use super::*;
    use crate::cli::output::table;

    fn tuple(dst: [u8; 4], dport: u16) -> Tuple<V4> {
        let [a, b, c, d] = dst;
        Tuple {
            src: Ip4::new(10, 1, 0, 2),
            dst: Ip4::new(a, b, c, d),
            sport: Port::from_host(40_000),
            dport: Port::from_host(dport),
            proto: proto::TCP,
        }
    }

    #[test]
    fn a_flow_is_one_row_whichever_half_comes_first() {
        let mut pair = CtEntry::pair(&tuple([10, 96, 0, 1], 80), &tuple([10, 2, 0, 3], 8080), 7, 1, 100);
        pair[1].1.seen = seen::ANY;
        pair[1].1.last_seen = 110;
        let expected = rows(pair.to_vec(), 130);
        pair.reverse();
        assert_eq!(rows(pair.to_vec(), 130), expected);
        insta::assert_snapshot!(table(&expected), @r"
        PROTOCOL   ORIGINAL                         REPLY                             STATE         IDLE   TIMEOUT
        TCP        10.1.0.2:40000 -> 10.96.0.1:80   10.2.0.3:8080 -> 10.1.0.2:40000   established   21s    1d1h
        ");
        assert_eq!((expected[0].backend, expected[0].translated, expected[0].half), (Some(7), true, false));
    }

    #[test]
    fn a_lost_half_is_shown_as_one() {
        let t = tuple([10, 2, 0, 3], 8080);
        let [(_, _), reply] = CtEntry::pair(&t, &t, 0, 0, 100);
        let rows = rows(vec![reply], 100);
        assert!(rows[0].half && !rows[0].translated);
        assert_eq!(rows[0].original, Ends::of(&t));
    }
}
