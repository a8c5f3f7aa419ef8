//! `shunt rollback`.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{Dirs, output};
use crate::{
    kernel::pins::PinDir,
    socket::claim::{Claim, Holder},
    takeover::rollback,
};

/// Put a node back that a stopped agent took over: flannel's routes, kube-proxy's rules, live connections
#[derive(Debug, clap::Args)]
pub(super) struct Rollback {}

impl Rollback {
    pub(super) fn run(self, dirs: &Dirs) -> anyhow::Result<ExitCode> {
        let (pin_dir, state_dir) = (dirs.found_pin_dir(), dirs.found_state_dir());
        // Written down again, so that a second try finds the same directories.
        let holder =
            Holder { pid: std::process::id(), node: String::new(), pin_dir: pin_dir.clone(), state_dir: state_dir.clone() };
        let claim = Claim::take(&dirs.run_dir, &holder).context("not rolled back")?;
        let undone = rollback::run(&PinDir::new(&pin_dir), &state_dir)?;
        output::line(&format!(
            "put back {} rules and {} routes; {} flows are the host's again, {} could not be given to it; {} pods of shunt's stay",
            undone.rules, undone.routes, undone.flows, undone.refused, undone.pods
        ))?;
        for note in &undone.notes {
            output::line(note)?;
        }
        drop(claim);
        Ok(ExitCode::SUCCESS)
    }
}
