//! `cargo xtask bench`: builds as shipped, then lets `shunt-lab bench` measure.

use std::process::Command;

use anyhow::Result;

use crate::{
    build::{self, Profile},
    machine, packages, run,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// `--quick`, names of rows; `shunt-lab bench --help` has the rest
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

/// The command.
///
/// # Errors
/// The build or a measurement failed.
pub(crate) fn main(args: &Args) -> Result<()> {
    machine::need_root("`cargo xtask bench`")?;
    packages::need_lab_tools()?;
    let (shunt, lab) = build::shunt_and_lab(Profile::Release)?;
    let mut bench = Command::new(&lab);
    bench.arg("bench").args(&args.options).env("SHUNT_BIN", shunt).env("PATH", machine::path_with(&lab));
    run::become_program(&mut bench)
}
