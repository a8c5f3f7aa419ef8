//! kube-proxy itself, where somebody has it: to hold against it what this room writes, and to measure it.

use std::{
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{CLUSTER, Mode};
use crate::{
    api_server::{ApiServer, Transport},
    cluster::Cluster,
    netns::Netns,
    node::Node,
    traffic::http,
};

/// What it says, among the node's files.
const LOG: &str = "kube-proxy.log";
/// Where it tells what it has done, in the node's namespace.
const METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 10_249);
/// When it has last written all rules; 0 before the first time.
const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
/// What a large cluster may take it.
const SYNCED_WITHIN: Duration = Duration::from_secs(300);

/// kube-proxy, running on a node. Dropping it ends it; its rules stay.
#[derive(Debug)]
pub struct RealProxy {
    process: Child,
    _server: ApiServer,
}

impl RealProxy {
    /// Starts it on a node for a cluster as that is now, and waits until all rules are in force.
    ///
    /// # Errors
    /// It could not be started, ends, or doesn't come to it; the error has the end of its log.
    pub fn start(program: &Path, node: &Node, cluster: &Cluster, mode: Mode) -> Result<Self> {
        // On the node's own loopback interface, which has no part in what is asked or measured.
        let netns = Netns::open(node.netns.name())?;
        let server = ApiServer::start(SocketAddr::from(([127, 0, 0, 1], 0)), Some(netns), Transport::Tls)?;
        cluster.objects()?.iter().try_for_each(|object| server.put(object))?;
        let kubeconfig = server.kubeconfig(&node.log_file().with_file_name("kube-proxy"))?;
        let log = node.output_file(LOG)?;
        let mut command = node.netns.command(program);
        command.arg("--kubeconfig").arg(kubeconfig).args(["--hostname-override", &node.name, "--cluster-cidr", CLUSTER]);
        command.args(["--proxy-mode", if mode == Mode::Nftables { "nftables" } else { "iptables" }]);
        command.args(["--nodeport-addresses", "primary", "--healthz-bind-address", "127.0.0.1:10256"]);
        command.args(["--metrics-bind-address", "127.0.0.1:10249"]);
        // Settings of connection tracking are the whole machine's.
        command.args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
        command.args(["--conntrack-tcp-timeout-established=0s", "--conntrack-tcp-timeout-close-wait=0s"]);
        // Ctrl-C is for us, who then take everything down in order.
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let mut this = Self { process, _server: server };
        let start = Instant::now();
        while let Err(error) = is_synced(node) {
            if let Some(status) = this.process.try_wait()? {
                bail!("kube-proxy has ended with {status}; its log ends:\n{}", node.output_tail(LOG));
            }
            if start.elapsed() > SYNCED_WITHIN {
                return Err(
                    error.context(format!("still so after {SYNCED_WITHIN:?}; its log ends:\n{}", node.output_tail(LOG)))
                );
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(this)
    }
}

fn is_synced(node: &Node) -> Result<()> {
    let metrics = http::get(&node.netns, SocketAddr::from(METRICS), "/metrics", "")?.body;
    let values = metrics.lines().filter(|line| line.starts_with(SYNCED)).filter_map(|line| line.rsplit(' ').next());
    ensure!(values.flat_map(str::parse::<f64>).any(|time| time > 0.0), "kube-proxy has not written its rules");
    Ok(())
}

impl Drop for RealProxy {
    fn drop(&mut self) {
        // Errors say that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
