//! Running other programs, visibly: their output is streamed, failures name the command, and long silence is broken by a ticker.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    io::{self, IsTerminal},
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

const TICK: Duration = Duration::from_secs(15);

/// A section header with an empty line before it.
pub(crate) fn section(title: &str) {
    if io::stderr().is_terminal() {
        eprintln!("\n\x1b[1m== {title}\x1b[0m");
    } else {
        eprintln!("\n== {title}");
    }
}

/// One line that says what happens next and why.
pub(crate) fn say(text: &str) {
    eprintln!("   {text}");
}

/// A command as one could type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = String::new();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(text, "{}={} ", key.to_string_lossy(), quoted(value));
        }
    }
    text.push_str(&quoted(command.get_program()));
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&quoted(arg));
    }
    text
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains([' ', '"', '\x1f', '*', '$']) { format!("'{word}'") } else { word.into_owned() }
}

/// Runs to the end with its output on our stderr (stdout stays clean for results) and no stdin.
///
/// # Errors
/// It could not be started or did not succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    command.stdin(Stdio::null()).stdout(Stdio::from(io::stderr()));
    let status = ticking(command)?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Becomes another program, for what talks to the user: Ctrl-C reaches it alone, and its exit code is ours.
///
/// # Errors
/// It could not be started; otherwise this doesn't return.
pub(crate) fn become_program(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start `{}`", shown(command)))
}

/// What a command prints on stdout, `None` if it cannot be started or fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn ticking(command: &mut Command) -> Result<ExitStatus> {
    let what = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", shown(command)))?;
    let (done, is_done) = mpsc::channel::<()>();
    let ticker = thread::spawn(move || {
        let start = Instant::now();
        while let Err(mpsc::RecvTimeoutError::Timeout) = is_done.recv_timeout(TICK) {
            if !io::stderr().is_terminal() {
                eprintln!("   ... {what}, {} s", start.elapsed().as_secs());
            }
        }
    });
    let status = child.wait();
    drop(done);
    let _ = ticker.join();
    status.with_context(|| format!("cannot wait for `{}`", shown(command)))
}
