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
    /// Where the running kernel keeps the state of a packet's checksum, as its BTF says: the read-only global `SKB`.
    pub struct SkbLayout {
        /// 1 if the rest is known, and a packet's `struct sk_buff` can be reached; else the state is left to helpers.
        pub known: u32,
        /// Offset in bytes of the byte that holds the two bits of `ip_summed`.
        pub ip_summed_byte: u32,
        /// Where in that byte they begin.
        pub ip_summed_shift: u32,
    }
}

impl SkbLayout {
    /// Nothing known.
    pub const UNKNOWN: Self = Self { known: 0, ip_summed_byte: 0, ip_summed_shift: 0 };

    /// Stands in the object file for the call that turns a context into its `struct sk_buff` (`bpf_cast_to_kern_ctx`, Linux 6.2): a helper of
    /// this number doesn't exist. The loader puts in what the running kernel has.
    pub const CAST: u32 = u32::from_be_bytes(*b"cast");
}

abi! {
    /// Where the running kernel keeps whether a socket is its own, as its BTF says: the read-only global `SOCK`.
    pub struct SockLayout {
        /// Offset in bytes, within `struct sock`, of the byte that holds the bit `sk_kern_sock`.
        pub kern_sock_byte: u32,
        /// That bit, in the byte; 0 if it is not known, and any socket passes for a process's.
        pub kern_sock_mask: u32,
    }
}

impl SockLayout {
    /// Nothing known.
    pub const UNKNOWN: Self = Self { kern_sock_byte: 0, kern_sock_mask: 0 };
}

/// Values of `ip_summed` (include/linux/skbuff.h).
pub mod ip_summed {
    /// The checksum stands in the packet, unchecked.
    pub const NONE: u8 = 0;
    /// Likewise, and the device has found it right.
    pub const UNNECESSARY: u8 = 1;
    /// Likewise, and the sum of the whole packet is known beside it.
    pub const COMPLETE: u8 = 2;
    /// To be filled in by whoever sends the packet out.
    pub const PARTIAL: u8 = 3;
}

/// Values of [`NodeConfig::xdp_forwards`].
pub mod xdp_forwards {
    /// The program at XDP sends nothing.
    pub const NO: u32 = 0;
    /// It sends packets of flows under way back out of the underlay: by `XDP_TX`.
    pub const TX: u32 = 1;
    /// The same, by `XDP_REDIRECT` to the very interface.
    pub const REDIRECT: u32 = 2;
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
        /// Whether the program at XDP sends packets of flows under way back out of the underlay: one of [`xdp_forwards`].
        pub xdp_forwards: u32,
    }
}
