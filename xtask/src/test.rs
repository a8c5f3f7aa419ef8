//! `cargo xtask test`: everything that must hold, in order of how quickly it can fail.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    build::{self, Profile},
    image, lint, machine, manifests, packages, run,
    run::{say, section},
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this, without the lint
    filter: Option<String>,
    /// Leave formatting, clippy and documentation out
    #[arg(long)]
    no_lint: bool,
}

/// The command.
///
/// # Errors
/// A check or a test failed.
pub(crate) fn main(args: &Args) -> Result<()> {
    machine::need_root("`cargo xtask test`")?;
    packages::need_lab_tools()?;
    packages::need_image_tools()?;
    let start = Instant::now();
    let mut stages: Vec<(&str, Duration)> = Vec::new();
    let mut timed = |name: &'static str, stage: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let begin = Instant::now();
        stage()?;
        stages.push((name, begin.elapsed()));
        say(&format!("{name}: passed, {} s", begin.elapsed().as_secs()));
        Ok(())
    };

    if !args.no_lint && args.filter.is_none() {
        timed("lint", &mut lint::all)?;
    }
    // All packages in every call, so that cargo chooses the same features each time and builds nothing twice.
    timed("build", &mut || {
        build::ebpf()?;
        section("Build: shunt and all tests");
        run::run(build::user_cargo("test").arg("--no-run"))
    })?;
    let filter = args.filter.as_deref();
    timed("unit tests", &mut || {
        section("Test: units, properties, goldens");
        run::run(build::user_cargo("test").args(["--lib", "--bins", "--"]).args(filter))
    })?;
    timed("manifests", &mut manifests::all)?;
    // Built as shipped, which takes its time: left out where other tests are asked for.
    if filter.is_none_or(|filter| filter.contains("image")) {
        timed("image", &mut || image::of_this_machine())?;
    }
    timed("packets and lab", &mut || {
        section("Test: the binary, packets through the programs, nodes in a lab");
        let mut tests = build::user_cargo("test");
        tests.env("SHUNT_BIN", build::binary(Profile::Debug, "shunt")).env("SHUNT_IMAGE", image::file_of_this_machine()?);
        tests.env("SHUNT_MANIFESTS", manifests::rendered());
        run::run(tests.args(["--test", "*", "--no-fail-fast", "--", "--test-threads=2"]).args(filter))
    })?;

    section("Passed");
    for (name, took) in stages {
        say(&format!("{name:<16} {:>4} s", took.as_secs()));
    }
    say(&format!("{:<16} {:>4} s", "all", start.elapsed().as_secs()));
    Ok(())
}
