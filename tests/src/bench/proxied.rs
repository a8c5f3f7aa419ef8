//! A node of flannel and kube-proxy beside a large cluster: what a start and a change cost the rival.
//!
//! The rules are kube-proxy's, given to the program that kube-proxy gives them to. What it spends before that (understanding the cluster,
//! writing the text, and waiting: at least a second between two syncs, `minSyncPeriod`) is not counted.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{
    Options,
    hammer::{self, Greeter},
    large::ALONE,
    rival::Rival,
    scale::{CHANGING, VIP},
};
use crate::{
    cluster::{Endpoint, Port},
    flannel::FlannelPod,
    kube_proxy::{self, Mode, Proxy},
    lab::Lab,
    netns::Netns,
    service::TARGET,
    synthetic::Cluster,
};

const PORTS: [Port; 1] = [Port::tcp(VIP.port(), TARGET)];

/// The node with a client, and two backends of which one serves at a time.
pub(super) struct Proxied {
    lab: Lab,
    rival: Rival,
    other: FlannelPod,
    _servers: [Greeter; 2],
}

impl Proxied {
    /// With the cluster's state written, and no rules yet.
    pub(super) fn new(cluster: &Cluster, mode: Mode, options: &Options) -> Result<Self> {
        let lab = Lab::wired(&ALONE)?;
        let rival = Rival::set_up(&lab, "n1", mode, options)?;
        let other = rival.pod(&lab, "other", 12)?;
        let greeter = |pod: &FlannelPod| Greeter::start(&pod.netns, pod.address, &pod.name);
        let servers = [greeter(&rival.pods[1])?, greeter(&other)?];
        cluster.write(lab.cluster.dir())?;
        lab.cluster.put_service(CHANGING, *VIP.ip(), &PORTS)?;
        Ok(Self { lab, rival, other, _servers: servers })
    }

    /// Seconds until all rules are in force. They are given in whole tables, which is faster than kube-proxy's way ([`Proxy::load`]).
    pub(super) fn start(&self) -> Result<f64> {
        let [one, _] = self.backends();
        let proxy = self.served_by(one)?;
        let start = Instant::now();
        proxy.load(self.netns(), self.rival.mode)?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Milliseconds from the start of the program that writes a change of the Service's one endpoint until a client that hammers it sees
    /// nothing else, once per change.
    pub(super) fn effects(&self, changes: usize) -> Result<Vec<f64>> {
        let [client, _] = &self.rival.pods;
        let mut rules = Vec::new();
        for backend in self.backends() {
            let change = self.served_by(backend)?.change(self.rival.mode, &format!("default/{CHANGING}"));
            rules.push((&backend.name, change));
        }
        let changes = (1..=changes).map(|change| {
            let (name, rules) = &rules[change % 2];
            let write = || kube_proxy::write(self.netns(), self.rival.mode, rules);
            hammer::seen(&client.netns, VIP, name, write).with_context(|| format!("change to {name}"))
        });
        changes.collect()
    }

    fn netns(&self) -> &Netns {
        &self.lab.node(self.rival.node()).netns
    }

    fn backends(&self) -> [&FlannelPod; 2] {
        let [_, one] = &self.rival.pods;
        [one, &self.other]
    }

    /// What is to be in force while one backend is the Service's.
    fn served_by(&self, backend: &FlannelPod) -> Result<Proxy> {
        self.lab.cluster.put_endpoints(CHANGING, &PORTS, &[Endpoint::ready(backend.address, self.rival.node())])?;
        self.rival.proxy(&self.lab.cluster)
    }
}
