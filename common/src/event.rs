//! What a program tells a listener: records of the ring buffer `EVENTS`.

/// Which program speaks ([`Event::program`]).
pub mod program {
    /// TC ingress of a pod's veth.
    pub const FROM_POD: u8 = 1;
    /// TC egress of a pod's veth.
    pub const TO_POD: u8 = 2;
    /// TC ingress of the underlay or another wire.
    pub const FROM_WIRE: u8 = 3;
    /// TC egress of the tunnel device.
    pub const FROM_HOST: u8 = 4;
    /// XDP of the underlay.
    pub const FROM_WIRE_XDP: u8 = 5;
    /// TC egress of the loopback device.
    pub const FROM_LOOPBACK: u8 = 6;
    /// TC egress of the underlay or another wire.
    pub const TO_WIRE: u8 = 7;

    /// The name of a program as it stands in the object file and in what people read.
    #[must_use]
    pub const fn name(program: u8) -> &'static str {
        match program {
            FROM_POD => "from_pod",
            TO_POD => "to_pod",
            FROM_WIRE => "from_wire",
            FROM_HOST => "from_host",
            FROM_WIRE_XDP => "from_wire_xdp",
            FROM_LOOPBACK => "from_loopback",
            TO_WIRE => "to_wire",
            _ => "unknown",
        }
    }
}

abi! {
    /// A dropped packet, as it was when it was parsed.
    pub struct Event {
        /// CLOCK_MONOTONIC, nanoseconds.
        pub time: u64,
        /// A [`DropReason`](crate::verdict::DropReason).
        pub reason: u32,
        /// The interface whose hook saw it.
        pub ifindex: u32,
        /// Length in bytes, Ethernet header included.
        pub len: u32,
        /// Source, network order; an IPv4 address in the first four bytes. Zero if unparsed.
        pub src: [u8; 16],
        /// Destination likewise.
        pub dst: [u8; 16],
        /// Source port, network order bytes.
        pub sport: [u8; 2],
        /// Destination port, network order bytes.
        pub dport: [u8; 2],
        /// EtherType, host order.
        pub ethertype: u16,
        /// IP protocol number.
        pub proto: u8,
        /// One of [`program`].
        pub program: u8,
        /// Zero.
        pub reserved: u32,
    }
}
