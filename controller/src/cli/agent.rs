//! `shunt agent`.

use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::builder::NonEmptyStringValueParser;
use tracing_subscriber::{Layer as _, Registry, filter::Targets, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::Dirs;
use crate::{
    agent,
    config::{AgentOptions, Config, LogFormat},
};

/// Keep this node's dataplane as the cluster state says, until SIGTERM
#[derive(Debug, clap::Args)]
pub(super) struct Agent {
    /// Name of this node's Node object
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    node_name: String,
    /// Directory of Kubernetes YAML, watched for change
    #[arg(long, value_name = "DIR")]
    cluster_state: Option<PathBuf>,
    /// Kubeconfig of an API server; this version refuses it and takes cluster state from --cluster-state alone
    #[arg(long, value_name = "FILE", conflicts_with = "cluster_state")]
    kubeconfig: Option<PathBuf>,
    /// Interface towards other nodes and the outside [default: the one that holds the node's InternalIP]
    #[arg(long, value_name = "IFACE")]
    underlay: Option<String>,
    /// YAML file of settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// cgroup v2 directory of this node's and its pods' processes
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    cgroup: PathBuf,
}

impl Agent {
    pub(super) fn run(self, dirs: &Dirs) -> anyhow::Result<ExitCode> {
        let Some(cluster_state) = self.cluster_state else {
            let source = if self.kubeconfig.is_some() { "--kubeconfig" } else { "the pod's service account" };
            eprintln!("shunt: this version takes no cluster state from an API server ({source}): give it --cluster-state DIR");
            return Ok(ExitCode::from(2));
        };
        let config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        log(&config)?;
        agent::run(AgentOptions {
            node_name: self.node_name,
            cluster_state,
            underlay: self.underlay,
            run_dir: dirs.run_dir.clone(),
            state_dir: dirs.own_state_dir(),
            pin_dir: dirs.own_pin_dir(),
            cgroup: self.cgroup,
            config,
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Lines go to standard error.
fn log(config: &Config) -> anyhow::Result<()> {
    let filter: Targets = config.log_level.parse().context("`logLevel` is no filter")?;
    let lines = fmt::layer::<Registry>().with_writer(io::stderr).with_target(false);
    let layer = match config.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().context("cannot set up logging")
}
