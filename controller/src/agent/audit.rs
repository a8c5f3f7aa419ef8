//! Whether pods' host sides, maps and routes are still as they were left, beside the loop: what comes meanwhile does not wait for it.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use ipnet::Ipv4Net;
use tokio::{
    sync::{Mutex, Notify},
    task::spawn_blocking,
    time::sleep,
};

use super::state::State;
use crate::{
    diff::audit::{Audit, Finding},
    kernel::{netlink::Netlink, routes::Via},
    metrics::instruments::Instruments,
};

/// Between two steps: nobody waits for an audit, and a large cluster's thousands of steps are to take no more than part of a CPU.
const PAUSE: Duration = Duration::from_millis(1);

/// Listings of host routes that a change may have overtaken, one after the other, before a difference is believed.
const LISTINGS: usize = 3;

/// Looks over everything whenever told, for as long as the agent runs. `nudge` tells who looks at the node of a mending that failed.
pub(super) async fn run(state: Arc<Mutex<State>>, instruments: Arc<Instruments>, nudge: Arc<Notify>) {
    let due = state.lock().await.audit_due();
    loop {
        due.notified().await;
        look_after_pods(&state).await;
        let finding = match look_at_maps(&state).await {
            Some(Finding::AsKnown) => look_at_host_routes(&state).await,
            finding => finding,
        };
        if let Some(finding) = finding {
            instruments.audited(finding);
        }
        if !state.lock().await.is_settled() {
            nudge.notify_one();
        }
    }
}

async fn look_after_pods(state: &Mutex<State>) {
    let attached = state.lock().await.attached();
    let mut outcome = Ok(());
    for key in &attached {
        let mended = state.lock().await.mend_pod(key);
        outcome = outcome.and(mended);
        sleep(PAUSE).await;
    }
    state.lock().await.pods_are_mended(outcome);
}

async fn look_at_maps(state: &Mutex<State>) -> Option<Finding> {
    let mut audit = Audit::default();
    loop {
        match state.lock().await.audit(&mut audit) {
            Some(Finding::GoesOn) => {}
            finding => return finding,
        }
        if audit.is_unprepared() {
            audit = spawn_blocking(move || {
                audit.prepare();
                audit
            })
            .await
            .ok()?;
        }
        sleep(PAUSE).await;
    }
}

/// The kernel lists them in one go, which takes long if they are many: our own changes may overtake it. What is different every time is
/// somebody else's doing. `None` if there is nothing to be found out.
async fn look_at_host_routes(state: &Mutex<State>) -> Option<Finding> {
    let mut different: Option<BTreeSet<Ipv4Net>> = None;
    for _ in 0..LISTINGS {
        let via = state.lock().await.via()?;
        let listed = spawn_blocking(move || list(via)).await.ok()?;
        let listed = listed.inspect_err(|error| tracing::debug!(%error, "host routes cannot be listed")).ok()?;
        let now = state.lock().await.different_host_routes(&listed)?;
        let still = different.map_or_else(|| now.clone(), |before| &before & &now);
        if still.is_empty() {
            return Some(Finding::AsKnown);
        }
        different = Some(still);
    }
    state.lock().await.mend();
    Some(Finding::Differs)
}

fn list(via: Via) -> io::Result<BTreeSet<Ipv4Net>> {
    via.list(&mut Netlink::open()?).map_err(io::Error::other)
}
