//! What a program knows about its node when it is loaded: the read-only global `NODE`.

use crate::net::{Ip4, Mac, Port};

/// Link-local addresses that mean the same on every node and never leave it (RFC 3927).
pub mod link_local {
    use crate::net::Ip4;

    /// The gateway a pod sees, and the source of a connection that a pod makes to itself through a Service.
    pub const GATEWAY: Ip4 = Ip4::new(169, 254, 1, 1);
    /// The source of a connection that the node makes to itself through a Service.
    pub const HAIRPIN: Ip4 = Ip4::new(169, 254, 1, 2);
}

abi! {
    /// Constants of this node. Loading programs anew replaces them atomically.
    pub struct NodeConfig {
        /// This node's address: outer source of the tunnel and source of what is masqueraded.
        pub node_ip: Ip4,
        /// The interface towards other nodes and the outside.
        pub underlay_ifindex: u32,
        /// The idle VXLAN device `shunt0`: routes of the host lead here, and what the tunnel brings for the host enters here.
        pub tunnel_ifindex: u32,
        /// VXLAN network identifier, 24 bits.
        pub vni: u32,
        /// Largest inner IP packet in bytes.
        pub mtu: u32,
        /// VXLAN's UDP port.
        pub vxlan_port: Port,
        /// First source port for translated sources, host order.
        pub snat_port_min: u16,
        /// Last source port for translated sources, host order.
        pub snat_port_max: u16,
        /// The MAC of `shunt0`, this node's VTEP.
        pub tunnel_mac: Mac,
        /// Netmask of the underlay, network order: a peer within it is its own next hop, another needs the routing table.
        pub underlay_mask: Ip4,
    }
}
