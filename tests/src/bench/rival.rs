//! Nodes of flannel with kube-proxy's rules: what Services cost where shunt is not.

use std::path::PathBuf;

use anyhow::Result;

use super::Options;
use crate::{
    cluster::Cluster,
    flannel::{FlannelNode, FlannelPod},
    flannel_rules,
    kube_proxy::{Mode, Proxy, RealProxy},
    lab::Lab,
};

/// kube-proxy's modes, by the names of the contenders.
pub(super) const MODES: [(&str, Mode); 2] = [("iptables", Mode::Iptables), ("nftables", Mode::Nftables)];

/// A node whose agent is not started, with pods.
#[derive(Debug)]
pub(super) struct Rival {
    node: FlannelNode,
    pub(super) mode: Mode,
    program: Option<PathBuf>,
    /// A client and a backend.
    pub(super) pods: [FlannelPod; 2],
}

impl Rival {
    /// flannel's part of a node, and two pods.
    pub(super) fn set_up(lab: &Lab, node: &str, mode: Mode, options: &Options) -> Result<Self> {
        let flannel = FlannelNode::set_up(lab, node)?;
        let pods = [flannel.pod(lab.node(node), "a", 10)?, flannel.pod(lab.node(node), "b", 11)?];
        Ok(Self { node: flannel, mode, pods, program: options.kube_proxy() })
    }

    /// Its node's name.
    pub(super) fn node(&self) -> &str {
        &self.node.name
    }

    /// Puts kube-proxy's rules for a cluster in force: by kube-proxy itself, if there is one, which runs on for as long as what is returned lives.
    pub(super) fn start(&self, lab: &Lab, cluster: &Cluster) -> Result<Option<RealProxy>> {
        let node = lab.node(&self.node.name);
        flannel_rules::kubelet(&node.netns, self.mode.restore())?;
        if let Some(program) = &self.program {
            return RealProxy::start(program, node, cluster, self.mode).map(Some);
        }
        self.proxy(cluster)?.load(&node.netns, self.mode)?;
        Ok(None)
    }

    /// The rules that kube-proxy would have here for a cluster.
    pub(super) fn proxy(&self, cluster: &Cluster) -> Result<Proxy> {
        Proxy::new(&cluster.model()?, &self.node.name)
    }

    /// A pod beside the two; `index` is the last byte of its address.
    pub(super) fn pod(&self, lab: &Lab, name: &str, index: u8) -> Result<FlannelPod> {
        self.node.pod(lab.node(&self.node.name), name, index)
    }
}
