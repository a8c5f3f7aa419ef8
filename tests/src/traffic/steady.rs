//! Connections that stay open and are used all the time, while something else is done to the nodes: none may be lost.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{echo::TcpClient, worker::Worker};

/// Open connections with a thread that uses one after the other.
#[derive(Debug)]
pub struct Steady(Worker<Outcome>);

/// What became of them.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Those that still work.
    pub alive: Vec<(String, TcpClient)>,
    /// Those that don't, with what they said.
    pub lost: Vec<String>,
    /// Questions that were answered.
    pub exchanges: u64,
    /// The longest that one took.
    pub slowest: Duration,
}

impl Steady {
    /// Starts using connections, each under a name, with a pause after each round.
    ///
    /// # Errors
    /// There is no thread for it.
    pub fn start(connections: Vec<(String, TcpClient)>, pause: Duration) -> Result<Self> {
        let worker = Worker::start("the user of connections", move |stop| {
            let mut outcome = Outcome { alive: connections, ..Outcome::default() };
            loop {
                let last = stop.load(Ordering::Relaxed);
                outcome.round();
                if last {
                    return outcome;
                }
                thread::sleep(pause);
            }
        });
        Ok(Self(worker?))
    }

    /// Uses each once more, and tells.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn stop(self) -> Result<Outcome> {
        self.0.stop()
    }
}

impl Outcome {
    fn round(&mut self) {
        let (mut exchanges, mut slowest) = (self.exchanges, self.slowest);
        let lost = &mut self.lost;
        self.alive.retain_mut(|(name, client)| {
            let start = Instant::now();
            match client.touch() {
                Ok(()) => {
                    exchanges += 1;
                    slowest = slowest.max(start.elapsed());
                    true
                }
                Err(error) => {
                    lost.push(format!("{name}: {error}"));
                    false
                }
            }
        });
        (self.exchanges, self.slowest) = (exchanges, slowest);
    }
}
