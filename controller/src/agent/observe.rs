//! What is told over HTTP. The agent may be busy for seconds while a large cluster comes into force; who asks meanwhile hears what was so
//! before.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex as StdMutex, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{CHECK, RETRY, health::Subject, pulse::Pulse, state::State};
use crate::{
    ending::Ending,
    http::{self, Readiness, Site},
    kernel::{maps::Counts, pins::PinDir, table::TableError},
    metrics::{
        self,
        exposition::{Exposition, Format},
        instruments::Instruments,
        process,
    },
};
use shunt_common::{
    maps,
    verdict::{Counter, DropReason},
};

/// How long a question waits for the agent before it is answered with what was so before.
const PATIENCE: Duration = Duration::from_millis(300);

/// The address is another's, or nobody's.
#[derive(Debug, thiserror::Error)]
#[error(
    "health and metrics cannot be had at {address} (`httpListen`): {source}; choose another address, or stop who has this one"
)]
struct ListenError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Answers for one agent.
#[derive(Debug)]
pub(super) struct Observer {
    state: Arc<Mutex<State>>,
    instruments: Arc<Instruments>,
    pulse: Arc<Pulse>,
    dir: PinDir,
    /// As of the last time that the state could be asked.
    last: StdMutex<(Readiness, Exposition)>,
}

impl Observer {
    pub(super) fn new(state: Arc<Mutex<State>>, instruments: Arc<Instruments>, pulse: Arc<Pulse>, dir: PinDir) -> Self {
        let starting = Readiness { withheld: vec!["the agent is starting".to_owned()], besides: Vec::new() };
        Self { state, instruments, pulse, dir, last: StdMutex::new((starting, Exposition::default())) }
    }

    /// Asks the state, if it can be had soon.
    async fn look(&self) -> (Readiness, Exposition) {
        let fresh = timeout(PATIENCE, self.state.lock()).await.ok().map(|state| {
            let mut exposition = Exposition::default();
            state.measure(&mut exposition);
            (state.readiness(), exposition)
        });
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fresh) = fresh {
            *last = fresh;
        }
        last.clone()
    }
}

impl Site for Observer {
    async fn alive(&self) -> Result<(), String> {
        self.pulse.check()
    }

    async fn ready(&self) -> Readiness {
        self.look().await.0
    }

    async fn metrics(&self, format: Format) -> Result<String, String> {
        let mut exposition = Exposition::default();
        exposition.put(metrics::BUILD_INFO, &[env!("CARGO_PKG_VERSION"), std::env::consts::ARCH], true);
        exposition.absorb(self.look().await.1);
        match put_counters(&self.dir, &mut exposition) {
            // There is no dataplane yet.
            Ok(()) | Err(TableError::Missing { .. }) => {}
            Err(error) => tracing::debug!(%error, "a scrape goes without the programs' counters"),
        }
        self.instruments.put_into(&mut exposition);
        process::put_into(&mut exposition);
        exposition.text(format).map_err(|error| error.to_string())
    }
}

/// What the programs count: each counter is read once.
fn put_counters(dir: &PinDir, exposition: &mut Exposition) -> Result<(), TableError> {
    let drops = Counts::open(&maps::DROPS, &dir.map(&maps::DROPS))?;
    let counters = Counts::open(&maps::COUNTERS, &dir.map(&maps::COUNTERS))?;
    for reason in DropReason::ALL {
        exposition.put(metrics::DROPPED_PACKETS, &[reason.name()], drops.get(*reason as u32)?);
    }
    for counter in Counter::ALL {
        exposition.put(metrics::PACKETS, &[counter.name()], counters.get(*counter as u32)?);
    }
    Ok(())
}

/// Serves until told to end. An address that cannot be had is a reason in the agent's health, and is tried again.
pub(super) async fn serve(address: SocketAddr, observer: Observer, mut ending: Ending) {
    let observer = Arc::new(observer);
    let mut retry = RETRY;
    let listener = loop {
        let (listener, outcome) = match TcpListener::bind(address).await {
            Ok(listener) => (Some(listener), Ok(())),
            Err(source) => (None, Err(ListenError { address, source })),
        };
        observer.state.lock().await.note(Subject::Http, &outcome);
        if let Some(listener) = listener {
            break listener;
        }
        tokio::select! {
            () = sleep(retry) => retry = (retry * 2).min(CHECK),
            () = ending.told() => return,
        }
    };
    http::serve(listener, move |request| http::answer(request, observer.clone()), http::Limits::default(), ending).await;
}
