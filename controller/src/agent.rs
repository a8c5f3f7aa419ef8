//! The agent: takes cluster state and requests, keeps this node's dataplane as they say, and survives everything but being told to go.
//!
//! Order on start, so that a restart leaves no gap: what the node must offer, the claim to the run directory, cluster state, devices,
//! maps (adopted from an earlier agent, or made), what they should hold, and last the programs. From then on it follows changes, and
//! looks at everything now and then. Nothing that fails later ends it: the reason shows in its status, and it is tried again.

mod announcement;
mod audit;
mod background;
mod clients;
mod connect;
mod dataplane;
mod doorbell;
mod drop_log;
mod flow_table;
mod handler;
mod health;
mod health_checks;
mod installation;
mod observe;
mod own_node;
mod pods;
mod pulse;
mod state;
mod sync;
mod takeover;
mod wires;
mod xdp;

use std::{
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, Notify, mpsc},
    task::JoinHandle,
};

use self::{
    doorbell::Doorbell, handler::Requests, health_checks::Answers, observe::Observer, pulse::Pulse, state::State,
    takeover::Takeover,
};
use crate::{
    cluster::{ConnectError, OpenError, Origin, Source},
    config::AgentOptions,
    disk::DiskError,
    ending::{Signals, ending},
    install::{CniDirs, Installer, Record},
    ipam::{Ipam, IpamError},
    kernel::{
        features::{self, FeatureError},
        pins::PinDir,
        watch,
    },
    metrics::instruments::Instruments,
    socket::{
        claim::{Claim, ClaimError, Holder},
        server::{self, Limits},
    },
    takeover::TakeoverError,
};

/// Between looks at everything while all is well.
const CHECK: Duration = Duration::from_secs(30);

/// After a device or route changed: several changes come together, and are looked at together.
const SETTLE: Duration = Duration::from_millis(300);

/// Before a first try again, doubled each time up to [`CHECK`].
const RETRY: Duration = Duration::from_secs(1);

/// For requests under way once the agent is to end: less than kubelet or systemd give, and enough for the second phase of an ADD.
const GRACE: Duration = Duration::from_secs(5);

/// Why the agent did not start, or did not end in order.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The node does not offer what it must.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// The record of a takeover cannot be used.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// Another agent has the run directory.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// No address book.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// What the agent changes on the node cannot be written down.
    #[error(transparent)]
    Record(#[from] DiskError),
    /// No cluster state.
    #[error(transparent)]
    ClusterState(#[from] OpenError),
    /// No way to an API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The system refuses something basic.
    #[error("cannot {action}")]
    System {
        /// What.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Told to end a second time.
    #[error("ended at once by a second signal; requests under way may be cut off. The dataplane stays")]
    Hurried,
}

/// Runs the agent until SIGTERM or SIGINT, then lets requests under way come to their end; a second signal ends it at once. The
/// dataplane stays in place.
///
/// # Errors
/// It did not start, or was told a second time to end.
pub fn run(options: AgentOptions) -> Result<(), AgentError> {
    let system = |action| move |source| AgentError::System { action, source };
    // Two threads: requests are answered while the state is written.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(system("start the runtime"))?;
    // On a thread of the runtime, not on this one: what comes from the API server is then taken up by whichever thread has read it, and
    // no other is woken for it.
    let outcome = runtime.block_on(runtime.spawn(serve(options)));
    runtime.shutdown_background();
    // Nobody aborts it.
    outcome.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

async fn serve(options: AgentOptions) -> Result<(), AgentError> {
    let system = |action| move |source| AgentError::System { action, source };
    let mut signals = Signals::catch().map_err(system("catch SIGTERM and SIGINT"))?;
    let origin = Origin::of(&options.source).await?;
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
    let record = Record::open(&options.state_dir)?;
    let takeover = Takeover::open(&options)?;
    let (source, changes) = Source::open(&origin)?;
    let dir = PinDir::new(&options.pin_dir);
    tracing::info!(node = options.node_name, version = env!("CARGO_PKG_VERSION"), "the agent starts");

    let (instruments, pulse) = (Arc::new(Instruments::default()), Arc::new(Pulse::new()));
    let http_listen = options.config.http_listen;
    let dirs = CniDirs { conf: options.config.cni_conf_dir.clone(), bin: options.config.cni_bin_dir.clone() };
    let node_name = options.node_name.clone();
    let installer = Installer::new(dirs, &options.run_dir, record.clone());
    let state = State::new(options, ipam, record, takeover, source.watch_receptions(), instruments.clone());
    let (facts, announced) = (state.facts(), state.facts());
    let answers = Answers { checks: state.health_checks(), facts: state.facts(), pulse: pulse.clone() };
    let state = Arc::new(Mutex::new(state));
    let (teller, ending) = ending();
    let http = http_listen.map(|address| {
        let observer = Observer::new(state.clone(), instruments.clone(), pulse.clone(), dir.clone());
        tokio::spawn(observe::serve(address, observer, ending.clone()))
    });
    let checks = tokio::spawn(health_checks::serve(answers, state.clone(), ending.clone()));
    // Devices are watched before they are looked at, so that nothing is missed in between.
    let (sender, device_changes) = mpsc::channel(64);
    let watch = tokio::spawn(async move {
        if let Err(error) = watch::run(sender).await {
            tracing::warn!(%error, "devices cannot be watched: changes are found with the next look at everything");
        }
    });
    let nudge = Arc::new(Notify::new());
    pulse.beat();
    state.lock().await.cluster_changed(&source, &changes);
    let handler = Arc::new(Requests { state: state.clone(), instruments: instruments.clone() });
    let requests = tokio::spawn(server::serve(claim.listen()?, handler, Limits::default(), ending));
    let mut background = vec![
        tokio::spawn(background::sweep(dir.clone(), state.clone(), instruments.clone())),
        tokio::spawn(audit::run(state.clone(), instruments.clone(), nudge.clone())),
        tokio::spawn(background::hand_on_drops(dir.clone(), state.clone())),
        tokio::spawn(drop_log::run(dir)),
        tokio::spawn(installation::keep(installer, facts, state.clone())),
        watch,
    ];
    if let Some(client) = origin.client() {
        let (client, name) = (client.clone(), node_name);
        background.push(tokio::spawn(announcement::write_events(client.clone(), name.clone(), announced.clone())));
        background.push(tokio::spawn(announcement::keep_node(client, name, announced, state.clone())));
    }
    tokio::select! {
        () = follow(source, device_changes, &nudge, &state, &instruments, &pulse) => {}
        () = signals.next() => {}
    }
    tracing::info!("the agent goes; the dataplane stays");
    background.iter().for_each(JoinHandle::abort);
    teller.tell();
    tokio::select! {
        () = end_in_order(requests, http.into_iter().chain([checks])) => Ok(()),
        () = signals.next() => Err(AgentError::Hurried),
    }
}

/// Waits for requests under way, and for the answers over HTTP last.
async fn end_in_order(mut requests: JoinHandle<()>, http: impl Iterator<Item = JoinHandle<()>>) {
    if tokio::time::timeout(GRACE, &mut requests).await.is_err() {
        tracing::warn!("requests are still under way after {} s and are cut off: the runtime will ask again", GRACE.as_secs());
    }
    for http in http {
        // Each bounds its own end.
        let _ = http.await;
    }
}

/// The loop: cluster state, devices, what fails beside it, the clock.
async fn follow(
    mut source: Source,
    mut devices: mpsc::Receiver<watch::Change>,
    nudge: &Notify,
    state: &Mutex<State>,
    instruments: &Instruments,
    pulse: &Pulse,
) {
    let mut retry = RETRY;
    let mut due = next_check(&mut retry, &*state.lock().await);
    // One timer for all turns: a new one for each would wake whoever waits for timers and sockets, to no purpose.
    let mut timer = pin!(tokio::time::sleep_until(due.into()));
    let mut doorbell = Doorbell::default();
    loop {
        pulse.beat();
        if timer.deadline() != due.into() {
            timer.as_mut().reset(due.into());
        }
        tokio::select! {
            (changes, since) = doorbell.next(source.next()) => {
                let mut state = state.lock().await;
                instruments.waited(since.elapsed());
                state.cluster_changed(&source, &changes);
                if !state.is_settled() {
                    due = due.min(Instant::now() + retry);
                }
            }
            Some(change) = devices.recv() => {
                if state.lock().await.is_concerned_by(&change) {
                    due = due.min(Instant::now() + SETTLE);
                }
            }
            () = nudge.notified() => due = due.min(Instant::now() + retry),
            () = &mut timer => {
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
