//! The ways that packets take through the programs: what a node has seen before, the packet, and what must become of it.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use shunt_common::{
    event::program,
    flow::Tuple,
    net::{Port, V4, proto},
    service::flags,
    snat::first_place,
};

use crate::test_run::{
    dataplane::{Dataplane, GATEWAY, NODE_IP, OTHER_POD, OUTSIDE, PEER_IP, POD, REMOTE_POD, SNAT_PORTS, VIP, serving},
    packet::{ACK, Packet, SYN, echo, tcp, tunnel, udp},
};

/// Ports of [`VIP`], named by where their backend is.
const HERE: u16 = 80;
const THERE: u16 = 81;
const AT_POD: u16 = 82;
const NOWHERE: u16 = 83;
/// A node port with a backend at [`POD`].
const NODE_PORT: u16 = 30_080;
/// A node port with a backend at [`REMOTE_POD`].
const NODE_PORT_THERE: u16 = 30_081;
/// Source ports of flows that leave with the node's address: room for a batch of new ones.
pub(super) const PORTS: RangeInclusive<u16> = *SNAT_PORTS.start()..=29_999;
const BACKEND_PORT: u16 = 8080;
const CLIENT_PORT: u16 = 40_000;

/// A packet that a program has seen before.
type Seen = (u8, fn() -> Packet);

/// A way.
pub(super) struct Path {
    /// One of [`program`].
    pub(super) program: u8,
    /// What it is the way of.
    pub(super) what: &'static str,
    /// What the node has seen before, and by which program.
    pub(super) before: &'static [Seen],
    /// The packet, for a number: where flows are to be new each has another port.
    pub(super) packet: fn(u16) -> Packet,
    /// The counters that it moves.
    pub(super) counted: &'static [&'static str],
    /// Whether it is served from `SHORTCUTS` and shows it: nothing changes when its flow's entries are taken away.
    pub(super) is_short: bool,
}

impl Path {
    /// Its name in the baseline and in the benchmark's table.
    pub(super) fn name(&self) -> String {
        format!("{}: {}", program::name(self.program), self.what)
    }
}

/// What all of them need.
pub(super) fn furnish(dataplane: &mut Dataplane) {
    dataplane.service(VIP, HERE, proto::TCP, &[(OTHER_POD, BACKEND_PORT)]);
    dataplane.service(VIP, THERE, proto::TCP, &[(REMOTE_POD, BACKEND_PORT)]);
    dataplane.service(VIP, AT_POD, proto::TCP, &[(POD, BACKEND_PORT)]);
    dataplane.service(VIP, NOWHERE, proto::TCP, &[]);
    let run = dataplane.run_of(&[(POD, BACKEND_PORT)]);
    dataplane.node_port(NODE_PORT, proto::TCP, serving(run, flags::EXTERNAL));
    let run = dataplane.run_of(&[(REMOTE_POD, BACKEND_PORT)]);
    dataplane.node_port(NODE_PORT_THERE, proto::TCP, serving(run, flags::EXTERNAL));
}

/// From outside to a node port, to this machine's own address on the link: `lo` has none.
fn from_outside(flags: u8, port: u16, node_port: u16) -> Packet {
    tcp(OUTSIDE, port, NODE_IP, node_port, flags).macs([0; 6], [2, 0, 0, 0, 0, 9])
}

/// What the backend of [`NODE_PORT_THERE`] answers the client outside, by way of the port that stands for it here.
fn answer_to_outside(flags: u8) -> Packet {
    let [client, node] = [OUTSIDE, NODE_IP].map(|address| address.parse::<Ipv4Addr>().expect("an address").into());
    let [sport, dport] = [CLIENT_PORT, NODE_PORT_THERE].map(Port::from_host);
    let asked = Tuple::<V4> { src: client, dst: node, sport, dport, proto: proto::TCP };
    let place = first_place(&asked, PORTS.len() as u32) as u16;
    tcp(REMOTE_POD, BACKEND_PORT, NODE_IP, PORTS.start() + place, flags)
}

/// A port of its own.
const fn port(number: u16) -> u16 {
    CLIENT_PORT.wrapping_add(number)
}

/// All of them.
pub(super) const ALL: &[Path] = &[
    Path {
        program: program::FROM_POD,
        what: "known flow, pod of this node",
        before: &[],
        packet: |_| udp(POD, CLIENT_PORT, OTHER_POD, 53),
        counted: &["to_local_pod"],
        is_short: true,
    },
    Path {
        program: program::FROM_POD,
        what: "known flow, ClusterIP with a backend here",
        before: &[(program::FROM_POD, || tcp(POD, CLIENT_PORT, VIP, HERE, SYN))],
        packet: |_| tcp(POD, CLIENT_PORT, VIP, HERE, ACK),
        counted: &["to_local_pod"],
        is_short: true,
    },
    Path {
        program: program::FROM_POD,
        what: "known flow, encapsulated",
        before: &[],
        packet: |_| udp(POD, CLIENT_PORT, REMOTE_POD, 53),
        counted: &["to_tunnel"],
        is_short: true,
    },
    Path {
        program: program::FROM_POD,
        what: "known flow, ClusterIP, encapsulated",
        before: &[(program::FROM_POD, || tcp(POD, CLIENT_PORT, VIP, THERE, SYN))],
        packet: |_| tcp(POD, CLIENT_PORT, VIP, THERE, ACK),
        counted: &["to_tunnel"],
        is_short: true,
    },
    Path {
        program: program::FROM_POD,
        what: "reply of a ClusterIP's backend",
        before: &[(program::FROM_POD, || tcp(POD, CLIENT_PORT, VIP, AT_POD, SYN))],
        // A pod that asks itself is the gateway to itself.
        packet: |_| tcp(POD, BACKEND_PORT, GATEWAY, CLIENT_PORT, ACK),
        counted: &["to_local_pod"],
        is_short: true,
    },
    Path {
        program: program::FROM_POD,
        what: "known flow, no shortcut (ping)",
        before: &[],
        packet: |_| echo(POD, OTHER_POD, 8, 7),
        counted: &["to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_POD,
        what: "new flow",
        before: &[],
        packet: |number| udp(POD, port(number), OTHER_POD, 53),
        counted: &["to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_POD,
        what: "new flow, ClusterIP",
        before: &[],
        packet: |number| tcp(POD, port(number), VIP, HERE, SYN),
        counted: &["service_new_flow", "to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_POD,
        what: "new flow, ClusterIP, encapsulated",
        before: &[],
        packet: |number| tcp(POD, port(number), VIP, THERE, SYN),
        counted: &["service_new_flow", "to_tunnel"],
        is_short: false,
    },
    Path {
        program: program::FROM_POD,
        what: "known flow to the outside, masqueraded",
        before: &[],
        packet: |_| udp(POD, CLIENT_PORT, OUTSIDE, 53),
        counted: &["to_outside"],
        is_short: false,
    },
    Path {
        program: program::FROM_POD,
        what: "dropped, spoofed source",
        before: &[],
        packet: |_| udp(REMOTE_POD, CLIENT_PORT, OTHER_POD, 53),
        counted: &["source_spoofed"],
        is_short: false,
    },
    Path {
        program: program::FROM_POD,
        what: "refused, no endpoint",
        before: &[],
        packet: |_| tcp(POD, CLIENT_PORT, VIP, NOWHERE, SYN),
        counted: &["no_endpoints", "refused"],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE,
        what: "known flow, decapsulated",
        before: &[],
        packet: |_| tunnel(PEER_IP, &udp(REMOTE_POD, CLIENT_PORT, POD, 53), 0),
        counted: &["from_tunnel", "to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE,
        what: "reply of a ClusterIP's backend, decapsulated",
        before: &[(program::FROM_POD, || tcp(POD, CLIENT_PORT, VIP, THERE, SYN))],
        packet: |_| tunnel(PEER_IP, &tcp(REMOTE_POD, BACKEND_PORT, POD, CLIENT_PORT, ACK), 0),
        counted: &["from_tunnel", "to_local_pod"],
        is_short: true,
    },
    Path {
        program: program::FROM_WIRE,
        what: "no shortcut, decapsulated (ping)",
        before: &[],
        packet: |_| tunnel(PEER_IP, &echo(REMOTE_POD, POD, 8, 7), 0),
        counted: &["from_tunnel", "to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE,
        what: "dropped, tunnel packet of a stranger",
        before: &[],
        packet: |_| tunnel("192.0.2.66", &udp(REMOTE_POD, CLIENT_PORT, POD, 53), 0),
        counted: &["tunnel_peer_unknown"],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE,
        what: "node port, new flow",
        before: &[],
        packet: |number| from_outside(SYN, port(number), NODE_PORT),
        counted: &["service_new_flow", "snat_new_flow", "to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE,
        what: "node port, known flow",
        before: &[(program::FROM_WIRE, || from_outside(SYN, CLIENT_PORT, NODE_PORT))],
        packet: |_| from_outside(ACK, CLIENT_PORT, NODE_PORT),
        counted: &["to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE,
        what: "passed, the host's own",
        before: &[],
        packet: |_| tcp(OUTSIDE, CLIENT_PORT, NODE_IP, 22, ACK),
        counted: &[],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE_XDP,
        what: "decapsulated",
        before: &[],
        packet: |_| tunnel(PEER_IP, &udp(REMOTE_POD, CLIENT_PORT, POD, 53), 0),
        counted: &[],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE_XDP,
        what: "passed, the host's own",
        before: &[],
        packet: |_| tcp(OUTSIDE, CLIENT_PORT, NODE_IP, 22, ACK),
        counted: &[],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE_XDP,
        what: "node port, known flow, encapsulated",
        before: &[
            (program::FROM_WIRE, || from_outside(SYN, CLIENT_PORT, NODE_PORT_THERE)),
            (program::FROM_WIRE, || from_outside(ACK, CLIENT_PORT, NODE_PORT_THERE)),
        ],
        packet: |_| from_outside(ACK, CLIENT_PORT, NODE_PORT_THERE),
        counted: &["to_tunnel", "xdp_forwarded"],
        is_short: true,
    },
    Path {
        program: program::FROM_WIRE_XDP,
        what: "node port, answer of a known flow, decapsulated",
        before: &[
            (program::FROM_WIRE, || from_outside(SYN, CLIENT_PORT, NODE_PORT_THERE)),
            (program::FROM_WIRE, || tunnel(PEER_IP, &answer_to_outside(SYN | ACK), 0)),
            (program::FROM_WIRE, || tunnel(PEER_IP, &answer_to_outside(ACK), 0)),
        ],
        packet: |_| tunnel(PEER_IP, &answer_to_outside(ACK), 0),
        counted: &["from_tunnel", "to_outside", "xdp_forwarded"],
        is_short: true,
    },
    Path {
        program: program::FROM_WIRE_XDP,
        what: "passed, node port, unknown flow",
        before: &[],
        packet: |_| from_outside(ACK, CLIENT_PORT, NODE_PORT_THERE),
        counted: &[],
        is_short: false,
    },
    Path {
        program: program::FROM_WIRE_XDP,
        what: "passed, node port, known flow with a backend here",
        before: &[
            (program::FROM_WIRE, || from_outside(SYN, CLIENT_PORT, NODE_PORT)),
            (program::FROM_WIRE, || from_outside(ACK, CLIENT_PORT, NODE_PORT)),
        ],
        packet: |_| from_outside(ACK, CLIENT_PORT, NODE_PORT),
        counted: &[],
        is_short: true,
    },
    Path {
        program: program::FROM_HOST,
        what: "encapsulated",
        before: &[],
        packet: |_| udp(NODE_IP, CLIENT_PORT, REMOTE_POD, 53),
        counted: &["to_tunnel"],
        is_short: false,
    },
    Path {
        program: program::FROM_HOST,
        what: "known flow, ClusterIP with a backend here",
        before: &[(program::FROM_HOST, || tcp(NODE_IP, CLIENT_PORT, VIP, AT_POD, SYN))],
        packet: |_| tcp(NODE_IP, CLIENT_PORT, VIP, AT_POD, ACK),
        counted: &["to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_HOST,
        what: "new flow, ClusterIP with a backend here",
        before: &[],
        packet: |number| tcp(NODE_IP, port(number), VIP, AT_POD, SYN),
        counted: &["service_new_flow", "snat_new_flow", "to_local_pod"],
        is_short: false,
    },
    Path {
        program: program::FROM_LOOPBACK,
        what: "passed, no node port",
        before: &[],
        packet: |_| tcp(NODE_IP, CLIENT_PORT, NODE_IP, 22, ACK),
        counted: &[],
        is_short: false,
    },
    Path {
        program: program::TO_WIRE,
        what: "passed, the tunnel's",
        before: &[],
        packet: |_| tunnel(NODE_IP, &udp(POD, CLIENT_PORT, REMOTE_POD, 53), 0),
        counted: &[],
        is_short: false,
    },
    Path {
        program: program::TO_WIRE,
        what: "passed, no flow at a port of the node's",
        before: &[],
        packet: |_| tcp(NODE_IP, BACKEND_PORT, OUTSIDE, *SNAT_PORTS.start(), ACK),
        counted: &[],
        is_short: false,
    },
    Path {
        program: program::TO_POD,
        what: "passed, nothing to translate",
        before: &[],
        packet: |_| tcp(NODE_IP, CLIENT_PORT, POD, 80, ACK),
        counted: &[],
        is_short: false,
    },
];
