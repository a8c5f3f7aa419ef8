//! The agent: takes cluster state and requests, keeps this node's dataplane as they say, and survives everything but being told to go.
//!
//! Order on start, so that a restart leaves no gap: what the node must offer, the claim to the run directory, cluster state, devices,
//! maps (adopted from an earlier agent, or made), what they should hold, and last the programs. From then on it follows changes, and
//! looks at everything now and then. Nothing that fails later ends it: the reason shows in its status, and it is tried again.

mod background;
mod dataplane;
mod handler;
mod health;
mod pods;
mod state;
mod sync;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Mutex, mpsc},
};

use self::{handler::Requests, state::State};
use crate::{
    cluster::{FileSource, OpenError},
    config::AgentOptions,
    ipam::{Ipam, IpamError},
    kernel::{
        features::{self, FeatureError},
        pins::PinDir,
        watch,
    },
    socket::{
        claim::{Claim, ClaimError, Holder},
        server::{self, Limits},
    },
};

/// Between looks at everything while all is well.
const CHECK: Duration = Duration::from_secs(30);

/// After a device or route changed: several changes come together, and are looked at together.
const SETTLE: Duration = Duration::from_millis(300);

/// Before a first try again, doubled each time up to [`CHECK`].
const RETRY: Duration = Duration::from_secs(1);

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The node does not offer what it must.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// Another agent has the run directory.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// No address book.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// No cluster state.
    #[error(transparent)]
    ClusterState(#[from] OpenError),
    /// The system refuses something basic.
    #[error("cannot {action}")]
    System {
        /// What.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Runs the agent until SIGTERM or SIGINT. The dataplane stays in place.
///
/// # Errors
/// It did not start.
pub fn run(options: AgentOptions) -> Result<(), AgentError> {
    let system = |action| move |source| AgentError::System { action, source };
    // Two threads: requests are answered while the state is written.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    let outcome = runtime.block_on(serve(options));
    runtime.shutdown_background();
    outcome
}

async fn serve(options: AgentOptions) -> Result<(), AgentError> {
    let system = |action| move |source| AgentError::System { action, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("catch SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("catch SIGINT"))?;
    features::check(&options.cgroup)?;
    if let Some(at) = features::ensure_bpffs(&options.pin_dir)? {
        tracing::info!(at = %at.display(), "mounted a BPF filesystem for the pin directory");
    }
    let holder = Holder {
        pid: std::process::id(),
        node: options.node_name.clone(),
        pin_dir: options.pin_dir.clone(),
        state_dir: options.state_dir.clone(),
    };
    let claim = Claim::take(&options.run_dir, &holder)?;
    let ipam = Ipam::open(&options.state_dir)?;
    let (source, changes) = FileSource::open(&options.cluster_state)?;
    let dir = PinDir::new(&options.pin_dir);
    tracing::info!(node = options.node_name, version = env!("CARGO_PKG_VERSION"), "the agent starts");

    let state = Arc::new(Mutex::new(State::new(options, ipam)));
    // Devices are watched before they are looked at, so that nothing is missed in between.
    let (sender, device_changes) = mpsc::channel(64);
    let watch = tokio::spawn(async move {
        if let Err(error) = watch::run(sender).await {
            tracing::warn!(%error, "devices cannot be watched: changes are found with the next look at everything");
        }
    });
    state.lock().await.cluster_changed(&source, &changes);
    let requests = tokio::spawn(server::serve(claim.listen()?, Arc::new(Requests(state.clone())), Limits::default()));
    let sweep = tokio::spawn(background::sweep(dir.clone(), state.clone()));
    let drops = tokio::spawn(background::hand_on_drops(dir, state.clone()));
    tokio::select! {
        () = follow(source, device_changes, &state) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("the agent goes; the dataplane stays");
    for task in [requests, sweep, drops] {
        task.abort();
    }
    watch.abort();
    Ok(())
}

/// The loop: cluster state, devices, the clock.
async fn follow(mut source: FileSource, mut devices: mpsc::Receiver<watch::Change>, state: &Mutex<State>) {
    let mut retry = RETRY;
    let mut due = next_check(&mut retry, &*state.lock().await);
    loop {
        tokio::select! {
            changes = source.next() => {
                let mut state = state.lock().await;
                state.cluster_changed(&source, &changes);
                if !state.is_settled() {
                    due = due.min(Instant::now() + retry);
                }
            }
            Some(change) = devices.recv() => {
                if state.lock().await.underlay().is_none_or(|underlay| change.concerns_node(underlay)) {
                    due = due.min(Instant::now() + SETTLE);
                }
            }
            () = tokio::time::sleep_until(due.into()) => {
                let mut state = state.lock().await;
                state.check(&source);
                due = next_check(&mut retry, &state);
            }
        }
    }
}

/// When to look at everything next: soon while something has failed, later each time.
fn next_check(retry: &mut Duration, state: &State) -> Instant {
    if state.is_settled() {
        *retry = RETRY;
        return Instant::now() + CHECK;
    }
    let due = Instant::now() + *retry;
    *retry = (*retry * 2).min(CHECK);
    due
}
