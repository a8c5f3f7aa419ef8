//! Connect-time translation: whose sockets are translated, in the map `CLIENTS`, and what each was connected to, in `CONNECTED`.

use crate::net::Port;

/// Who works in a network namespace ([`Client::kind`]).
pub mod kind {
    /// A pod of this node.
    pub const POD: u32 = 1;
    /// This node's own processes, and pods on the host network.
    pub const HOST: u32 = 2;
}

abi! {
    /// Value of `CLIENTS`, keyed by the cookie of a network namespace (SO_NETNS_COOKIE). Sockets of any other namespace are none of ours.
    pub struct Client<F> {
        /// One of [`kind`].
        pub kind: u32,
        /// The pod's address, the node's of the host.
        pub addr: F::Addr,
    }

    /// Value of `CONNECTED`, keyed by a socket's cookie (SO_COOKIE), which no other has until the next boot: the frontend that the socket's
    /// program named, and believes to speak with.
    pub struct Frontend<F> {
        /// Its address.
        pub addr: F::Addr,
        /// Its port.
        pub port: Port,
        /// Zero.
        pub reserved: u16,
    }
}
