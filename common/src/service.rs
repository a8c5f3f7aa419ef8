//! Services and their backends: the maps `SERVICES`, `SLOTS`, `BACKENDS`, `NODE_PORTS` and `SOURCE_RANGES`.
//!
//! A frontend names two runs of slots, a slot names a backend by id. All frontends of a Service's port share their runs. An endpoint
//! change writes new backends, then a new run of slots, and last the frontends that name the run, so that a packet never meets a
//! half-written set.

use crate::net::{Port, proto};

/// How a frontend treats its clients ([`Service::flags`]).
pub mod flags {
    /// While [`cluster`](super::Service::cluster) is empty, drop silently instead of refusing: a policy is Local and the endpoints
    /// are elsewhere.
    pub const DROP_WHEN_EMPTY: u32 = 1;
    /// The same of [`outside`](super::Service::outside).
    pub const DROP_OUTSIDE_WHEN_EMPTY: u32 = 1 << 1;
    /// Clients from the outside keep their address (`externalTrafficPolicy: Local`, host ports).
    pub const KEEP_SOURCE: u32 = 1 << 2;
    /// Meant for the outside: anything but a ClusterIP.
    pub const EXTERNAL: u32 = 1 << 3;
    /// A client stays with its backend for [`affinity_secs`](super::Service::affinity_secs).
    pub const AFFINITY: u32 = 1 << 4;
    /// Only sources within the `SOURCE_RANGES` of [`id`](super::Service::id) are served.
    pub const SOURCE_RANGES: u32 = 1 << 5;
    /// The runs are Maglev tables: a slot is chosen by the flow's hash, the same on every node.
    pub const MAGLEV: u32 = 1 << 6;
    /// [`cluster`](super::Service::cluster) has backends of this node alone: `internalTrafficPolicy: Local`. For people, no program asks.
    pub const LOCAL: u32 = 1 << 7;
    /// [`outside`](super::Service::outside) has backends of this node alone: a policy is Local. For people.
    pub const OUTSIDE_LOCAL: u32 = 1 << 8;

    /// A backend on another node answers clients from the outside by itself, without the way back through this node: direct server
    /// return, for nodes that know how to.
    pub const DIRECT_RETURN: u32 = 1 << 9;

    /// Where the frontend's [`kind`](super::kind) stands, four bits; for people, no program asks.
    pub const KIND_SHIFT: u32 = 24;
}

/// What of a Service a frontend is.
pub mod kind {
    /// A ClusterIP's port.
    pub const CLUSTER_IP: u32 = 0;
    /// A node port.
    pub const NODE_PORT: u32 = 1;
    /// A port at an address of a load balancer.
    pub const LOAD_BALANCER: u32 = 2;
    /// A port at an external IP.
    pub const EXTERNAL_IP: u32 = 3;
    /// A pod's host port.
    pub const HOST_PORT: u32 = 4;
}

/// What a backend is good for ([`Backend::state`]).
pub mod state {
    /// Free slot of the array.
    pub const FREE: u8 = 0;
    /// Takes new connections.
    pub const ACTIVE: u8 = 1;
    /// Keeps its connections and gets no new ones.
    pub const DRAINING: u8 = 2;
}

/// What else is known of a backend ([`Backend::flags`]).
pub mod backend_flags {
    /// It runs on this node.
    pub const LOCAL: u8 = 1;
}

abi! {
    /// Key of `SERVICES`: one frontend.
    pub struct ServiceKey<F> {
        /// The address that clients name: a virtual IP, or one of the node's.
        pub addr: F::Addr,
        /// The port that clients name.
        pub port: Port,
        /// IP protocol number.
        pub proto: u8,
        /// Zero.
        pub reserved: u8,
    }

    /// Value of `BACKENDS`, an array indexed by backend id; id 0 is never used.
    pub struct Backend<F> {
        /// Where the connection really goes.
        pub addr: F::Addr,
        /// The target port.
        pub port: Port,
        /// One of [`state`].
        pub state: u8,
        /// Bits of [`backend_flags`].
        pub flags: u8,
        /// Counts the tenants of this id, so that a flow of an earlier one is recognised.
        pub generation: u32,
    }

    /// A client of a Service.
    pub struct ServiceClient<F> {
        /// [`Service::id`].
        pub service: u32,
        /// The client, or the first address of a prefix of clients.
        pub addr: F::Addr,
    }

    /// Key of `SOURCE_RANGES`: a prefix of clients that a Service lets in, as the kernel's LPM trie wants it (kernel/bpf/lpm_trie.c).
    pub struct SourceRange<F> {
        /// Number of leading bits that count: the 32 of the Service, and those of the prefix.
        pub len: u32,
        /// The rest of the prefix is zero.
        pub clients: ServiceClient<F>,
    }
}

abi! {
    /// Consecutive slots. Unless the frontend is [`flags::MAGLEV`], they name each backend once, in ascending order of (address, port)
    /// as loaded.
    pub struct Run {
        /// The first slot.
        pub base: u32,
        /// How many; 0 refuses.
        pub count: u32,
    }
}

abi! {
    /// Value of `SERVICES`.
    pub struct Service {
        /// Backends for clients in the cluster: pods, and this host.
        pub cluster: Run,
        /// Backends for clients from the outside.
        pub outside: Run,
        /// Bits of [`flags`].
        pub flags: u32,
        /// Seconds that a client stays with its backend after it was last heard of; with [`flags::AFFINITY`].
        pub affinity_secs: u32,
        /// A number that all frontends of a Service share, and no other Service has: for what is kept for Service and client. 0 of a
        /// host port, which has none.
        pub id: u32,
    }
}

impl Run {
    /// Of no slots.
    pub const EMPTY: Self = Self { base: 0, count: 0 };

    /// The slots.
    #[must_use]
    pub const fn slots(&self) -> core::ops::Range<u32> {
        self.base..self.base.saturating_add(self.count)
    }
}

impl Service {
    /// One of [`kind`].
    #[must_use]
    pub const fn kind(&self) -> u32 {
        self.flags >> flags::KIND_SHIFT & 0xf
    }
}

/// `NODE_PORTS`: a bit for each port that some frontend at an address of a node has, so that all other packets to the node are known at
/// the cost of an array access.
pub mod node_ports {
    /// Ports a word of the map tells of.
    pub const PORTS: u32 = 64;
    /// Words a protocol has.
    pub const WORDS: u32 = 65_536 / PORTS;
    /// TCP, UDP and SCTP.
    pub const PROTOCOLS: u32 = 3;

    /// The ports that a word of the map tells of, whatever their protocol.
    pub fn of_word(index: u32, word: u64) -> impl Iterator<Item = u16> {
        let first = index % WORDS * PORTS;
        // `WORDS` words of `PORTS` are the ports that there are.
        (0..PORTS).filter(move |bit| word >> bit & 1 != 0).map(move |bit| (first + bit) as u16)
    }
}

/// Index and bit in `NODE_PORTS` of a port; `None` if the protocol has no ports that a Service could have.
#[must_use]
#[inline(always)]
pub const fn node_port_bit(proto: u8, port: Port) -> Option<(u32, u64)> {
    let class = match proto {
        proto::TCP => 0,
        proto::UDP => 1,
        proto::SCTP => 2,
        _ => return None,
    };
    let port = port.to_host() as u32;
    Some((class * node_ports::WORDS + port / node_ports::PORTS, 1 << (port % node_ports::PORTS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_has_a_bit_of_its_own() {
        let bit = |proto, port| node_port_bit(proto, Port::from_host(port));
        assert_eq!(bit(proto::TCP, 0), Some((0, 1)));
        assert_eq!(bit(proto::TCP, 65_535), Some((1023, 1 << 63)));
        assert_eq!(bit(proto::UDP, 30_000), Some((1024 + 468, 1 << 48)));
        assert_eq!(bit(proto::SCTP, 65_535), Some((3071, 1 << 63)));
        assert_eq!(bit(proto::ICMP, 1), None);
        for (proto, port) in [(proto::TCP, 0), (proto::UDP, 30_000), (proto::SCTP, 65_535)] {
            let (index, word) = bit(proto, port).unwrap();
            assert!(node_ports::of_word(index, word).eq([port]));
        }
        assert!(node_ports::of_word(1, 0b101).eq([64, 66]));
    }

    #[test]
    fn a_frontends_kind_is_told_from_its_flags() {
        let flags = flags::EXTERNAL | flags::AFFINITY | kind::HOST_PORT << flags::KIND_SHIFT;
        let service = Service { cluster: Run::EMPTY, outside: Run::EMPTY, flags, affinity_secs: 0, id: 0 };
        assert_eq!(service.kind(), kind::HOST_PORT);
        assert_eq!(Run { base: u32::MAX, count: 2 }.slots(), u32::MAX..u32::MAX, "a damaged run ends where slots do");
    }
}
