//! `shunt agent`.

use std::{
    env,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::builder::NonEmptyStringValueParser;
use tracing_subscriber::{
    Layer as _, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::Dirs;
use crate::{
    agent,
    config::{AgentOptions, Config, LogFormat, SourceOptions},
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
    /// Kubeconfig of the API server to watch [default: the API server of the pod's service account]
    #[arg(long, value_name = "FILE", conflicts_with = "cluster_state")]
    kubeconfig: Option<PathBuf>,
    /// Interface towards other nodes and the outside [default: the one that holds the node's InternalIP]
    #[arg(long, value_name = "IFACE")]
    underlay: Option<String>,
    /// Take this node over from flannel and kube-proxy while its pods run; `shunt rollback` undoes it
    #[arg(long)]
    takeover: bool,
    /// Where the runtime and flannel's CNI plugin keep what they have given to pods
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    cni_state_dir: PathBuf,
    /// YAML file of settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// cgroup v2 directory of this node's and its pods' processes
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/cgroup")]
    cgroup: PathBuf,
}

impl Agent {
    pub(super) fn run(self, dirs: &Dirs) -> anyhow::Result<ExitCode> {
        let source = match (self.cluster_state, self.kubeconfig) {
            (Some(dir), _) => SourceOptions::Files(dir),
            (None, Some(kubeconfig)) => SourceOptions::Kubeconfig(kubeconfig),
            (None, None) if env::var_os("KUBERNETES_SERVICE_HOST").is_some() => SourceOptions::InCluster,
            (None, None) => {
                eprintln!(
                    "shunt: this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set): give --kubeconfig FILE or --cluster-state DIR"
                );
                return Ok(ExitCode::from(2));
            }
        };
        let config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        log(&config)?;
        agent::run(AgentOptions {
            node_name: self.node_name,
            source,
            underlay: self.underlay,
            run_dir: dirs.run_dir.clone(),
            state_dir: dirs.own_state_dir(),
            pin_dir: dirs.own_pin_dir(),
            takeover: self.takeover,
            cni_state_dir: self.cni_state_dir,
            cgroup: self.cgroup,
            config,
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The filter that `logLevel` says. What the API client's library tells of each failed request is left out unless it is asked for by
/// name: that the server is not reached is said once, as a reason of health, and not again with every try.
fn filter(log_level: &str) -> anyhow::Result<Targets> {
    const CHATTY: &str = "kube_client";
    let filter: Targets = log_level.parse().context("`logLevel` is no filter")?;
    let is_asked_for = filter.iter().any(|(target, _)| target.starts_with(CHATTY));
    Ok(if is_asked_for { filter } else { filter.with_target(CHATTY, LevelFilter::OFF) })
}

/// Lines go to standard error.
fn log(config: &Config) -> anyhow::Result<()> {
    let filter = filter(&config.log_level)?;
    let lines = fmt::layer::<Registry>().with_writer(io::stderr).with_target(false);
    let layer = match config.log_format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().context("cannot set up logging")
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn the_api_clients_library_speaks_when_it_is_asked() {
        let tells = |level, target| filter(level).unwrap().would_enable(target, &Level::ERROR);
        assert!(tells("info", "shunt::agent"));
        assert!(!tells("info", "kube_client::client::builder"));
        assert!(tells("info,kube_client=debug", "kube_client::client::builder"));
        assert!(tells("info,kube_client::client=error", "kube_client::client::builder"));
        assert!(filter("loud=very").is_err());
    }
}
