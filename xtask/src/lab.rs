//! `cargo xtask lab`: a lab that stays up, to play with.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, Profile},
    machine, packages, run,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `up`, `down [LAB]`, `list`, or `exec WHERE COMMAND...`; `shunt-lab help` has the rest
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// The command.
///
/// # Errors
/// The build or the lab failed.
pub(crate) fn main(args: &Args) -> Result<()> {
    machine::need_root("`cargo xtask lab`")?;
    packages::need_lab_tools()?;
    let (shunt, lab) = build::shunt_and_lab(Profile::Release)?;
    let mut command = Command::new(&lab);
    command.args(&args.command).env("SHUNT_BIN", shunt).env("PATH", machine::path_with(&lab));
    run::become_program(&mut command)
}
