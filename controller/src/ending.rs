//! How everybody in the process hears that it is to end, and whoever must end in order gets the time for it.

use std::io;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

/// Listens for the end; a clone each for whoever must.
#[derive(Clone, Debug)]
pub struct Ending(watch::Receiver<bool>);

/// Tells the listeners.
#[derive(Debug)]
pub struct Teller(watch::Sender<bool>);

/// A teller and its first listener.
#[must_use]
pub fn ending() -> (Teller, Ending) {
    let (sender, receiver) = watch::channel(false);
    (Teller(sender), Ending(receiver))
}

impl Teller {
    /// Tells everybody, those included who come later.
    pub fn tell(&self) {
        self.0.send_replace(true);
    }
}

impl Ending {
    /// Returns once it was told; never if the teller has gone without a word.
    pub async fn told(&mut self) {
        if self.0.wait_for(|told| *told).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it was told.
    #[must_use]
    pub fn is_told(&self) -> bool {
        *self.0.borrow()
    }
}

/// SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on they don't end the process by themselves. Needs a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn catch() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
