//! A steady exchange that counts what gets lost, for as long as something else is done to the node.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use super::{
    echo::{PATIENCE, udp_socket},
    worker::Worker,
};
use crate::netns::Netns;

/// A stream of numbered UDP datagrams to an echo server.
#[derive(Debug)]
pub struct Flood(Worker<Result<Tally>>);

/// What became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent.
    pub sent: u64,
    /// Came back.
    pub received: u64,
    /// The longest time without an answer.
    pub longest_gap: Duration,
}

impl Tally {
    /// Those that never came back.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

impl Flood {
    /// Starts sending one datagram every `interval` from a namespace to an echo server.
    ///
    /// # Errors
    /// No socket, or no route.
    pub fn start(netns: &Netns, to: SocketAddrV4, interval: Duration) -> Result<Self> {
        let socket = netns.inside(|| udp_socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))?;
        socket.connect(to).with_context(|| format!("{} to UDP {to}", netns.name()))?;
        Ok(Self(Worker::start(format!("the flood to {to}"), move |stop| flood(&socket, interval, stop))?))
    }

    /// [`Flood::stop`] of many: all wait at the same time.
    ///
    /// # Errors
    /// A socket failed in between.
    pub fn stop_all(floods: Vec<Self>) -> Result<Vec<Tally>> {
        floods.iter().for_each(|flood| flood.0.tell_to_stop());
        floods.into_iter().map(Self::stop).collect()
    }

    /// Stops sending, waits for what is under way, and counts.
    ///
    /// # Errors
    /// The socket failed in between.
    pub fn stop(self) -> Result<Tally> {
        self.0.stop()?
    }
}

/// Sends until told to stop; returns once every answer is there, or none has come for a while: on a busy machine a server may be seconds behind,
/// and what waits for it is not lost.
fn flood(socket: &UdpSocket, interval: Duration, stop: &AtomicBool) -> Result<Tally> {
    let receiver = socket.try_clone()?;
    receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
    let all = OnceLock::new();
    thread::scope(|scope| {
        let counter = scope.spawn(|| count(&receiver, &all));
        let mut sent = 0u64;
        let mut next = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            // A refusal of an earlier datagram is reported here; that one is lost, this one was not sent.
            if socket.send(&sent.to_be_bytes()).is_ok() {
                sent += 1;
            }
            next += interval;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        all.get_or_init(|| sent);
        let tally = counter.join().map_err(|_| anyhow!("the counter panicked"))?;
        Ok(Tally { sent, ..tally })
    })
}

/// Counts answers. How many there can be is known once no more is sent.
fn count(receiver: &UdpSocket, all: &OnceLock<u64>) -> Tally {
    let mut tally = Tally::default();
    let mut buffer = [0; 256];
    let mut last = Instant::now();
    loop {
        if receiver.recv(&mut buffer).is_ok() {
            tally.received += 1;
            tally.longest_gap = tally.longest_gap.max(last.elapsed());
            last = Instant::now();
        }
        if all.get().is_some_and(|all| tally.received >= *all || last.elapsed() > PATIENCE) {
            return tally;
        }
    }
}
