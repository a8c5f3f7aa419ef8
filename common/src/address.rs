//! Who owns an address, and where a prefix leads: the maps `ADDRESSES` and `ROUTES`.

use crate::net::{Ip4, Mac};

/// What an exact address is ([`Address::kind`]).
pub mod kind {
    /// A pod of this node: `ifindex` is its host-side veth, `mac` the pod's own.
    pub const POD: u32 = 1;
    /// An address of this node itself.
    pub const HOST: u32 = 2;
    /// An address of another node: `underlay` and `mac` (its VTEP's) say how the tunnel reaches it.
    pub const NODE: u32 = 3;
    /// The virtual IP of a Service.
    pub const SERVICE: u32 = 4;
}

/// Where a prefix leads ([`Route::kind`]).
pub mod route {
    /// Through the tunnel to the node at `underlay`.
    pub const TUNNEL: u32 = 1;
    /// This node's own pod range: an address in it that is nobody's gets host unreachable.
    pub const LOCAL: u32 = 2;
    /// Leave it to the host's routing, without masquerade (`nonMasqueradeCIDRs`).
    pub const NATIVE: u32 = 3;
}

/// What else is known of where a prefix leads ([`Route::flags`]).
pub mod route_flags {
    /// The peer takes packets that come with their backend's name ([`Name`](crate::vxlan::Name)).
    pub const TAKES_NAMES: u16 = 1;
}

abi! {
    /// Value of `ADDRESSES`, keyed by the exact address.
    pub struct Address {
        /// One of [`kind`].
        pub kind: u32,
        /// Host-side interface of a pod, else 0.
        pub ifindex: u32,
        /// Outer destination of a node, else unspecified.
        pub underlay: Ip4,
        /// Inner destination MAC: the pod's, or the peer's VTEP's.
        pub mac: Mac,
        /// Zero.
        pub reserved: u16,
    }

    /// Value of `ROUTES`, keyed by prefix.
    pub struct Route {
        /// One of [`route`].
        pub kind: u32,
        /// Outer destination of a tunnel route.
        pub underlay: Ip4,
        /// Inner destination MAC of a tunnel route: the peer's VTEP's.
        pub mac: Mac,
        /// Bits of [`route_flags`].
        pub flags: u16,
    }
}

abi! {
    /// Key of `ROUTES`: a prefix, as the kernel's LPM trie wants it (kernel/bpf/lpm_trie.c).
    pub struct Prefix<F> {
        /// Number of leading bits that count.
        pub len: u32,
        /// The address, host bits zero.
        pub addr: F::Addr,
    }
}
