//! The agent's socket, `RUN_DIR/agent.sock`: newline-delimited JSON, for root alone. No decision is taken here.

pub mod claim;
pub mod client;
pub mod protocol;
pub mod server;

use std::path::{Path, PathBuf};

/// Where the agent of a run directory listens.
#[must_use]
pub fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("agent.sock")
}
