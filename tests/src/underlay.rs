//! The wires between nodes: veth pairs, a bridge, a router and a host outside.

use std::{net::Ipv4Addr, path::Path};

use anyhow::Result;

use crate::{
    netns::Netns,
    topology::{Fabric, MTU, OUTSIDE, ROUTER, ROUTER_OUTSIDE, Wire, node_address},
};

/// The interface that a node has on the underlay.
pub const UPLINK: &str = "eth0";

/// What is not a node.
#[derive(Debug)]
pub struct Surroundings {
    /// The bridge's namespace; a port to node `n1` is called `to-n1`.
    pub fabric: Netns,
    /// The router's.
    pub router: Netns,
    /// The outside host's.
    pub outside: Netns,
}

impl Surroundings {
    /// Makes the outside send a range of virtual addresses to a node, as a load balancer in front of it would.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn route(&self, range: &str, node: Ipv4Addr) -> Result<()> {
        self.router.ip(&format!("route add {range} via {node}"))?;
        self.outside.ip(&format!("route add {range} via {ROUTER_OUTSIDE}")).map(drop)
    }

    /// Gives the switch's ports to the router and to nodes another MTU, and what is plugged in there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_mtu<'a>(&'a self, nodes: impl Iterator<Item = (&'a str, &'a Netns)>, mtu: u32) -> Result<()> {
        for (name, netns) in nodes.chain([("router", &self.router)]) {
            self.fabric.ip(&format!("link set to-{name} mtu {mtu}"))?;
            netns.ip(&format!("link set {UPLINK} mtu {mtu}"))?;
        }
        Ok(())
    }
}

/// Wires nodes, given in the order of their numbers, to a bridge; what runs around them runs in a cgroup of its own.
///
/// # Errors
/// A link could not be made.
pub fn switch(prefix: &str, cgroup: &Path, nodes: &[(&str, &Netns)], wire: Wire) -> Result<Surroundings> {
    let mut fabric = Netns::create(&format!("{prefix}fabric"))?;
    fabric.join_cgroup(cgroup)?;
    let router = fabric.create_beside(&format!("{prefix}router"))?;
    let outside = fabric.create_beside(&format!("{prefix}outside"))?;
    fabric.ip("link add br0 type bridge")?;
    fabric.ip("link set br0 up")?;

    for (name, node) in nodes.iter().copied().chain([("router", &router)]) {
        let port = format!("to-{name}");
        fabric.ip(&format!("link add {port} mtu {MTU} type veth peer name {UPLINK} mtu {MTU} netns {}", node.name()))?;
        fabric.ip(&format!("link set {port} master br0 up"))?;
        // A switch forwards frames as they came: it doesn't merge them.
        offloads(&fabric, &port, wire, false)?;
        offloads(node, UPLINK, wire, true)?;
    }
    for (number, (_, node)) in (1..).zip(nodes) {
        address(node, number)?;
        node.ip(&format!("route add default via {ROUTER}"))?;
    }

    router.ip(&format!("addr add {ROUTER}/24 dev {UPLINK}"))?;
    router.ip(&format!("link set {UPLINK} up"))?;
    router.ip(&format!("link add outside type veth peer name {UPLINK} netns {}", outside.name()))?;
    router.ip(&format!("addr add {ROUTER_OUTSIDE}/24 dev outside"))?;
    router.ip("link set outside up")?;
    router.sysctl("ipv4/ip_forward", "1")?;
    outside.ip(&format!("addr add {OUTSIDE}/24 dev {UPLINK}"))?;
    outside.ip(&format!("link set {UPLINK} up"))?;
    // Only node addresses are routable out there: a pod's own address would find no way back.
    outside.ip(&format!("route add 192.0.2.0/24 via {ROUTER_OUTSIDE}"))?;
    Ok(Surroundings { fabric, router, outside })
}

/// Wires nodes in pairs, each to the next.
///
/// # Errors
/// A link could not be made.
pub fn cables(nodes: &[(&str, &Netns)], wire: Wire) -> Result<()> {
    for (number, pair) in (1u8..).step_by(2).zip(nodes.chunks(2)) {
        let [(_, one), (_, other)] = pair else { continue };
        one.ip(&format!("link add {UPLINK} mtu {MTU} type veth peer name {UPLINK} mtu {MTU} netns {}", other.name()))?;
        for (number, node) in [(number, one), (number + 1, other)] {
            offloads(node, UPLINK, wire, true)?;
            address(node, number)?;
        }
    }
    Ok(())
}

/// Wires nodes as a plan says.
///
/// # Errors
/// A link could not be made.
pub fn connect(
    prefix: &str,
    cgroup: &Path,
    fabric: Fabric,
    wire: Wire,
    nodes: &[(&str, &Netns)],
) -> Result<Option<Surroundings>> {
    match fabric {
        Fabric::Switch => switch(prefix, cgroup, nodes, wire).map(Some),
        Fabric::Cables => cables(nodes, wire).map(|()| None),
    }
}

fn address(node: &Netns, number: u8) -> Result<()> {
    node.ip(&format!("addr add {}/24 dev {UPLINK}", node_address(number)))?;
    node.ip(&format!("link set {UPLINK} up"))?;
    Ok(())
}

fn offloads(netns: &Netns, interface: &str, wire: Wire, gro: bool) -> Result<()> {
    let gro = if gro { "on" } else { "off" };
    let checksums = if wire == Wire::Finished { "tx off " } else { "" };
    netns.run("ethtool", &format!("-K {interface} {checksums}tso off tx-udp_tnl-segmentation off gro {gro}")).map(drop)
}
