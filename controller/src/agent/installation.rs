//! Keeps the CNI plugin and its configuration installed, beside the loop.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    task::spawn_blocking,
};

use super::state::{Facts, State};
use crate::install::Installer;

/// Between looks: whoever removes the configuration has it back before a kubelet gives the node up for that.
const CHECK: Duration = Duration::from_secs(5);

/// Runs for as long as the agent does. `facts` tells when pods can be added.
pub(super) async fn keep(mut installer: Installer, mut facts: watch::Receiver<Facts>, state: Arc<Mutex<State>>) {
    loop {
        let is_ready = facts.borrow_and_update().can_add_pods;
        let look = move || {
            let outcome = installer.ensure(is_ready);
            (installer, outcome)
        };
        // It can only fail when the runtime ends.
        let Ok((again, outcome)) = spawn_blocking(look).await else { return };
        installer = again;
        state.lock().await.health_of_installation(outcome);
        let change = tokio::time::timeout(CHECK, facts.changed()).await;
        if matches!(change, Ok(Err(_))) {
            return;
        }
    }
}
