//! The command line: one command a file. Exit codes: 0 done and healthy, 1 failed or unhealthy, 2 wrong usage.

mod agent;
mod cleanup;
mod get;
mod monitor;
mod output;
mod rollback;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use crate::socket::claim::last_holder;

#[derive(Debug, Parser)]
#[command(
    name = "shunt",
    version,
    about = "The network of a Kubernetes node: eBPF programs and the agent that fills their maps"
)]
#[command(after_help = "With CNI_COMMAND in its environment, shunt is the CNI plugin instead.")]
struct Cli {
    #[command(flatten)]
    dirs: Dirs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep this node's dataplane as the cluster state says, until SIGTERM
    Agent(agent::Agent),
    /// Show health, counts, the last sync and drops on one screen; exit 0 only if healthy
    Status(status::Status),
    /// Show what the kernel holds now; works without an agent
    Get(get::Get),
    /// Show events as they happen
    Monitor(monitor::Monitor),
    /// Put a node back that a stopped agent took over from flannel and kube-proxy
    Rollback(rollback::Rollback),
    /// Remove every trace of a stopped agent from this node
    Cleanup(cleanup::Cleanup),
}

/// Where an agent keeps what. Beside an agent, or after one, its run directory tells the others.
#[derive(Clone, Debug, Args)]
struct Dirs {
    /// Directory of the agent's socket and lock
    #[arg(long, global = true, value_name = "DIR", default_value = "/run/shunt")]
    run_dir: PathBuf,
    /// Directory of the addresses given to pods [default: that of the agent in RUN_DIR, else /var/lib/shunt]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Directory of pinned maps and links, on a BPF filesystem [default: that of the agent in RUN_DIR, else /sys/fs/bpf/shunt]
    #[arg(long, global = true, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
}

impl Dirs {
    /// For an agent, which starts from what it is told alone.
    fn own_state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| "/var/lib/shunt".into())
    }

    /// Likewise.
    fn own_pin_dir(&self) -> PathBuf {
        self.pin_dir.clone().unwrap_or_else(|| "/sys/fs/bpf/shunt".into())
    }

    /// For a reader: as told, else as the present or last agent has it, else the default.
    fn found_state_dir(&self) -> PathBuf {
        let found = || last_holder(&self.run_dir).map(|holder| holder.state_dir);
        self.state_dir.clone().or_else(found).unwrap_or_else(|| self.own_state_dir())
    }

    /// Likewise.
    fn found_pin_dir(&self) -> PathBuf {
        let found = || last_holder(&self.run_dir).map(|holder| holder.pin_dir);
        self.pin_dir.clone().or_else(found).unwrap_or_else(|| self.own_pin_dir())
    }
}

/// Runs the command of this process' arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Agent(command) => command.run(&cli.dirs),
        Command::Status(command) => command.run(&cli.dirs),
        Command::Get(command) => command.run(&cli.dirs),
        Command::Monitor(command) => command.run(&cli.dirs),
        Command::Rollback(command) => command.run(&cli.dirs),
        Command::Cleanup(command) => command.run(&cli.dirs),
    };
    outcome.unwrap_or_else(|error| {
        if output::is_broken_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("shunt: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn directories_can_stand_before_and_behind_the_command() {
        for line in ["shunt --run-dir /r --pin-dir /p get pods", "shunt get pods --run-dir /r --pin-dir /p"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(cli.dirs.run_dir, PathBuf::from("/r"));
            assert_eq!(cli.dirs.found_pin_dir(), PathBuf::from("/p"));
            assert_eq!(cli.dirs.found_state_dir(), PathBuf::from("/var/lib/shunt"));
        }
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for line in [
            "shunt",
            "shunt frobnicate",
            "shunt get",
            "shunt get everything",
            "shunt get pods -o xml",
            "shunt status -o yaml",
            "shunt status extra",
            "shunt agent",
            "shunt monitor --everything",
            "shunt agent --node-name n --cluster-state /a --kubeconfig /b",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
