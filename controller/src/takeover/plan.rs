//! From what is there to what is to be done, or to why not. Pure.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;

use super::{
    allocations::Allocation,
    rules::Owner,
    survey::{BRIDGE, Bridge, Survey, TUNNEL_PREFIX, TUNNEL_PREFIX_V6},
};
use crate::{
    attachment::Pod,
    kernel::{links::Kind, ports::PodEnd, routes::OthersRoute},
};

/// What the node is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// VXLAN's network identifier.
    pub vni: u32,
    /// VXLAN's UDP port.
    pub port: u16,
    /// The Node's pod range.
    pub pod_cidr: Option<Ipv4Net>,
}

/// Why a node cannot be taken over: what to change, or that it is none of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Another CNI.
    #[error(
        "{0} is the device of another network than flannel's; only flannel with its VXLAN backend is taken over. \
         Remove that network and its devices first"
    )]
    OtherNetwork(String),
    /// IPVS.
    #[error(
        "kube-proxy runs in ipvs mode (device {0}), whose connections cannot be taken over: set its mode to iptables or nftables first"
    )]
    Ipvs(String),
    /// A bridge without a tunnel.
    #[error(
        "there is the bridge {BRIDGE} but no device {TUNNEL_PREFIX}N: flannel's backend is not vxlan (host-gw?). Set `Backend.Type` to vxlan in \
         flannel's configuration (net-conf.json in the ConfigMap kube-flannel-cfg) and restart flanneld on all nodes first"
    )]
    NoTunnel,
    /// Another network identifier or port.
    #[error(
        "flannel's device {device} has VNI {vni} and UDP port {port}, the agent's configuration has {wanted}: \
         set `vni: {vni}` and `vxlanPort: {port}` there, for all nodes"
    )]
    OtherTunnel {
        /// The device.
        device: String,
        /// Its VNI.
        vni: u32,
        /// Its port.
        port: u16,
        /// What is configured, for people.
        wanted: String,
    },
    /// flannel for IPv6.
    #[error(
        "flannel serves IPv6 on this node (device {0}), which is not carried yet: pods would lose it. \
         Set `EnableIPv6` to false in net-conf.json, restart flanneld, and delete the device"
    )]
    Ipv6(String),
    /// No range yet.
    #[error("this Node has no IPv4 podCIDR yet: the agent waits for it (`spec.podCIDR`)")]
    NoRange,
    /// The bridge's range is not the Node's.
    #[error(
        "{BRIDGE} has the address {0}, which is not in this Node's podCIDR {1}: flannel serves another range. \
         Drain the node, delete {BRIDGE}, and let flannel make it anew"
    )]
    OtherRange(String, Ipv4Net),
    /// A pod that cannot be identified.
    #[error(
        "nobody is found behind {0}, a port of {BRIDGE}: its network namespace is at none of the known places; \
         delete its pod, or the interface if nobody uses it"
    )]
    UnknownPort(String),
    /// A pod without a known allocation.
    #[error(
        "{address}, behind the port {port} of {BRIDGE}, is not among the addresses that host-local has given, by {}: \
         correct --cni-state-dir, or delete the pod with that address",
        .networks.display()
    )]
    NoAllocation {
        /// The port.
        port: String,
        /// The address found there.
        address: Ipv4Addr,
        /// Where host-local keeps what it gives.
        networks: PathBuf,
    },
    /// A pod with an address of another family or none.
    #[error("the pod behind {0}, a port of {BRIDGE}, {1}: only pods with one IPv4 address can be adopted; delete that pod")]
    Unsuitable(String, &'static str),
    /// Two pods with one address.
    #[error(
        "{0} is found behind two ports of {BRIDGE}, {1} and {2}: it cannot be said whose it is; delete one of the two pods"
    )]
    Twice(Ipv4Addr, String, String),
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// flannel's device, if there is one.
    pub tunnel: Option<String>,
    /// Its routes.
    pub routes: Vec<OthersRoute>,
    /// The bridge that adopted pods are on, if there is one.
    pub bridge: Option<String>,
    /// Pods to adopt.
    pub pods: Vec<Pod>,
}

/// Removes kube-proxy's and flannel's rules from the tables of legacy iptables. Those of kubelet (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`),
/// flannel's `FLANNEL-FWD` and everybody else's stay.
pub const REMOVE_LEGACY: &str = "iptables-legacy-save | grep -v -E \
     'KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|POSTROUTING|MARK-MASQ|FORWARD|PROXY-|SVC-|SVL-|SEP-|FW-|XLB-|EXT-)|FLANNEL-POSTRTG|flanneld masq' \
     | iptables-legacy-restore";

/// Beginnings of names of devices that other networks make.
const OTHERS: [&str; 8] = ["cilium_", "cali", "tunl0", "antrea-", "weave", "kube-bridge", "ovn-k8s", "flannel-wg"];
/// Names of devices that kube-proxy makes in ipvs mode.
const IPVS: &str = "kube-ipvs0";

/// The plan for a node.
///
/// # Errors
/// It cannot be taken over.
pub fn plan(survey: &Survey, wanted: &Wanted) -> Result<Plan, Refusal> {
    if let Some(device) = survey.devices.iter().find(|device| *device == IPVS) {
        return Err(Refusal::Ipvs(device.clone()));
    }
    if let Some(device) = survey.devices.iter().find(|device| OTHERS.iter().any(|other| device.starts_with(other))) {
        return Err(Refusal::OtherNetwork(device.clone()));
    }
    if let Some(device) = survey.devices.iter().find(|device| device.starts_with(TUNNEL_PREFIX_V6)) {
        return Err(Refusal::Ipv6(device.clone()));
    }
    let mut plan = Plan::default();
    for tunnel in &survey.tunnels {
        let Kind::Vxlan { vni, port, .. } = tunnel.kind else { continue };
        if (vni, port) != (wanted.vni, wanted.port) {
            let wanted = format!("VNI {} and UDP port {}", wanted.vni, wanted.port);
            return Err(Refusal::OtherTunnel { device: tunnel.name.clone(), vni, port, wanted });
        }
        plan.tunnel = Some(tunnel.name.clone());
        plan.routes = survey.routes.get(&tunnel.name).cloned().unwrap_or_default();
    }
    let Some(bridge) = &survey.bridge else { return Ok(plan) };
    if plan.tunnel.is_none() {
        return Err(Refusal::NoTunnel);
    }
    let range = wanted.pod_cidr.ok_or(Refusal::NoRange)?;
    if let Some(address) = bridge.address.filter(|address| !range.contains(&address.addr())) {
        return Err(Refusal::OtherRange(address.to_string(), range));
    }
    plan.bridge = Some(BRIDGE.to_owned());
    plan.pods = pods(survey, bridge, range)?;
    Ok(plan)
}

/// The pods on the bridge. Each address is found behind its port by the kernel's own word; what host-local says has to agree.
fn pods(survey: &Survey, bridge: &Bridge, range: Ipv4Net) -> Result<Vec<Pod>, Refusal> {
    let mut pods: Vec<Pod> = Vec::new();
    for (port, end) in &bridge.ports {
        let end = end.as_ref().ok_or_else(|| Refusal::UnknownPort(port.name.clone()))?;
        let pod = pod(survey, &port.name, end, range)?;
        if let Some(other) = pods.iter().find(|other| other.address == pod.address) {
            return Err(Refusal::Twice(pod.address, other.host_interface.clone(), port.name.clone()));
        }
        pods.push(pod);
    }
    Ok(pods)
}

fn pod(survey: &Survey, port: &str, end: &PodEnd, range: Ipv4Net) -> Result<Pod, Refusal> {
    if end.has_ipv6 {
        return Err(Refusal::Unsuitable(port.to_owned(), "has an IPv6 address, which is not carried yet"));
    }
    let mut addresses = end.addresses.iter().filter(|address| range.contains(*address));
    let address = match (addresses.next(), addresses.next()) {
        (Some(address), None) => *address,
        (None, _) => return Err(Refusal::Unsuitable(port.to_owned(), "has no address of the Node's podCIDR")),
        (Some(_), Some(_)) => return Err(Refusal::Unsuitable(port.to_owned(), "has several")),
    };
    let given = |allocation: &&Allocation| allocation.address == address && allocation.attachment.ifname == end.ifname;
    let allocation = survey.allocations.iter().find(given);
    let allocation = allocation.ok_or_else(|| Refusal::NoAllocation {
        port: port.to_owned(),
        address,
        networks: survey.networks.clone(),
    })?;
    Ok(Pod {
        attachment: allocation.attachment.clone(),
        network: allocation.network.clone(),
        pod: survey.kept.get(&allocation.attachment).map(|kept| kept.pod.clone()).unwrap_or_default(),
        address,
        mac: end.mac,
        host_interface: port.to_owned(),
        netns: end.netns.clone(),
        // Those are translated by rules of the plugin portmap, which stay.
        port_mappings: Vec::new(),
    })
}

/// What an operator should know while a node is taken over: what has to be done by hand, and who works against us.
#[must_use]
pub fn notes(survey: &Survey) -> Vec<String> {
    let mut notes = Vec::new();
    if !survey.legacy.is_empty() {
        notes.push(format!(
            "rules of kube-proxy or flannel are in force in tables of legacy iptables ({}): they translate what processes of this node send to \
             Services, to endpoints of yesterday. A table can only be replaced as a whole, which is not safe from here: keep kube-proxy and \
             flanneld off this node, then run on it: {REMOVE_LEGACY}",
            survey.legacy.join(", ")
        ));
    }
    if survey.rules.in_force(Owner::KubeProxy) {
        notes.push(
            "kube-proxy still writes its rules on this node: remove it from the cluster, or keep it off this node".to_owned(),
        );
    }
    if survey.rules.in_force(Owner::Flannel) || survey.routes.values().any(|routes| !routes.is_empty()) {
        notes.push(
            "flanneld still writes its rules or routes on this node: remove it from the cluster, or keep it off this node"
                .to_owned(),
        );
    }
    notes
}
