//! What a lab consists of, as data.

use std::net::Ipv4Addr;

/// The tunnel's UDP port and network identifier, flannel's defaults.
pub const VXLAN_PORT: u16 = 8472;
/// See [`VXLAN_PORT`].
pub const VNI: u32 = 1;
/// The address of the router on the fabric.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The router's address towards the outside.
pub const ROUTER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// A host that is no node.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// MTU of the underlay.
pub const MTU: u32 = 1500;

/// A lab's plan.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// Nodes in the order of their numbers, from 1.
    pub nodes: &'static [NodeSpec],
    /// How they are connected.
    pub fabric: Fabric,
    /// What the links do to packets.
    pub wire: Wire,
}

/// One node.
#[derive(Clone, Copy, Debug)]
pub struct NodeSpec {
    /// Its name, a few characters.
    pub name: &'static str,
    /// Who does its networking.
    pub kind: Kind,
}

impl NodeSpec {
    /// A node of a kind.
    #[must_use]
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind }
    }
}

/// Who does a node's networking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An agent of ours.
    Shunt,
    /// The kernel, configured as flannel's VXLAN backend does.
    PlainVxlan,
    /// The kernel, routing without a tunnel.
    PlainRoutes,
    /// The kernel, with a collect-metadata VXLAN device.
    PlainMetadata,
    /// Nobody: a host on the underlay, no member of the cluster.
    Bare,
}

/// How nodes are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fabric {
    /// All to one bridge, with a router to the outside.
    Switch,
    /// First to second, third to fourth...: a cable each, nothing else.
    Cables,
}

/// What a veth pair of the underlay does to packets, which left alone passes 64 KB packets with unfinished checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Segments and checksums are finished before the wire, as a capture behind a real NIC shows them.
    Finished,
    /// Segments are; checksums are left to a NIC that does them for nothing. For measuring.
    Offloaded,
}

/// Two nodes of ours.
pub const PAIR: Topology = Topology {
    nodes: &[NodeSpec::new("n1", Kind::Shunt), NodeSpec::new("n2", Kind::Shunt)],
    fabric: Fabric::Switch,
    wire: Wire::Finished,
};

/// Two nodes of ours and one of the plain kernel.
pub const MIXED: Topology = Topology {
    nodes: &[NodeSpec::new("n1", Kind::Shunt), NodeSpec::new("n2", Kind::Shunt), NodeSpec::new("f3", Kind::PlainVxlan)],
    fabric: Fabric::Switch,
    wire: Wire::Finished,
};

/// Two nodes of ours and a host that is no member of the cluster.
pub const WITH_STRANGER: Topology = Topology {
    nodes: &[NodeSpec::new("n1", Kind::Shunt), NodeSpec::new("n2", Kind::Shunt), NodeSpec::new("x3", Kind::Bare)],
    fabric: Fabric::Switch,
    wire: Wire::Finished,
};

/// Two nodes of the plain kernel: what the lab is checked with, without anything of ours.
pub const PLAIN_PAIR: Topology = Topology {
    nodes: &[NodeSpec::new("f1", Kind::PlainVxlan), NodeSpec::new("f2", Kind::PlainVxlan)],
    fabric: Fabric::Switch,
    wire: Wire::Finished,
};

/// The address of the node with a number.
#[must_use]
pub const fn node_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + number)
}

/// The pod range of the node with a number: its first address and the prefix length.
#[must_use]
pub const fn pod_range(number: u8) -> (Ipv4Addr, u8) {
    (Ipv4Addr::new(10, 244, number, 0), 24)
}

/// The VTEP MAC of a node without an annotation: derived from its address.
#[must_use]
pub fn derived_mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("72:73:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}
