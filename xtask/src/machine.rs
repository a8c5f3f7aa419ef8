//! What this machine is and has: programs on it, and whether we may change it.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use crate::run;

/// A program by name: on `PATH`, in cargo's bin directory, or where Debian keeps tools for root.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let others = [cargo_bin(), PathBuf::from("/usr/sbin"), PathBuf::from("/sbin"), PathBuf::from("/usr/bin")];
    env::split_paths(&path).chain(others).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Where `cargo install` puts programs.
pub(crate) fn cargo_bin() -> PathBuf {
    if let Some(dir) = env::var_os("CARGO_INSTALL_ROOT") {
        return PathBuf::from(dir).join("bin");
    }
    if let Some(dir) = env::var_os("CARGO_HOME") {
        return PathBuf::from(dir).join("bin");
    }
    PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cargo/bin")
}

/// `PATH` with a program's directory first, and those of root's tools last.
pub(crate) fn path_with(program: &Path) -> std::ffi::OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let first = program.parent().map(Path::to_path_buf).into_iter();
    let last = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    env::join_paths(first.chain(env::split_paths(&path)).chain(last)).unwrap_or(path)
}

/// Whether we run as root.
pub(crate) fn is_root() -> bool {
    run::output(std::process::Command::new("id").arg("-u")).as_deref() == Some("0")
}

/// Refuses to go on without root.
///
/// # Errors
/// We are not root; says what for.
pub(crate) fn need_root(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    bail!("{what} makes network namespaces and loads eBPF programs, which needs root: run it again as root")
}
