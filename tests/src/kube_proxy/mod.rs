//! kube-proxy on one node, as far as packets can tell: the rules that it lays out (Kubernetes 1.36, `pkg/proxy`), written from the
//! cluster's state.
//!
//! What takes part in deciding here is nothing of ours: the agent's `compile` must not enter, for it is what these rules are to judge.

mod iptables;
mod nftables;
mod port;
mod real;

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use shunt::model::Model;

pub use self::{
    port::{Endpoints, ServicePort},
    real::RealProxy,
};

use crate::{command, netns::Netns};

/// Pods of the whole cluster: `clusterCIDR`, by which kube-proxy knows a pod's traffic (`detectLocalMode: ClusterCIDR`, kubeadm's way).
pub(crate) const CLUSTER: &str = "10.244.0.0/16";
/// What ClusterIPs are taken from, kubeadm's default.
const SERVICES: &str = "10.96.0.0/12";

/// Whichever tables the distribution has chosen; those of nf_tables nowadays.
pub(crate) const RESTORE: &str = "iptables-restore";

/// How many lines of rules that are refused are shown.
const SHOWN: usize = 2000;

/// How kube-proxy has packets translated (`mode` of its configuration).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `iptables`.
    Iptables,
    /// The same, in the tables that nf_tables knows nothing of.
    LegacyIptables,
    /// `nftables`.
    Nftables,
}

impl Mode {
    /// The program that writes rules of iptables on such a node.
    pub(crate) fn restore(self) -> &'static str {
        match self {
            Self::Iptables | Self::Nftables => RESTORE,
            Self::LegacyIptables => "iptables-legacy-restore",
        }
    }
}

/// What kube-proxy on a node has to serve.
#[derive(Clone, Debug)]
pub struct Proxy {
    node_ip: Ipv4Addr,
    ports: Vec<ServicePort>,
}

impl Proxy {
    /// Ports of all Services, as the node of a name sees them.
    ///
    /// # Errors
    /// The node is not in the cluster, or has no IPv4 address.
    pub fn new(model: &Model, node: &str) -> Result<Self> {
        let known = model.nodes().get(node).with_context(|| format!("no Node {node}"))?;
        let node_ip = port::v4(&known.addresses).next().with_context(|| format!("Node {node} has no IPv4 address"))?;
        let ports = model.services().values().flat_map(|service| ServicePort::of(service, model, known)).collect();
        Ok(Self { node_ip, ports })
    }

    /// All rules of the iptables mode for `iptables-restore --noflush`. Chains come empty and are filled, so that it can be given again after a
    /// change; chains that nothing leads to any more stay, as kube-proxy leaves them in a large cluster.
    #[must_use]
    pub fn iptables(&self) -> String {
        iptables::document(self.node_ip, &self.ports, |_| true)
    }

    /// All of the nftables mode's table for `nft -f`, which replaces it in one transaction.
    #[must_use]
    pub fn nftables(&self) -> String {
        nftables::document(self.node_ip, &self.ports)
    }

    /// What a mode writes when of the Service `namespace/name` other endpoints serve than before. In the iptables mode that is the rules that
    /// catch packets for all Services, but the chains behind those for this one alone (its partial sync, KEP-3453); in the nftables mode
    /// only the latter.
    #[must_use]
    pub fn change(&self, mode: Mode, service: &str) -> String {
        let is_of =
            |port: &ServicePort| port.name.strip_prefix(service).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'));
        match mode {
            Mode::Iptables | Mode::LegacyIptables => iptables::document(self.node_ip, &self.ports, is_of),
            Mode::Nftables => {
                let ports: Vec<_> = self.ports.iter().filter(|port| is_of(port)).collect();
                nftables::change(self.node_ip, &ports)
            }
        }
    }

    /// Puts all rules in force in a node's namespace, where there are none yet.
    ///
    /// # Errors
    /// They are refused.
    pub fn start(&self, netns: &Netns, mode: Mode) -> Result<()> {
        if mode == Mode::Nftables {
            return write(netns, mode, &self.nftables());
        }
        write(netns, mode, iptables::JUMPS)?;
        write(netns, mode, &self.iptables())
    }

    /// The same rules in less time than kube-proxy takes: chains that are added to what there is are looked for one by one, minutes for a
    /// large cluster where whole tables take seconds.
    ///
    /// # Errors
    /// They are refused.
    pub fn load(&self, netns: &Netns, mode: Mode) -> Result<()> {
        if mode == Mode::Nftables {
            return self.start(netns, mode);
        }
        let program = mode.restore();
        restore(netns, program, iptables::JUMPS)?;
        let saved = command::run(&mut netns.command(program.replace("restore", "save")))?;
        feed(netns, program, &["-w"], &iptables::merged(&saved, &self.iptables()))
    }
}

/// Gives rules of a mode to the program that kube-proxy gives them to.
pub(crate) fn write(netns: &Netns, mode: Mode, rules: &str) -> Result<()> {
    match mode {
        Mode::Iptables | Mode::LegacyIptables => restore(netns, mode.restore(), rules),
        Mode::Nftables => feed(netns, "nft", &["-f", "-"], rules),
    }
}

/// Adds rules of iptables to a namespace's.
pub(crate) fn restore(netns: &Netns, program: &str, rules: &str) -> Result<()> {
    feed(netns, program, &["--noflush", "-w"], rules)
}

fn feed(netns: &Netns, program: &str, args: &[&str], rules: &str) -> Result<()> {
    let output = command::run_with_input(netns.command(program).args(args), rules.as_bytes())?;
    if !output.status.success() {
        let beginning: Vec<_> = rules.lines().take(SHOWN).collect();
        bail!("{program} refused: {}\n{}", String::from_utf8_lossy(&output.stderr).trim(), beginning.join("\n"));
    }
    Ok(())
}
