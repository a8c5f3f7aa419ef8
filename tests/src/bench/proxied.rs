//! A node of flannel and kube-proxy beside a large cluster: what a start and a change cost the rival.
//!
//! The rules are kube-proxy's, given to the program that kube-proxy gives them to. What it spends before that (understanding the cluster,
//! writing the text, and waiting: at least a second between two syncs, `minSyncPeriod`) is not counted.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{
    hammer::{self, Greeter},
    scale::{CHANGING, VIP},
};
use crate::{
    cluster::{Endpoint, Port},
    flannel::{FlannelNode, FlannelPod},
    kube_proxy::{self, Mode, Proxy},
    lab::Lab,
    service::TARGET,
    synthetic::Cluster,
    topology::PAIR,
};

/// Two nodes: the client's with the rules, and one for the backends.
pub(super) struct Proxied {
    lab: Lab,
    mode: Mode,
    flannel: FlannelNode,
    client: FlannelPod,
    backends: [FlannelPod; 2],
    _servers: [Greeter; 2],
}

impl Proxied {
    /// With the cluster's state written, and no rules yet.
    pub(super) fn new(cluster: &Cluster, mode: Mode) -> Result<Self> {
        let lab = Lab::wired(&PAIR)?;
        let [flannel, other] = [FlannelNode::set_up(&lab, "n1")?, FlannelNode::set_up(&lab, "n2")?];
        flannel.add_peer(&lab.node("n1").netns, 2, &other.vtep_mac)?;
        other.add_peer(&lab.node("n2").netns, 1, &flannel.vtep_mac)?;
        let client = flannel.pod(lab.node("n1"), "client", 10)?;
        let backends = [other.pod(lab.node("n2"), "one", 10)?, other.pod(lab.node("n2"), "other", 11)?];
        let greeter = |pod: &FlannelPod| Greeter::start(&pod.netns, pod.address, &pod.name);
        let servers = [greeter(&backends[0])?, greeter(&backends[1])?];
        cluster.write(lab.cluster.dir())?;
        lab.cluster.put_service(CHANGING, *VIP.ip(), &[Port::tcp(VIP.port(), TARGET)])?;
        Ok(Self { lab, mode, flannel, client, backends, _servers: servers })
    }

    /// Seconds until all rules are in force. They are given in whole tables, which is faster than kube-proxy's way ([`Proxy::load`]).
    pub(super) fn start(&self) -> Result<f64> {
        let (proxy, netns) = (self.proxy(&self.backends[0])?, &self.lab.node("n1").netns);
        let start = Instant::now();
        proxy.load(netns, self.mode)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Milliseconds from the start of the program that writes a change of the Service's one endpoint until a client that hammers it sees
    /// nothing else, once per change.
    pub(super) fn effects(&self, changes: usize) -> Result<Vec<f64>> {
        let netns = &self.lab.node("n1").netns;
        let mut rules = Vec::new();
        for backend in &self.backends {
            rules.push((&backend.name, self.proxy(backend)?.change(self.mode, &format!("default/{CHANGING}"))));
        }
        let changes = (1..=changes).map(|change| {
            let (name, rules) = &rules[change % 2];
            let write = || kube_proxy::write(netns, self.mode, rules);
            hammer::seen(&self.client.netns, VIP, name, write).with_context(|| format!("change to {name}"))
        });
        changes.collect()
    }

    /// What is to be served while one backend is the Service's.
    fn proxy(&self, backend: &FlannelPod) -> Result<Proxy> {
        let endpoints = [Endpoint::ready(backend.address, "n2")];
        self.lab.cluster.put_endpoints(CHANGING, &[Port::tcp(VIP.port(), TARGET)], &endpoints)?;
        Proxy::new(&self.lab.cluster.model()?, &self.flannel.name)
    }
}
