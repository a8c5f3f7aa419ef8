//! `cargo xtask demo`: builds, then lets `shunt-lab demo` show it.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, Profile},
    machine, packages, run,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave it standing, and say how to use and remove it
    #[arg(long)]
    keep: bool,
}

/// The command.
///
/// # Errors
/// The build or a check of the demo failed.
pub(crate) fn main(args: &Args) -> Result<()> {
    machine::need_root("`cargo xtask demo`")?;
    packages::need_lab_tools()?;
    let (shunt, lab) = build::shunt_and_lab(Profile::Release)?;
    let mut demo = Command::new(&lab);
    demo.arg("demo").env("SHUNT_BIN", shunt).env("PATH", machine::path_with(&lab));
    if args.keep {
        demo.arg("--keep");
    }
    run::become_program(&mut demo)
}
