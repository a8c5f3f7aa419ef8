//! Running programs of the machine, with errors that say what was run and what it said.

use std::{
    env,
    ffi::OsStr,
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// A program of the machine. Those of root are found also when `PATH` leaves their directories out, as a user's or a service's does.
#[must_use]
pub fn program(name: &OsStr) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)).map(|dir| dir.join(name));
    let found = if Path::new(name).components().count() == 1 { places.find(|file| file.is_file()) } else { None };
    found.unwrap_or_else(|| PathBuf::from(name))
}

/// A command as one could type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let _ = write!(text, " {}", arg.to_string_lossy());
    }
    text
}

/// Runs to the end; what it wrote, whether it succeeded or not.
///
/// # Errors
/// It could not be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", shown(command)))
}

/// Runs to the end; what it wrote to stdout.
///
/// # Errors
/// It could not be started or failed; with what it wrote to stderr.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    checked(command, output)
}

/// As [`run`], with something to read on stdin.
///
/// # Errors
/// It could not be started or failed; with what it wrote to stderr.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that refuses early may close its stdin before it has read all.
        let _ = stdin.write_all(input);
    }
    Ok(child.wait_with_output()?)
}

fn checked(command: &Command, output: Output) -> Result<String> {
    if !output.status.success() {
        bail!("`{}` failed ({}): {}", shown(command), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
