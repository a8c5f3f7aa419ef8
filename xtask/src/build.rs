//! `cargo xtask build`: the eBPF object, then `shunt` with it inside, static.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

use crate::{
    run,
    run::{say, section},
    toolchain::{self, Toolchain},
    workspace,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Optimised, as shipped
    #[arg(long)]
    release: bool,
}

/// How the user side is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Debug,
    /// As shipped.
    Release,
}

impl Profile {
    fn dir(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// The command.
///
/// # Errors
/// A build failed or a tool is missing.
pub(crate) fn main(args: &Args) -> Result<()> {
    let binary = shunt(if args.release { Profile::Release } else { Profile::Debug })?;
    println!("{}", binary.display());
    Ok(())
}

/// Builds the eBPF object.
///
/// # Errors
/// The build failed or a tool is missing.
pub(crate) fn ebpf() -> Result<PathBuf> {
    let toolchain = Toolchain::get()?;
    section("Build: eBPF programs");
    say(&toolchain.describe());
    run::run(&mut toolchain.cargo("build"))?;
    let object = workspace::ebpf_object();
    ensure!(object.is_file(), "the eBPF build succeeded but left no {}", object.display());
    Ok(object)
}

/// Builds the eBPF object and the binary, and says where the binary is.
///
/// # Errors
/// A build failed or a tool is missing.
pub(crate) fn shunt(profile: Profile) -> Result<PathBuf> {
    ebpf()?;
    user(profile, &["shunt"])?;
    Ok(binary(profile, "shunt"))
}

/// Builds everything and says where `shunt` and `shunt-lab` are.
///
/// # Errors
/// A build failed or a tool is missing.
pub(crate) fn shunt_and_lab(profile: Profile) -> Result<(PathBuf, PathBuf)> {
    ebpf()?;
    // At once: cargo chooses features of dependencies by what is built together, and would build some twice.
    user(profile, &["shunt", "shunt-lab"])?;
    Ok((binary(profile, "shunt"), binary(profile, "shunt-lab")))
}

/// Builds the eBPF object and the binary as shipped, for a target that may not be this machine's, and says where the binary is.
///
/// # Errors
/// A build failed or a tool is missing.
pub(crate) fn shipped(target: &str, linker: Option<&Path>) -> Result<PathBuf> {
    ebpf()?;
    section(&format!("Build: shunt for {target}"));
    let mut command = cargo_for(target, "build");
    command.args(["--package", "shunt", "--bin", "shunt", "--release"]);
    if let Some(linker) = linker {
        command.env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_")), linker);
    }
    run::run(&mut command)?;
    Ok(binary_for(target, Profile::Release, "shunt"))
}

fn user(profile: Profile, binaries: &[&str]) -> Result<()> {
    section(&format!("Build: {}", binaries.join(", ")));
    let mut command = user_cargo("build");
    for binary in binaries {
        command.args(["--package", binary, "--bin", binary]);
    }
    if profile == Profile::Release {
        command.arg("--release");
    }
    run::run(&mut command)
}

/// Where a binary of the user side is once it is built.
pub(crate) fn binary(profile: Profile, name: &str) -> PathBuf {
    binary_for(&workspace::user_target(), profile, name)
}

fn binary_for(target: &str, profile: Profile, name: &str) -> PathBuf {
    workspace::target_dir().join(target).join(profile.dir()).join(name)
}

/// A cargo command for the user side on this machine, linked statically.
pub(crate) fn user_cargo(verb: &str) -> Command {
    cargo_for(&workspace::user_target(), verb)
}

fn cargo_for(target: &str, verb: &str) -> Command {
    let mut flags = env::var("CARGO_ENCODED_RUSTFLAGS")
        .or_else(|_| env::var("RUSTFLAGS").map(|flags| flags.split_whitespace().collect::<Vec<_>>().join("\x1f")))
        .unwrap_or_default();
    if !flags.is_empty() {
        flags.push('\x1f');
    }
    flags.push_str("-Ctarget-feature=+crt-static");
    let mut command = toolchain::cargo(verb);
    command.args(["--target", target]);
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", flags);
    command
}
