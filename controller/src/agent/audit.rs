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

/// `None` if there is nothing to be found out.
async fn look_at_host_routes(state: &Mutex<State>) -> Option<Finding> {
    let mut suspects = Suspects::default();
    loop {
        let via = state.lock().await.via()?;
        let listed = spawn_blocking(move || list(via)).await.ok()?;
        let listed = listed.inspect_err(|error| tracing::debug!(%error, "host routes cannot be listed")).ok()?;
        let different = state.lock().await.different_host_routes(&listed)?;
        match suspects.after(different) {
            Finding::GoesOn => {}
            Finding::AsKnown => return Some(Finding::AsKnown),
            Finding::Differs => break,
        }
    }
    state.lock().await.mend();
    Some(Finding::Differs)
}

/// Host routes that were different every time. The kernel lists all in one go, which takes long if they are many, so that our own changes may
/// overtake it: what is different every time is somebody else's doing.
#[derive(Debug, Default)]
struct Suspects {
    routes: BTreeSet<Ipv4Net>,
    listings: usize,
}

impl Suspects {
    /// What is found after one more listing, in which these were different.
    fn after(&mut self, different: BTreeSet<Ipv4Net>) -> Finding {
        self.routes = if self.listings == 0 { different } else { &self.routes & &different };
        self.listings += 1;
        match self.routes.is_empty() {
            true => Finding::AsKnown,
            false if self.listings < LISTINGS => Finding::GoesOn,
            false => Finding::Differs,
        }
    }
}

fn list(via: Via) -> io::Result<BTreeSet<Ipv4Net>> {
    via.list(&mut Netlink::open()?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_routes_that_our_changes_overtake_are_nobodys_doing() {
        use Finding::{AsKnown, Differs, GoesOn};
        let cases: [(&[&[u8]], &[Finding]); 6] = [
            (&[&[]], &[AsKnown]),
            (&[&[1], &[]], &[GoesOn, AsKnown]),
            // Others each time, as under a stream of changes.
            (&[&[1], &[2]], &[GoesOn, AsKnown]),
            (&[&[1, 2], &[2, 3], &[3, 1]], &[GoesOn, GoesOn, AsKnown]),
            (&[&[1], &[1], &[1]], &[GoesOn, GoesOn, Differs]),
            (&[&[1, 2], &[2, 3], &[2, 4]], &[GoesOn, GoesOn, Differs]),
        ];
        for (listings, findings) in cases {
            let mut suspects = Suspects::default();
            let routes =
                |hosts: &[u8]| hosts.iter().map(|host| Ipv4Net::from(std::net::Ipv4Addr::new(10, 96, 0, *host))).collect();
            let found: Vec<Finding> = listings.iter().map(|hosts| suspects.after(routes(hosts))).collect();
            assert_eq!(found, findings, "{listings:?}");
        }
    }
}
