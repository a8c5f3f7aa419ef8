//! A node of ours before it is ours: set up as flannel, its CNI plugins and kube-proxy set one up, in the namespace of a [`Node`] whose agent has
//! not been started. Unlike [`PlainNode`](crate::plain::PlainNode) it has all that a takeover looks for: chains under their real names, allocations
//! and results in a CNI directory of its own, pods behind veths with the plugin's names.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    command, flannel_rules,
    kube_proxy::{Mode, Proxy},
    lab::Lab,
    netns::Netns,
    node::Node,
    topology::{VNI, VXLAN_PORT, node_address, pod_range},
    underlay::UPLINK,
};

/// The name that flannel's manifest gives to its network.
pub const NETWORK: &str = "cbr0";

/// What flannel has made of a node.
#[derive(Debug)]
pub struct FlannelNode {
    /// The node's name.
    pub name: String,
    number: u8,
    netns_name: String,
    cni_dir: PathBuf,
    /// The MAC of `flannel.1`, as it stands in the Node's annotation.
    pub vtep_mac: String,
}

/// A pod that flannel's CNI plugins made.
#[derive(Debug)]
pub struct FlannelPod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// The sandbox's id.
    pub container: String,
    /// The host's end of its pair.
    pub veth: String,
}

impl FlannelNode {
    /// Devices, routes to all other nodes, flannel's rules, and the Node's annotations.
    ///
    /// # Errors
    /// Something could not be made.
    pub fn set_up(lab: &Lab, name: &str) -> Result<Self> {
        let node = lab.node(name);
        let netns = &node.netns;
        let (base, len) = node.pod_range();
        let [a, b, c, _] = base.octets();
        netns.ip(&format!(
            "link add flannel.1 type vxlan id {VNI} dev {UPLINK} local {} dstport {VXLAN_PORT} nolearning",
            node.address()
        ))?;
        netns.ip(&format!("addr add {base}/32 dev flannel.1"))?;
        netns.ip("link set flannel.1 up")?;
        netns.ip("link add cni0 type bridge")?;
        netns.ip(&format!("addr add {a}.{b}.{c}.1/{len} dev cni0"))?;
        netns.ip("link set cni0 mtu 1450 up")?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        // kubeadm's preflight checks want it; answers between pods of one bridge are translated back by it.
        netns.sysctl("bridge/bridge-nf-call-iptables", "1")?;
        flannel_rules::write(netns, &format!("{base}/{len}"))?;
        let vtep_mac = netns.mac("flannel.1")?.to_string();
        lab.cluster.put_node(name, node.address(), (base, len), Some(&vtep_mac))?;
        let cni_dir = node.cni_state_dir();
        for dir in [cni_dir.join("networks").join(NETWORK), cni_dir.join("results")] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let this = Self { name: name.to_owned(), number: node.number, netns_name: netns.name().to_owned(), cni_dir, vtep_mac };
        for other in &lab.plain {
            let mac = other.vtep_mac.as_deref().with_context(|| format!("{} has no tunnel", other.name))?;
            this.add_peer(netns, other.number, mac)?;
            other.add_peer(this.number, Some(&this.vtep_mac))?;
        }
        for other in lab.nodes.iter().filter(|other| other.name != name) {
            this.add_peer(netns, other.number, &other.vtep_mac())?;
        }
        Ok(this)
    }

    /// Makes the tunnel end of another node known, in place of what was known of it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_peer(&self, netns: &Netns, number: u8, vtep_mac: &str) -> Result<()> {
        let (base, len) = pod_range(number);
        netns.run("ip", &format!("neigh replace {base} lladdr {vtep_mac} dev flannel.1 nud permanent"))?;
        netns.run("bridge", &format!("fdb append {vtep_mac} dev flannel.1 dst {} self permanent", node_address(number)))?;
        netns.ip(&format!("route replace {base}/{len} via {base} dev flannel.1 onlink")).map(drop)
    }

    /// The rules that kube-proxy writes for the cluster as it is now, and kubelet's beside them.
    ///
    /// # Errors
    /// They are refused.
    pub fn proxy(&self, lab: &Lab, mode: Mode) -> Result<()> {
        let netns = &lab.node(&self.name).netns;
        flannel_rules::kubelet(netns, mode.restore())?;
        Proxy::new(&lab.cluster.model()?, &self.name)?.start(netns, mode)
    }

    /// A pod as the plugins `flannel`, `bridge` and `host-local` make it; `index` is the last byte of its address.
    ///
    /// # Errors
    /// It could not be made.
    pub fn pod(&self, node: &Node, name: &str, index: u8) -> Result<FlannelPod> {
        ensure!(node.netns.name() == self.netns_name, "{} is not {}", node.name, self.name);
        let netns = node.netns.create_beside(&format!("{}-{name}", self.netns_name))?;
        let [a, b, c, _] = pod_range(self.number).0.octets();
        let (address, gateway) = (Ipv4Addr::new(a, b, c, index), Ipv4Addr::new(a, b, c, 1));
        let veth = format!("veth{:08x}", 0x5a17_0000_u32 + u32::from(index) * 7919);
        let container = format!("{:064x}", u128::from(index) << 64 | u128::from(self.number));
        node.netns.ip(&format!("link add {veth} mtu 1450 type veth peer name eth0 mtu 1450 netns {}", netns.name()))?;
        node.netns.ip(&format!("link set {veth} master cni0 up"))?;
        node.netns.run("bridge", &format!("link set dev {veth} hairpin on"))?;
        netns.ip(&format!("addr add {address}/24 dev eth0"))?;
        netns.ip("link set eth0 up")?;
        netns.ip(&format!("route add default via {gateway}"))?;
        netns.ip(&format!("route add 10.244.0.0/16 via {gateway}"))?;
        let allocation = self.cni_dir.join("networks").join(NETWORK).join(address.to_string());
        fs::write(&allocation, format!("{container}\r\neth0"))?;
        let mac = netns.mac("eth0")?.to_string();
        let result = json!({
            "kind": "cniCacheV1", "containerId": container, "ifName": "eth0", "networkName": NETWORK,
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "default"], ["K8S_POD_NAME", name]],
            "result": {
                "cniVersion": "0.3.1",
                "interfaces": [{ "name": "cni0" }, { "name": veth }, { "name": "eth0", "mac": mac, "sandbox": netns.path() }],
                "ips": [{ "version": "4", "interface": 2, "address": format!("{address}/24"), "gateway": gateway }],
                "routes": [{ "dst": "10.244.0.0/16" }, { "dst": "0.0.0.0/0", "gw": gateway }],
                "dns": {},
            },
        });
        fs::write(self.kept(&container), result.to_string())?;
        Ok(FlannelPod { name: name.to_owned(), netns, address, container, veth })
    }

    fn kept(&self, container: &str) -> PathBuf {
        self.cni_dir.join("results").join(format!("{NETWORK}-{container}-eth0"))
    }

    /// What the plugins answered when a pod was made, as the runtime keeps it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn result(&self, pod: &FlannelPod) -> Result<Value> {
        let mut kept: Value = serde_json::from_str(&fs::read_to_string(self.kept(&pod.container))?)?;
        Ok(kept["result"].take())
    }

    /// Where host-local keeps an address.
    #[must_use]
    pub fn allocation(&self, address: Ipv4Addr) -> PathBuf {
        allocation(&self.cni_dir, address)
    }
}

fn allocation(cni_dir: &Path, address: Ipv4Addr) -> PathBuf {
    cni_dir.join("networks").join(NETWORK).join(address.to_string())
}

/// All rules of a node's namespace as their programs print them, without counters: to see what changed.
///
/// # Errors
/// A program failed.
pub fn rules(netns: &Netns) -> Result<String> {
    let saved = command::run(netns.command("iptables-save").arg("-t").arg("nat"))?;
    let lines = saved.lines().filter(|line| !line.starts_with('#'));
    // Policies are followed by counters.
    Ok(lines.map(|line| line.split(" [").next().unwrap_or(line)).collect::<Vec<_>>().join("\n"))
}
