//! What becomes of a packet, and every reason to drop one.

/// What a stage or a program decided. Passing is not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to the host's stack, or past a hook that had nothing to do.
    Pass,
    /// A redirect helper has taken the packet; at XDP it goes back out.
    Redirect,
    /// To be dropped, and counted under the reason.
    Drop(DropReason),
    /// To be dropped, and counted already.
    Counted,
}

macro_rules! numbered {
    ($(#[$meta:meta])* pub enum $enum:ident { $( $variant:ident = $number:literal, $name:literal, $help:literal; )+ }) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $enum { $( #[doc = $help] $variant = $number ),+ }

        impl $enum {
            /// All, in the order of their numbers.
            pub const ALL: &'static [Self] = &[ $( Self::$variant ),+ ];
            /// Length of the per-CPU array that counts them.
            pub const SLOTS: u32 = 64;

            /// The word for it in metrics, logs, events and tables.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name ),+ }
            }

            /// One sentence for an operator.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $( Self::$variant => $help ),+ }
            }

            /// The one with this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $( $number => Some(Self::$variant), )+ _ => None }
            }
        }

        const _: () = { $( assert!($number < $enum::SLOTS); )+ };
    };
}

numbered! {
    /// Why a packet was dropped: the index of its counter in `DROPS`, the metric's label, the event's field, the word in the log.
    /// Numbers are fixed; a new reason takes a new one.
    pub enum DropReason {
        Malformed = 1, "malformed", "A header is truncated or contradicts itself.";
        SourceSpoofed = 2, "source_spoofed", "A pod sent from an address that is not its own.";
        Ipv6Unsupported = 3, "ipv6_unsupported", "IPv6 from a pod: not carried yet, never leaked.";
        ProtocolUnsupported = 4, "protocol_unsupported", "An EtherType that is neither IP nor ARP, or the tag of a VLAN.";
        Multicast = 5, "multicast", "A pod sent to a multicast or broadcast address, which is not routed.";
        TunnelPeerUnknown = 6, "tunnel_peer_unknown", "A tunnel packet from an address that is no node's.";
        TunnelVniUnknown = 7, "tunnel_vni_unknown", "A tunnel packet of another virtual network.";
        TunnelMalformed = 8, "tunnel_malformed", "A tunnel packet that does not hold a whole inner packet.";
        TunnelEcn = 9, "tunnel_ecn", "Congestion was marked outside on a packet that cannot carry the mark (RFC 6040).";
        NoSuchPod = 10, "no_such_pod", "The address is in this node's pod range but no pod has it; the sender was told.";
        NoEndpoints = 11, "no_endpoints", "The Service has no usable endpoint; the client was refused.";
        NoLocalEndpoints = 12, "no_local_endpoints", "A Local policy and no endpoint on this node, but elsewhere.";
        ServicePortUndefined = 13, "service_port_undefined", "The virtual IP exists but not this port or protocol; the client was refused.";
        ConntrackFull = 14, "conntrack_full", "No room for a new translated flow; live flows go on.";
        SnatPortsExhausted = 15, "snat_ports_exhausted", "No free source port towards this destination; live flows go on.";
        FragmentWithoutReassembly = 16, "fragment_without_reassembly", "A fragment outran the one with the ports and the kernel cannot reassemble here.";
        IcmpErrorUnmatched = 17, "icmp_error_unmatched", "An ICMP error to a virtual IP that quotes no known flow.";
        PacketTooBig = 18, "packet_too_big", "Larger than its way carries and not to be cut; as a rule the sender was told.";
        NoRoute = 19, "no_route", "No route leads to the destination.";
        RewriteFailed = 20, "rewrite_failed", "The kernel refused a change to the packet; usually out of memory.";
        SourceNotAllowed = 21, "source_not_allowed", "The client is in none of the Service's loadBalancerSourceRanges.";
        TtlExpired = 22, "ttl_expired", "The packet may go no hop further; the sender was told.";
    }
}

numbered! {
    /// What a program did with a packet: the index of its counter in `COUNTERS`.
    pub enum Counter {
        ToLocalPod = 0, "to_local_pod", "Delivered straight to a pod of this node.";
        ToTunnel = 1, "to_tunnel", "Pushed into VXLAN towards another node.";
        FromTunnel = 2, "from_tunnel", "Popped from VXLAN.";
        ToHost = 3, "to_host", "Handed to the host's stack.";
        ToOutside = 4, "to_outside", "Sent out with the node's address.";
        ServiceNewFlow = 5, "service_new_flow", "A flow to a Service was given a backend.";
        SnatNewFlow = 6, "snat_new_flow", "A flow was given a source port of the node.";
        Refused = 7, "refused", "An ICMP unreachable was sent back.";
        DirectUntracked = 8, "direct_untracked", "A direct flow found no room to be tracked; it went on untracked.";
        SlowPath = 9, "slow_path", "Left to the host's stack: TTL at its end, too big for its way, or fragments out of order.";
        ServiceConnect = 10, "service_connect", "A connection to a Service was given a backend by connect(): its packets need no translation.";
        XdpForwarded = 11, "xdp_forwarded", "Sent back out of the underlay by XDP, before the kernel made a packet of it.";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_one_to_one() {
        for &reason in DropReason::ALL {
            assert_eq!(DropReason::from_number(reason as u32), Some(reason));
            assert_eq!(DropReason::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
        assert_eq!(DropReason::from_number(0), None, "0 is no reason");
        for &counter in Counter::ALL {
            assert_eq!(Counter::from_number(counter as u32), Some(counter));
        }
    }
}
