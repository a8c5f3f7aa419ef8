//! `cargo xtask lint`: formatting, clippy and documentation; a warning is an error.
//!
//! The eBPF crate is linted twice: by the stable clippy, as a `no_std` program of the host (the compiler that builds
//! it for its target may come without clippy), and by its own compiler on its own target.

use std::time::Instant;

use anyhow::Result;

use crate::{
    build, run,
    run::{say, section},
    toolchain::{self, Toolchain},
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The command.
///
/// # Errors
/// Something is not as it should be.
pub(crate) fn main(_args: &Args) -> Result<()> {
    let start = Instant::now();
    all()?;
    say(&format!("clean, {} s", start.elapsed().as_secs()));
    Ok(())
}

/// Formatting, clippy, documentation.
///
/// # Errors
/// Something is not as it should be.
pub(crate) fn all() -> Result<()> {
    toolchain::need_component("rustfmt", "fmt")?;
    toolchain::need_component("clippy", "clippy")?;
    section("Lint: formatting");
    run::run(toolchain::cargo("fmt").args(["--all", "--check"]))?;

    // The binary carries the object inside, so it comes first.
    build::ebpf()?;
    section("Lint: eBPF programs");
    let mut host = toolchain::cargo("clippy");
    host.args(["--package", "shunt-dataplane", "--config", "profile.dev.panic=\"abort\"", "--", "-D", "warnings"]);
    run::run(host.env("RUSTC_BOOTSTRAP", "1"))?;
    let mut own = Toolchain::get()?.cargo("check");
    run::run(own.args(["-Z", "warnings", "--config", "build.warnings=\"deny\""]))?;

    section("Lint: user side");
    run::run(toolchain::cargo("clippy").args(["--all-targets", "--", "-D", "warnings"]))?;
    section("Lint: documentation");
    run::run(toolchain::cargo("doc").args(["--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "-D warnings"))
}
