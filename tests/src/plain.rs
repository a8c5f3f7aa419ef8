//! A node of the plain kernel, its pods on a bridge: nothing of shunt is on it. To other nodes it goes as flannel's VXLAN backend
//! does, by plain routes, or by a VXLAN device that takes its tunnel from the route.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::{
    netns::Netns,
    topology::{MTU, VNI, VXLAN_PORT, node_address, pod_range},
    underlay::UPLINK,
};

/// How a plain node reaches pods of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The device `flannel.1`, a neighbour and a forwarding entry for each node: flannel's VXLAN backend.
    Flannel,
    /// A route by the other node's address, without a tunnel: flannel's host-gw backend.
    Routes,
    /// A VXLAN device in collect-metadata mode (`external`), the tunnel's end in each route.
    Metadata,
}

/// The node: a device of its [`Way`], bridge `cni0`, iptables for masquerading.
#[derive(Debug)]
pub struct PlainNode {
    /// Its name in the cluster.
    pub name: String,
    /// Its number, from 1.
    pub number: u8,
    /// Its namespace.
    pub netns: Netns,
    /// How it reaches pods of others.
    pub way: Way,
    /// The MAC of its tunnel's end, as it stands in the Node's annotation; none without a tunnel.
    pub vtep_mac: Option<String>,
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

/// The name of a plain node's tunnel device.
const TUNNEL: &str = "flannel.1";

impl Way {
    /// Options of the device for a node, if there is one.
    fn tunnel(self, number: u8) -> Option<String> {
        match self {
            Self::Flannel => {
                Some(format!("id {VNI} dev {UPLINK} local {} dstport {VXLAN_PORT} nolearning", node_address(number)))
            }
            Self::Routes => None,
            Self::Metadata => Some(format!("external dstport {VXLAN_PORT} nolearning")),
        }
    }

    /// The MTU of pods: the underlay's, less the tunnel.
    fn mtu(self) -> u32 {
        if self == Self::Routes { MTU } else { MTU - 50 }
    }
}

impl PlainNode {
    pub(crate) fn new(name: &str, number: u8, netns: Netns, way: Way) -> Result<Self> {
        let (base, len) = pod_range(number);
        let [a, b, c, _] = base.octets();
        let vtep_mac = way.tunnel(number).map(|options| -> Result<String> {
            netns.ip(&format!("link add {TUNNEL} type vxlan {options}"))?;
            // backend/vxlan/vxlan.go: the device has the range's first address as a /32.
            netns.ip(&format!("addr add {base}/32 dev {TUNNEL}"))?;
            netns.ip(&format!("link set {TUNNEL} up"))?;
            Ok(netns.mac(TUNNEL)?.to_string())
        });
        let vtep_mac = vtep_mac.transpose()?;
        netns.ip("link add cni0 type bridge")?;
        netns.ip(&format!("addr add {a}.{b}.{c}.1/{len} dev cni0"))?;
        netns.ip(&format!("link set cni0 mtu {} up", way.mtu()))?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        // pkg/trafficmngr/iptables: everything from pods that leaves the cluster is masqueraded.
        netns.run("iptables", "-w -t nat -A POSTROUTING -s 10.244.0.0/16 ! -d 10.244.0.0/16 -j MASQUERADE --random-fully")?;
        Ok(Self { name: name.to_owned(), number, netns, way, vtep_mac })
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        node_address(self.number)
    }

    /// Makes another node known, with a tunnel as flannel's `handleSubnetEvents` does: a route, a neighbour and a forwarding entry.
    ///
    /// # Errors
    /// One could not be set, or the node has no tunnel where one is needed.
    pub fn add_peer(&self, number: u8, vtep_mac: Option<&str>) -> Result<()> {
        let (base, len) = pod_range(number);
        let remote = node_address(number);
        let route = |way: &str| self.netns.ip(&format!("route replace {base}/{len} {way}")).map(drop);
        if self.way == Way::Routes {
            return route(&format!("via {remote} dev {UPLINK}"));
        }
        let mac = vtep_mac.with_context(|| format!("{} needs the MAC of node {number}'s tunnel", self.name))?;
        self.netns.run("ip", &format!("neigh replace {base} lladdr {mac} dev {TUNNEL} nud permanent"))?;
        let through = format!("via {base} dev {TUNNEL} onlink");
        if self.way == Way::Metadata {
            return route(&format!("encap ip id {VNI} dst {remote} {through}"));
        }
        self.netns.run("bridge", &format!("fdb append {mac} dev {TUNNEL} dst {remote} self permanent"))?;
        route(&through)
    }

    /// A pod on the bridge; `index` is the last byte of its address.
    ///
    /// # Errors
    /// It could not be made.
    pub fn pod(&self, name: &str, index: u8) -> Result<PlainPod> {
        let netns = self.netns.create_beside(&format!("{}-{name}", self.netns.name()))?;
        let [a, b, c, _] = pod_range(self.number).0.octets();
        let (address, mtu) = (Ipv4Addr::new(a, b, c, index), self.way.mtu());
        self.netns.ip(&format!("link add veth-{index} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", netns.name()))?;
        self.netns.ip(&format!("link set veth-{index} master cni0 up"))?;
        netns.ip(&format!("addr add {address}/24 dev eth0"))?;
        netns.ip("link set eth0 up")?;
        netns.ip(&format!("route add default via {a}.{b}.{c}.1"))?;
        Ok(PlainPod { name: name.to_owned(), netns, address })
    }
}
