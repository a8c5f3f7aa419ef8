//! What an image for a processor needs: its `strip`, and where it is not this machine's its linker and Rust's library for it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::Platform;
use crate::{machine, packages, run, run::say};

/// Programs for one processor.
pub(super) struct Tools {
    /// `None`: cargo's own choice.
    pub(super) linker: Option<PathBuf>,
    pub(super) strip: PathBuf,
}

impl Tools {
    /// Finds them, and installs what is missing.
    ///
    /// # Errors
    /// Something is missing and cannot be installed from here; says which commands would.
    pub(super) fn get(platform: Platform) -> Result<Self> {
        if Platform::of_this_machine().is_ok_and(|own| own == platform) {
            return Ok(Self { linker: None, strip: program("strip", &["binutils"])? });
        }
        need_library(&platform.target())?;
        let prefix = format!("{}-linux-gnu", platform.machine());
        let packages = match platform {
            Platform::Amd64 => ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            Platform::Arm64 => ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        };
        let linker = program(&format!("{prefix}-gcc"), &packages)?;
        Ok(Self { linker: Some(linker), strip: program(&format!("{prefix}-strip"), &packages)? })
    }
}

fn program(name: &str, packages: &[&str]) -> Result<PathBuf> {
    if let Some(found) = machine::find_program(name) {
        return Ok(found);
    }
    say(&format!("missing: {name} (packages {}): makes the program of the image", packages.join(" ")));
    packages::install(packages)?;
    machine::find_program(name).with_context(|| format!("{} are installed, but there is still no {name}", packages.join(" ")))
}

fn need_library(target: &str) -> Result<()> {
    let library = run::output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]));
    if library.is_some_and(|dir| Path::new(&dir).is_dir()) {
        return Ok(());
    }
    say(&format!("missing: Rust's library for {target}; installing it: rustup target add {target}"));
    run::run(Command::new("rustup").args(["target", "add", target]))
        .with_context(|| format!("this toolchain cannot build for {target}: add it with `rustup target add {target}`"))
}
