//! `cargo xtask load`: builds, then lets `shunt-lab load` run an agent on this machine, apart from everything else.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, Profile},
    machine, packages, run,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Attach to this interface of the machine instead of a dummy one
    #[arg(long)]
    underlay: Option<String>,
}

/// The command.
///
/// # Errors
/// The build, loading or attaching failed.
pub(crate) fn main(args: &Args) -> Result<()> {
    machine::need_root("`cargo xtask load`")?;
    packages::need_lab_tools()?;
    let (shunt, lab) = build::shunt_and_lab(Profile::Debug)?;
    let mut load = Command::new(&lab);
    load.arg("load").env("SHUNT_BIN", shunt).env("PATH", machine::path_with(&lab));
    if let Some(underlay) = &args.underlay {
        load.args(["--underlay", underlay]);
    }
    run::become_program(&mut load)
}
