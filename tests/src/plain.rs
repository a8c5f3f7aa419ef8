//! A node of the plain kernel, set up as flannel's VXLAN backend sets it up: nothing of shunt is on it.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::{
    netns::Netns,
    topology::{VNI, VXLAN_PORT, node_address, pod_range},
    underlay::UPLINK,
};

/// The node: device `flannel.1`, bridge `cni0`, iptables for masquerading.
#[derive(Debug)]
pub struct PlainNode {
    /// Its name in the cluster.
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// Its namespace.
    pub netns: Netns,
    /// The MAC of its tunnel end, as it stands in the Node's annotation.
    pub vtep_mac: String,
}

/// A pod on a plain node.
#[derive(Debug)]
pub struct PlainPod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
}

impl PlainNode {
    pub(crate) fn new(name: &str, number: u8, netns: Netns) -> Result<Self> {
        let local = node_address(number);
        let (base, len) = pod_range(number);
        let [a, b, c, _] = base.octets();
        netns.ip(&format!(
            "link add flannel.1 type vxlan id {VNI} dev {UPLINK} local {local} dstport {VXLAN_PORT} nolearning"
        ))?;
        // backend/vxlan/vxlan.go: the device has the range's first address as a /32.
        netns.ip(&format!("addr add {base}/32 dev flannel.1"))?;
        netns.ip("link set flannel.1 up")?;
        netns.ip("link add cni0 type bridge")?;
        netns.ip(&format!("addr add {a}.{b}.{c}.1/{len} dev cni0"))?;
        netns.ip("link set cni0 mtu 1450 up")?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        // pkg/trafficmngr/iptables: everything from pods that leaves the cluster is masqueraded.
        netns.run("iptables", "-w -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE --random-fully")?;
        let link = netns.ip("-o link show dev flannel.1")?;
        let vtep_mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        let vtep_mac = vtep_mac.context("flannel.1 has no MAC")?.to_owned();
        Ok(Self { name: name.to_owned(), number, netns, vtep_mac })
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        node_address(self.number)
    }

    /// Makes another node known: a route, a neighbour and a forwarding entry (flannel's `handleSubnetEvents`).
    ///
    /// # Errors
    /// One could not be set.
    pub fn add_peer(&self, number: u8, vtep_mac: &str) -> Result<()> {
        let (base, len) = pod_range(number);
        self.netns.run("ip", &format!("neigh replace {base} lladdr {vtep_mac} dev flannel.1 nud permanent"))?;
        self.netns
            .run("bridge", &format!("fdb append {vtep_mac} dev flannel.1 dst {} self permanent", node_address(number)))?;
        self.netns.ip(&format!("route replace {base}/{len} via {base} dev flannel.1 onlink")).map(drop)
    }

    /// A pod on the bridge; `index` is the last byte of its address.
    ///
    /// # Errors
    /// It could not be made.
    pub fn pod(&self, name: &str, index: u8) -> Result<PlainPod> {
        let netns = self.netns.create_beside(&format!("{}-{name}", self.netns.name()))?;
        let [a, b, c, _] = pod_range(self.number).0.octets();
        let address = Ipv4Addr::new(a, b, c, index);
        self.netns.ip(&format!("link add veth-{index} mtu 1450 type veth peer name eth0 mtu 1450 netns {}", netns.name()))?;
        self.netns.ip(&format!("link set veth-{index} master cni0 up"))?;
        netns.ip(&format!("addr add {address}/24 dev eth0"))?;
        netns.ip("link set eth0 up")?;
        netns.ip(&format!("route add default via {a}.{b}.{c}.1"))?;
        Ok(PlainPod { name: name.to_owned(), netns, address })
    }
}
