//! `cargo xtask baseline`: renews the committed sizes and times of the eBPF programs after a change that is meant to change them.

use anyhow::Result;

use crate::{
    build, machine, run,
    run::{say, section},
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Compare only, as the tests do
    #[arg(long)]
    check: bool,
}

/// The command.
///
/// # Errors
/// The build or a measurement failed, or with `--check` programs differ.
pub(crate) fn main(args: &Args) -> Result<()> {
    machine::need_root("`cargo xtask baseline`")?;
    // Of the programs as they are now, not as they were built last.
    build::ebpf()?;
    section("Measure: sizes of programs, times of ways");
    let mut test = build::user_cargo("test");
    test.args(["--quiet", "--test", "programs"]);
    if !args.check {
        test.env("BLESS", "1");
    }
    run::run(&mut test)?;
    if !args.check {
        say("renewed: tests/baseline/programs.json; read the difference before you commit it");
    }
    Ok(())
}
