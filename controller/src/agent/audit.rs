//! Whether maps and routes are still as they were left, beside the loop: what comes meanwhile does not wait for it.

use std::{collections::BTreeSet, io, sync::Arc};

use ipnet::Ipv4Net;
use tokio::{
    sync::Mutex,
    task::{spawn_blocking, yield_now},
};

use super::state::State;
use crate::{
    diff::audit::{Audit, Finding},
    kernel::{netlink::Netlink, routes::Via},
    metrics::instruments::Instruments,
};

/// Listings of host routes that a change may have overtaken, one after the other, before a difference is believed.
const LISTINGS: usize = 3;

/// Looks over everything whenever told, for as long as the agent runs.
pub(super) async fn run(state: Arc<Mutex<State>>, instruments: Arc<Instruments>) {
    let due = state.lock().await.audit_due();
    loop {
        due.notified().await;
        let finding = match look_at_maps(&state).await {
            Some(Finding::AsKnown) => look_at_host_routes(&state).await,
            finding => finding,
        };
        if let Some(finding) = finding {
            instruments.audited(finding);
        }
    }
}

async fn look_at_maps(state: &Mutex<State>) -> Option<Finding> {
    let mut audit = Audit::default();
    loop {
        // The lock goes to who waits longest: changes come in between.
        match state.lock().await.audit(&mut audit) {
            Some(Finding::GoesOn) => {}
            finding => return finding,
        }
        yield_now().await;
    }
}

/// The kernel lists them in one go, which takes long if they are many.
async fn look_at_host_routes(state: &Mutex<State>) -> Option<Finding> {
    for _ in 0..LISTINGS {
        let via = state.lock().await.via()?;
        match spawn_blocking(move || list(via)).await {
            Ok(Ok(listed)) if state.lock().await.are_host_routes(&listed) => return Some(Finding::AsKnown),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => tracing::debug!(%error, "host routes cannot be listed"),
        }
    }
    state.lock().await.mend();
    Some(Finding::Differs)
}

fn list(via: Via) -> io::Result<BTreeSet<Ipv4Net>> {
    via.list(&mut Netlink::open()?).map_err(io::Error::other)
}
