//! `shunt-lab`: shows, keeps and measures labs. `cargo xtask demo|lab|bench|load` builds and calls it.

use std::{
    net::SocketAddrV4,
    process::ExitCode,
    sync::atomic::{AtomicI32, Ordering},
    thread,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use shunt_lab::{bench, demo, lab, standing};

#[derive(Parser)]
#[command(name = "shunt-lab", about = "Nodes, pods and wires in network namespaces", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Two nodes, pods on each and a Service, shown in a minute
    Demo {
        /// Leave it standing, and say how to use and remove it
        #[arg(long)]
        keep: bool,
    },
    /// Build the demo's lab and leave it standing
    Up,
    /// Remove a kept lab, or all of them
    Down {
        /// Its id; all if left out
        lab: Option<String>,
    },
    /// Labs that stand
    List,
    /// Run a command in a namespace of a kept lab: `n1`, `n1-web-a`, `outside`, ...
    Exec {
        /// The namespace
        place: String,
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Load and attach the programs on this machine, apart from everything else, until Ctrl-C
    Load {
        /// Attach to this interface of the machine instead of one in a namespace
        #[arg(long)]
        underlay: Option<String>,
    },
    /// Answer on TCP and UDP under a name until killed: what a pod of a kept lab runs
    #[command(hide = true)]
    Serve {
        /// The name
        name: String,
        /// Address and port
        address: SocketAddrV4,
    },
    /// Measure against a bare wire, flannel's way and kube-proxy's rules
    Bench(bench::Options),
}

fn main() -> ExitCode {
    if let Err(error) = clean_up_on_signals() {
        eprintln!("shunt-lab: {error:#}");
        return ExitCode::FAILURE;
    }
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shunt-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo { keep } => demo::run(keep),
        Command::Up => standing::up(),
        Command::Down { lab } => standing::down(lab.as_deref()),
        Command::List => standing::list(),
        Command::Exec { place, command } => standing::exec(&place, &command),
        Command::Load { underlay } => {
            ON_SIGNAL.store(0, Ordering::Relaxed);
            standing::load(underlay.as_deref())
        }
        Command::Serve { name, address } => standing::serve(&name, address),
        Command::Bench(options) => bench::run(&options),
    }
}

/// The exit code after a signal: a command was interrupted, unless a signal is how it ends.
static ON_SIGNAL: AtomicI32 = AtomicI32::new(130);

/// On SIGINT, SIGTERM and SIGHUP, removes our labs and ends. Signals are blocked first, so that every thread inherits it.
fn clean_up_on_signals() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\n{signal}: cleaning up");
            lab::remove_own();
            std::process::exit(ON_SIGNAL.load(Ordering::Relaxed));
        }
    });
    Ok(())
}
