//! What goes on beside the loop while the dataplane is up: forgetting expired flows, handing drop events on.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use shunt_common::{
    event::{Event, program},
    maps,
    verdict::DropReason,
};
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    kernel::{
        events::{self, Listeners},
        maps::Counts,
        pins::PinDir,
        sweeper::{self, Sweeper},
        table::{Table, TableError},
    },
    metrics::instruments::Instruments,
    socket::{
        protocol::{DroppedPacket, Happening, MonitorEvent},
        server::unix_ms,
    },
};

use super::{flow_table::FlowTable, health::Subject, state::State};

/// After a failure of either.
const PAUSE: Duration = Duration::from_secs(5);

/// Sweeps for as long as the agent runs, and says whether there is room for new flows.
pub(super) async fn sweep(dir: PinDir, state: Arc<Mutex<State>>, instruments: Arc<Instruments>) {
    let mut sweeper = Sweeper::default();
    let mut flow_table = FlowTable::default();
    loop {
        let path = dir.map(&maps::CONNTRACK);
        let drops = dir.map(&maps::DROPS);
        let instruments = instruments.clone();
        let round = move || {
            let flows = Table::open(&maps::CONNTRACK, &path)?;
            let now =
                sweeper::now().map_err(|source| TableError::Io { name: maps::CONNTRACK.name, action: "be timed", source })?;
            let (start, before) = (Instant::now(), worked());
            let round = sweeper.round(&flows, now)?;
            instruments.swept(start.elapsed(), round.removed, sweeper.entries(), flows.capacity());
            let pause = sweeper.pause(round, worked().saturating_sub(before), flows.capacity());
            let refused = Counts::open(&maps::DROPS, &drops)?.get(DropReason::ConntrackFull as u32)?;
            Ok::<_, TableError>((sweeper, round, pause, flows.capacity(), refused))
        };
        let outcome = spawn_blocking(round).await;
        let (outcome, pause) = match outcome {
            Ok(Ok((swept, round, pause, capacity, refused))) => {
                sweeper = swept;
                let room = flow_table.look(sweeper.entries(), capacity, refused, Instant::now());
                state.lock().await.note(Subject::FlowTable, &room);
                tracing::debug!(removed = round.removed, left = sweeper.entries(), "expired flows are forgotten");
                (Ok(()), pause)
            }
            // A map that is not there yet is no fault: there is no dataplane yet.
            Ok(Err(TableError::Missing { .. })) | Err(_) => {
                sweeper = Sweeper::default();
                flow_table = FlowTable::to_be_made();
                (Ok(()), PAUSE)
            }
            Ok(Err(error)) => {
                sweeper = Sweeper::default();
                (Err(error), PAUSE)
            }
        };
        state.lock().await.note(Subject::Sweeper, &outcome);
        tokio::time::sleep(pause).await;
    }
}

/// CPU time of the calling thread.
fn worked() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Hands drop events on for as long as the agent runs.
pub(super) async fn hand_on_drops(dir: PinDir, state: Arc<Mutex<State>>) {
    let sender = state.lock().await.events();
    loop {
        let deliver = |event: Event| {
            // An error only says that nobody listens.
            let _ = sender.send(MonitorEvent { unix_ms: unix_ms(), what: Happening::Drop(dropped(&event)) });
            sender.receiver_count() > 0
        };
        let outcome = match Listeners::adopt(&dir) {
            Ok(listeners) => events::run(&dir.map(&maps::EVENTS), &listeners, deliver).await,
            Err(error) => Err(error),
        };
        if let Err(error) = outcome
            && !matches!(error, TableError::Missing { .. })
        {
            tracing::warn!(%error, "drop events are not handed on");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn dropped(event: &Event) -> DroppedPacket {
    let is_ip = matches!(event.ethertype, 0x0800 | 0x86dd);
    DroppedPacket {
        reason: DropReason::from_number(event.reason)
            .map_or_else(|| format!("reason {}", event.reason), |reason| reason.name().to_owned()),
        program: program::name(event.program).to_owned(),
        interface: nix::net::if_::if_indextoname(event.ifindex)
            .ok()
            .and_then(|name| name.into_string().ok())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| event.ifindex.to_string()),
        length: event.len,
        ethertype: event.ethertype,
        protocol: event.proto,
        source: is_ip.then(|| address(event.ethertype, event.src)),
        destination: is_ip.then(|| address(event.ethertype, event.dst)),
        source_port: u16::from_be_bytes(event.sport),
        destination_port: u16::from_be_bytes(event.dport),
    }
}

fn address(ethertype: u16, bytes: [u8; 16]) -> IpAddr {
    let [a, b, c, d, ..] = bytes;
    if ethertype == 0x0800 { Ipv4Addr::new(a, b, c, d).into() } else { Ipv6Addr::from(bytes).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_in_words() {
        let mut src = [0; 16];
        src[..4].copy_from_slice(&[10, 244, 1, 2]);
        let event = Event {
            time: 1,
            reason: DropReason::SourceSpoofed as u32,
            ifindex: u32::MAX,
            len: 98,
            src,
            dst: [0; 16],
            sport: 4242u16.to_be_bytes(),
            dport: [0, 53],
            ethertype: 0x0800,
            proto: 17,
            program: program::FROM_POD,
            reserved: 0,
        };
        let packet = dropped(&event);
        assert_eq!((packet.reason.as_str(), packet.program.as_str()), ("source_spoofed", "from_pod"));
        assert_eq!((packet.source, packet.source_port), (Some("10.244.1.2".parse().unwrap()), 4242));
        assert_eq!((packet.destination_port, packet.interface.as_str()), (53, "4294967295"));
        assert_eq!(dropped(&Event { ethertype: 0x0806, ..event }).source, None);
    }
}
