//! Connections that stay open and are used all the time, while something else is done to the nodes: none may be lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::echo::TcpClient;

/// Open connections with a thread that uses one after the other.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<Outcome>>,
}

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
    #[must_use]
    pub fn start(connections: Vec<(String, TcpClient)>, pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let worker = thread::spawn(move || {
            let mut outcome = Outcome { alive: connections, ..Outcome::default() };
            loop {
                let last = flag.load(Ordering::Relaxed);
                outcome.round();
                if last {
                    return outcome;
                }
                thread::sleep(pause);
            }
        });
        Self { stop, worker: Some(worker) }
    }

    /// Uses each once more, and tells.
    ///
    /// # Errors
    /// The thread panicked.
    pub fn stop(mut self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        let worker = self.worker.take().ok_or_else(|| anyhow!("already stopped"))?;
        worker.join().map_err(|_| anyhow!("the user of connections panicked"))
    }
}

impl Drop for Steady {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
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
