//! Frontends of Services for clients outside and for pods: node ports, and virtual IPs reached from the wire.

use shunt_common::{
    address::{Address, kind},
    net::proto,
    service::{Run, Service, flags, state},
    timeout,
};

use crate::{
    from_pod::{refusal, reset},
    from_wire::popped,
    harness::{
        Dataplane, NODE_IP, OTHER_POD, OUTSIDE, Outcome, PEER_IP, POD, POD_MAC, REMOTE_POD, TUNNEL_MAC, VIP,
        Verdict::{Drop, Pass, Redirect},
        address, serving,
    },
    packet::{ACK, ETHERNET, FIN, Packet, RST, SYN, echo, error, tcp, tunnel, udp},
};

pub(crate) const NODE_PORT: u16 = 30_080;
/// What the network card of a test run is called by: else a frame would only be overheard.
const OURS: [u8; 6] = [0; 6];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
pub(crate) const FROM_OUTSIDE: [u8; 14] = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 9, 8, 0];

/// As it comes from the wire.
pub(crate) fn arriving(packet: Packet) -> Packet {
    packet.macs(OURS, CLIENT_MAC)
}

/// A node port with backends for clients in the cluster and outside.
pub(crate) fn node_port(dataplane: &mut Dataplane, proto: u8, backends: &[(&str, u16)], flags: u32) {
    let run = dataplane.run_of(backends);
    dataplane.node_port(NODE_PORT, proto, serving(run, flags | flags::EXTERNAL));
}

fn counted(outcome: &Outcome) -> Vec<&'static str> {
    outcome.counted.keys().copied().collect()
}

/// The node port's address and port, the client's address and port.
const ANSWER: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0x75, 0x80, 0x9c, 0x40];

/// The ends of a packet for the outside. A machine without a route there refuses it as it came, which shows no more than that it was to go.
fn ends(outcome: &Outcome) -> &[u8] {
    let gone = outcome.counted.contains_key("to_outside");
    assert_ne!(gone, outcome.counted.contains_key("no_route"), "{outcome:?}");
    if gone { &outcome.packet[26..38] } else { &ANSWER }
}

/// The port of the node's own that a flow got, by its answer's entry.
fn allocated(dataplane: &mut Dataplane, backend_port: u16) -> u16 {
    let flows = dataplane.flows();
    let answer = flows.iter().find(|(key, _)| key.sport.to_host() == backend_port).expect("the answer's entry");
    answer.0.dport.to_host()
}

#[test]
fn from_outside_to_a_pod_of_this_node_with_the_nodes_address() {
    let mut dataplane = Dataplane::new();
    for (protocol, syn) in
        [(proto::TCP, tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN)), (proto::UDP, udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT))]
    {
        node_port(&mut dataplane, protocol, &[(POD, 8080)], 0);
        let syn = arriving(syn);
        let first = dataplane.run("from_wire", &syn.bytes());
        let port = first.snat_port();
        let expected = syn.clone().from(NODE_IP).sport(port).to(POD).dport(8080).aged().bytes();
        first.is(Redirect, &expected, &["service_new_flow", "snat_new_flow", "to_local_pod"]);
        dataplane.run("from_wire", &syn.bytes()).is(Redirect, &expected, &["to_local_pod"]);
        let mut follows = syn.clone();
        if let crate::packet::L4::Tcp { flags, .. } = &mut follows.l4 {
            *flags = ACK;
        }
        let expected = follows.clone().from(NODE_IP).sport(port).to(POD).dport(8080).aged().bytes();
        dataplane.run("from_wire", &follows.bytes()).is(Redirect, &expected, &["to_local_pod"]);
    }
}

#[test]
fn the_answer_leaves_by_the_hosts_routes_as_the_node_port() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::UDP, &[(POD, 8080)], 0);
    dataplane.run("from_wire", &arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT)).bytes());
    let port = allocated(&mut dataplane, 8080);
    for _ in 0..2 {
        assert_eq!(ends(&dataplane.run("from_pod", &udp(POD, 8080, NODE_IP, port).bytes())), ANSWER);
    }
}

#[test]
fn a_local_policy_keeps_the_clients_address() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(POD, 8080)], flags::KEEP_SOURCE);
    let syn = arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN));
    let expected = syn.clone().to(POD).dport(8080).aged().bytes();
    dataplane.run("from_wire", &syn.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
    let answer = dataplane.run("from_pod", &tcp(POD, 8080, OUTSIDE, 40_000, SYN | ACK).bytes());
    assert_eq!(ends(&answer), ANSWER);
    assert_eq!(dataplane.flows().len(), 2, "no other flow was opened for the answer");
    // A node's too: whichever it got instead, that node may have given to somebody whom it masquerades.
    let syn = arriving(tcp(PEER_IP, 40_000, NODE_IP, NODE_PORT, SYN));
    let expected = syn.clone().to(POD).dport(8080).aged().bytes();
    dataplane.run("from_wire", &syn.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
}

#[test]
fn from_outside_to_a_pod_of_another_node_and_back_through_the_tunnel() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(REMOTE_POD, 8080)], 0);
    let syn = arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN));
    let outcome = dataplane.run("from_wire", &syn.bytes());
    let all = ["service_new_flow", "snat_new_flow", "to_tunnel"];
    let inner = outcome.tunnelled(0, &all, &FROM_OUTSIDE);
    let port = inner.snat_port();
    inner.is(Redirect, &syn.from(NODE_IP).sport(port).to(REMOTE_POD).dport(8080).aged().bytes(), &all);
    let answer = tcp(REMOTE_POD, 8080, NODE_IP, port, SYN | ACK);
    let outcome = dataplane.run("from_wire", &tunnel(PEER_IP, &answer, 0).bytes());
    assert_eq!(ends(&outcome), ANSWER);
    assert!(!outcome.counted.contains_key("refused"), "an error has no way back through the tunnel");
}

#[test]
fn a_virtual_ip_is_served_from_outside_by_its_own_run() {
    let mut dataplane = Dataplane::new();
    let (cluster, outside) = (dataplane.run_of(&[(REMOTE_POD, 8080)]), dataplane.run_of(&[(POD, 8080)]));
    let flags = flags::EXTERNAL | flags::KEEP_SOURCE;
    dataplane.frontend(VIP, 80, proto::TCP, Service { outside, ..serving(cluster, flags) });
    let syn = arriving(tcp(OUTSIDE, 40_000, VIP, 80, SYN));
    let expected = syn.clone().to(POD).dport(8080).aged().bytes();
    dataplane.run("from_wire", &syn.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
    // A pod has them all, and keeps its address.
    let syn = tcp(POD, 40_000, VIP, 80, SYN);
    let outcome = dataplane.run("from_pod", &syn.bytes());
    let inner = outcome.tunnelled(0, &["service_new_flow", "to_tunnel"], &ETHERNET);
    inner.is(Redirect, &syn.to(REMOTE_POD).dport(8080).aged().bytes(), &["service_new_flow", "to_tunnel"]);
}

#[test]
fn nobody_there_is_refused_and_nobody_here_is_silence() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[]);
    node_port(&mut dataplane, proto::TCP, &[], 0);
    node_port(&mut dataplane, proto::UDP, &[], 0);
    for (dst, port, reason) in
        [(NODE_IP, NODE_PORT, "no_endpoints"), (VIP, 80, "no_endpoints"), (VIP, 81, "service_port_undefined")]
    {
        let syn = arriving(tcp(OUTSIDE, 40_000, dst, port, SYN));
        dataplane.run("from_wire", &syn.bytes()).is(Redirect, &reset(&syn), &[reason, "refused"]);
    }
    let query = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT));
    dataplane.run("from_wire", &query.bytes()).is(Redirect, &refusal(&query, 3), &["no_endpoints", "refused"]);
    let run = dataplane.run_of(&[(REMOTE_POD, 8080)]);
    let local = flags::EXTERNAL | flags::KEEP_SOURCE | flags::DROP_OUTSIDE_WHEN_EMPTY;
    dataplane.node_port(NODE_PORT, proto::TCP, Service { outside: Run::EMPTY, ..serving(run, local) });
    let syn = arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN)).bytes();
    dataplane.run("from_wire", &syn).is(Drop, &syn, &["no_local_endpoints"]);
    assert!(dataplane.flows().is_empty(), "a refused packet leaves no flow behind");
    // Pods have the others: kube-proxy's short-circuit.
    dataplane.run("from_pod", &tcp(POD, 40_000, NODE_IP, NODE_PORT, SYN).bytes()).tunnelled(
        0,
        &["service_new_flow", "to_tunnel"],
        &ETHERNET,
    );
}

#[test]
fn what_is_not_for_a_frontend_is_the_hosts() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(POD, 8080)], 0);
    let second = "192.0.2.3";
    dataplane.address(second, address(kind::HOST));
    let mut overheard = arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN));
    overheard = overheard.macs([2, 0, 0, 0, 0, 7], CLIENT_MAC);
    for packet in [
        arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT)),
        arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT + 1, SYN)),
        // The port is a frontend's at the other address only.
        arriving(tcp(OUTSIDE, 40_000, second, NODE_PORT, SYN)),
        // An answer to a socket of the node that has the port.
        arriving(tcp(OUTSIDE, 80, NODE_IP, NODE_PORT, SYN | ACK)),
        arriving(tcp(OUTSIDE, 80, NODE_IP, NODE_PORT, ACK)),
        overheard,
        // Martians.
        arriving(tcp(NODE_IP, 40_000, NODE_IP, NODE_PORT, SYN)),
        arriving(tcp(POD, 40_000, NODE_IP, NODE_PORT, SYN)),
        arriving(echo(OUTSIDE, NODE_IP, 8, NODE_PORT)),
    ] {
        dataplane.run("from_wire", &packet.bytes()).is(Pass, &packet.bytes(), &[]);
    }
    assert!(dataplane.flows().is_empty());
    let packet = tcp(POD, 40_000, second, NODE_PORT, SYN);
    dataplane.run("from_pod", &packet.bytes()).is(Pass, &packet.bytes(), &["to_host"]);
}

#[test]
fn a_pod_reaches_a_node_port_with_its_own_address() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(OTHER_POD, 8080)], 0);
    for flags in [SYN, ACK, FIN | ACK] {
        let packet = tcp(POD, 40_000, NODE_IP, NODE_PORT, flags);
        let outcome = dataplane.run("from_pod", &packet.bytes());
        assert_eq!(outcome.packet, packet.to(OTHER_POD).dport(8080).aged().bytes());
    }
    // With UDP a flow follows what the port is for: first the host's, then the frontend's, then the host's again.
    let query = udp(POD, 40_000, NODE_IP, NODE_PORT);
    dataplane.run("from_pod", &query.bytes()).is(Pass, &query.bytes(), &["to_host"]);
    node_port(&mut dataplane, proto::UDP, &[(OTHER_POD, 8080)], 0);
    dataplane.begin_epoch();
    let expected = query.clone().to(OTHER_POD).dport(8080).aged().bytes();
    dataplane.run("from_pod", &query.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
    dataplane.no_node_port(NODE_PORT, proto::UDP);
    let id = dataplane.flows().iter().map(|(_, entry)| entry.backend).max().expect("a backend");
    dataplane.backend(id, OTHER_POD, 8080, state::FREE, 1);
    dataplane.begin_epoch();
    dataplane.run("from_pod", &query.bytes()).is(Pass, &query.bytes(), &["to_host"]);
}

#[test]
fn a_pod_of_another_node_asks_through_the_tunnel_and_hears_through_it() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::UDP, &[(POD, 8080)], 0);
    let query = udp(REMOTE_POD, 40_000, NODE_IP, NODE_PORT);
    let outcome = dataplane.run("from_wire", &tunnel(PEER_IP, &query, 0).bytes());
    let port = allocated(&mut dataplane, 8080);
    let expected = popped(query.clone().from(NODE_IP).sport(port).to(POD).dport(8080).aged());
    outcome.is(Redirect, &expected, &["from_tunnel", "service_new_flow", "snat_new_flow", "to_local_pod"]);
    let answer = udp(POD, 8080, NODE_IP, port);
    let outcome = dataplane.run("from_pod", &answer.bytes());
    let inner = outcome.tunnelled(0, &["to_tunnel"], &ETHERNET);
    inner.is(Redirect, &answer.from(NODE_IP).sport(NODE_PORT).to(REMOTE_POD).dport(40_000).aged().bytes(), &["to_tunnel"]);
    // Without endpoints the stack refuses, which knows the way back.
    node_port(&mut dataplane, proto::UDP, &[], 0);
    let other = udp(REMOTE_POD, 40_001, NODE_IP, NODE_PORT);
    let mut expected = popped(other.clone());
    expected[..6].copy_from_slice(&TUNNEL_MAC);
    dataplane.run("from_wire", &tunnel(PEER_IP, &other, 0).bytes()).is(Redirect, &expected, &["from_tunnel", "to_host"]);
}

#[test]
fn one_port_for_a_node_port_and_for_the_pod_behind_it_is_two_flows() {
    let mut dataplane = Dataplane::new();
    for protocol in [proto::TCP, proto::UDP] {
        let opener = |to, port| match protocol {
            proto::TCP => tcp(REMOTE_POD, 40_000, to, port, SYN),
            _ => udp(REMOTE_POD, 40_000, to, port),
        };
        node_port(&mut dataplane, protocol, &[(POD, 8080)], flags::KEEP_SOURCE);
        let (asking, direct) = (opener(NODE_IP, NODE_PORT), opener(POD, 8080));
        let outcome = dataplane.run("from_wire", &tunnel(PEER_IP, &asking, 0).bytes());
        let port = outcome.snat_port();
        assert_ne!(port, 40_000);
        let all = ["from_tunnel", "service_new_flow", "snat_new_flow", "to_local_pod"];
        outcome.is(Redirect, &popped(asking.sport(port).to(POD).dport(8080).aged()), &all);
        let outcome = dataplane.run("from_wire", &tunnel(PEER_IP, &direct, 0).bytes());
        outcome.is(Redirect, &popped(direct.aged()), &["from_tunnel", "to_local_pod"]);
        for (to, from, from_port) in [(port, NODE_IP, NODE_PORT), (40_000, POD, 8080)] {
            let answer = match protocol {
                proto::TCP => tcp(POD, 8080, REMOTE_POD, to, SYN | ACK),
                _ => udp(POD, 8080, REMOTE_POD, to),
            };
            let inner = dataplane.run("from_pod", &answer.bytes()).tunnelled(0, &["to_tunnel"], &ETHERNET);
            let expected = answer.from(from).sport(from_port).to(REMOTE_POD).dport(40_000).aged().bytes();
            inner.is(Redirect, &expected, &["to_tunnel"]);
        }
    }
}

#[test]
fn the_last_hop_and_what_the_tunnel_cannot_carry_are_answered() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::UDP, &[(REMOTE_POD, 8080)], 0);
    let last = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).ttl(1));
    let outcome = dataplane.run("from_wire", &last.bytes());
    assert_eq!(outcome.verdict, Redirect);
    assert_eq!(counted(&outcome), ["refused", "service_new_flow", "snat_new_flow", "ttl_expired"]);
    assert_eq!(outcome.packet[26..36], [192, 0, 2, 1, 198, 51, 100, 7, 11, 0]);
    let big = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).payload(vec![1; 1450 - 27]));
    let outcome = dataplane.run("from_wire", &big.bytes());
    assert_eq!((counted(&outcome), outcome.verdict), (vec!["packet_too_big", "refused"], Redirect));
    assert_eq!(outcome.packet[26..36], [192, 0, 2, 1, 198, 51, 100, 7, 3, 4]);
    assert_eq!(outcome.packet[40..42], 1450u16.to_be_bytes());
}

#[test]
fn errors_about_flows_from_outside_are_translated_both_ways() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::UDP, &[(POD, 8080)], 0);
    dataplane.run("from_wire", &arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT)).bytes());
    let port = allocated(&mut dataplane, 8080);
    // The client has gone: an error about the answer, which the backend knows as its own.
    let complaint = arriving(error(OUTSIDE, NODE_IP, 3, 3, &udp(NODE_IP, NODE_PORT, OUTSIDE, 40_000)));
    let expected = arriving(error(NODE_IP, POD, 3, 3, &udp(POD, 8080, NODE_IP, port))).aged().bytes();
    dataplane.run("from_wire", &complaint.bytes()).is(Redirect, &expected, &["to_local_pod"]);
    // The backend's port is closed: an error for the client.
    let complaint = error(POD, NODE_IP, 3, 3, &udp(NODE_IP, port, POD, 8080));
    let outcome = dataplane.run("from_pod", &complaint.bytes());
    let expected = error(NODE_IP, OUTSIDE, 3, 3, &udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT)).aged().bytes();
    // Its age is left out: where there is no route, it grows no older.
    assert_eq!(outcome.packet[26..], expected[26..]);
}

#[test]
fn fragments_to_a_node_port_follow_the_first() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::UDP, &[(POD, 8080)], flags::KEEP_SOURCE);
    let first = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).fragment(0x2000));
    let expected = first.clone().to(POD).dport(8080).aged().bytes();
    dataplane.run("from_wire", &first.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
    let later = arriving(crate::packet::raw(OUTSIDE, NODE_IP, 17, vec![9; 64]).fragment(2));
    dataplane.run("from_wire", &later.bytes()).is(Redirect, &later.clone().to(POD).aged().bytes(), &["to_local_pod"]);
}

#[test]
fn only_the_services_source_ranges_are_let_in() {
    let mut dataplane = Dataplane::new();
    dataplane
        .address("10.244.1.4", Address { ifindex: 78, mac: shunt_common::net::Mac { bytes: POD_MAC }, ..address(kind::POD) });
    let run = dataplane.run_of(&[(OTHER_POD, 8080)]);
    dataplane.frontend(VIP, 80, proto::TCP, serving(run, flags::EXTERNAL | flags::SOURCE_RANGES));
    for (from, program) in [(OUTSIDE, "from_wire"), (POD, "from_pod")] {
        let syn = arriving(tcp(from, 40_000, VIP, 80, SYN)).bytes();
        dataplane.run(program, &syn).is(Drop, &syn, &["source_not_allowed"]);
    }
    // Another Service's range is none of this one's.
    dataplane.source_range(2, "198.51.100.0", 24);
    let syn = arriving(tcp(OUTSIDE, 40_000, VIP, 80, SYN)).bytes();
    dataplane.run("from_wire", &syn).is(Drop, &syn, &["source_not_allowed"]);
    dataplane.source_range(1, "198.51.100.0", 24);
    dataplane.source_range(1, POD, 32);
    for (from, program) in [(OUTSIDE, "from_wire"), (POD, "from_pod")] {
        let syn = arriving(tcp(from, 40_000, VIP, 80, SYN)).bytes();
        assert_eq!(dataplane.run(program, &syn).verdict, Redirect);
    }
    let outside_of_it = arriving(tcp("198.51.101.7", 40_000, VIP, 80, SYN)).bytes();
    dataplane.run("from_wire", &outside_of_it).is(Drop, &outside_of_it, &["source_not_allowed"]);
}

/// End to end:
/// - `should drop INVALID conntrack entries`
#[test]
fn invalid_segments_of_a_flow_from_outside_are_harmless() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(POD, 8080)], flags::KEEP_SOURCE);
    dataplane.run("from_wire", &arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN)).bytes());
    for flags in [RST, ACK, FIN | ACK, SYN | ACK, SYN, 0] {
        let segment = arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, flags));
        let expected = segment.clone().to(POD).dport(8080).aged().bytes();
        let outcome = dataplane.run("from_wire", &segment.bytes());
        assert_eq!(
            (outcome.packet, outcome.verdict),
            (expected, Redirect),
            "flags {flags:#x}: to the backend, which judges it"
        );
    }
}

#[test]
fn a_load_balancers_address_that_is_another_nodes_is_served_here_at_its_ports_alone() {
    const LB_PORT: u16 = 8443;
    let mut dataplane = Dataplane::new();
    for protocol in [proto::TCP, proto::UDP] {
        let run = dataplane.run_of(&[(OTHER_POD, 8080)]);
        dataplane.node_port_at(PEER_IP, LB_PORT, protocol, serving(run, flags::KEEP_SOURCE));
    }
    for packet in [tcp(POD, 40_000, PEER_IP, LB_PORT, SYN), udp(POD, 40_000, PEER_IP, LB_PORT)] {
        let expected = packet.clone().to(OTHER_POD).dport(8080).aged().bytes();
        dataplane.run("from_pod", &packet.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
        dataplane.run("from_pod", &packet.bytes()).is(Redirect, &expected, &["to_local_pod"]);
    }
    // The node's own ports, and a pod's that has the same number.
    for (address, port) in [(PEER_IP, 22), (REMOTE_POD, LB_PORT)] {
        let packet = udp(POD, 40_000, address, port);
        for _ in 0..2 {
            let inner = dataplane.run("from_pod", &packet.bytes()).tunnelled(0, &["to_tunnel"], &ETHERNET);
            inner.is(Redirect, &packet.clone().aged().bytes(), &["to_tunnel"]);
        }
    }
}

#[test]
fn a_reset_that_its_receiver_would_not_believe_ends_nothing() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(POD, 8080)], flags::KEEP_SOURCE);
    // RFC 9293: the sequence number begins at byte 4 of the header, what is acknowledged at byte 8.
    let numbered = |packet: Packet, sequence: u8, acknowledged: u8| {
        let mut bytes = packet.bytes();
        (bytes[38], bytes[42]) = (sequence, acknowledged);
        bytes
    };
    let segment = |flags| arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, flags));
    let answer = |flags| tcp(POD, 8080, OUTSIDE, 40_000, flags);
    dataplane.run("from_wire", &numbered(segment(SYN), 0x10, 0));
    dataplane.run("from_pod", &numbered(answer(SYN | ACK), 0xa0, 0x10));
    dataplane.run("from_wire", &numbered(segment(ACK), 0x10, 0xa0));
    for (program, reset, expected) in [
        ("from_pod", numbered(answer(ACK), 0xa0, 0x10), timeout::ESTABLISHED),
        ("from_wire", numbered(segment(RST), 0x7f, 0), timeout::CLOSE_WAIT),
        ("from_pod", numbered(answer(RST | ACK), 0x10, 0x10), timeout::CLOSE_WAIT),
        // What follows tells that nobody believed it.
        ("from_wire", numbered(segment(ACK), 0x10, 0xa0), timeout::CLOSE_WAIT),
        ("from_pod", numbered(answer(ACK), 0xa0, 0x10), timeout::ESTABLISHED),
        // The end of what was acknowledged may lie in the next 16 MiB.
        ("from_wire", numbered(segment(RST), 0x11, 0), timeout::CLOSED),
        ("from_wire", numbered(segment(ACK), 0x10, 0xa0), timeout::ESTABLISHED),
        ("from_pod", numbered(answer(RST), 0xa0, 0), timeout::CLOSED),
        // The ends of a connection that went without a word open another, and nobody listens any more (RFC 9293, 3.10.7.1).
        ("from_pod", numbered(answer(ACK), 0xa0, 0x10), timeout::ESTABLISHED),
        ("from_wire", numbered(segment(SYN), 0x55, 0), timeout::ESTABLISHED),
        ("from_pod", numbered(answer(RST | ACK), 0, 0x55), timeout::CLOSED),
    ] {
        assert_eq!(dataplane.run(program, &reset).verdict, Redirect, "whoever it is for judges it");
        let flows = dataplane.flows();
        let [(_, one), (_, other)] = flows.as_slice() else { panic!("{flows:?}") };
        assert_eq!(one.timeout(other.seen, proto::TCP), expected, "after {program}: {flows:?}");
    }
}

/// How many of `tries` new connections, each from another port, go to each backend.
fn spread(dataplane: &mut Dataplane, from: &str, dst: &str, port: u16, tries: u16) -> std::collections::BTreeMap<[u8; 4], u16> {
    let mut hits = std::collections::BTreeMap::new();
    for n in 0..tries {
        let outcome = dataplane.run("from_pod", &tcp(from, 50_000 + n, dst, port, SYN).bytes());
        assert_eq!(outcome.verdict, Redirect, "{outcome:?}");
        // Of the inner packet if it left in the tunnel.
        let at = if outcome.counted.contains_key("to_tunnel") { 80 } else { 30 };
        let backend: [u8; 4] = outcome.packet[at..at + 4].try_into().expect("four bytes");
        *hits.entry(backend).or_default() += 1;
    }
    hits
}

#[test]
fn a_client_stays_with_its_backend_over_all_ports_of_a_service() {
    let mut dataplane = Dataplane::new();
    let with_affinity = |run| Service { affinity_secs: 10_800, ..serving(run, flags::AFFINITY) };
    // In the order that the agent gives them.
    let mut pods: Vec<(String, u32)> = (1..=9).map(|n| (format!("10.244.2.{n}"), n)).collect();
    pods.sort_by_key(|(addr, _)| u32::from_ne_bytes(addr.parse::<std::net::Ipv4Addr>().expect("an address").octets()));
    let at = |port: u16| pods.iter().map(|(addr, _)| (addr.as_str(), port)).collect::<Vec<_>>();
    let (http, dns) = (dataplane.run_of(&at(8080)), dataplane.run_of(&at(5353)));
    dataplane.frontend(VIP, 80, proto::TCP, with_affinity(http));
    dataplane.frontend(VIP, 81, proto::TCP, with_affinity(dns));
    let first = spread(&mut dataplane, POD, VIP, 80, 15);
    assert_eq!(first.len(), 1, "15 connections, one backend");
    assert_eq!(spread(&mut dataplane, POD, VIP, 81, 15).keys().next(), first.keys().next());
    // Another Service is another matter.
    dataplane.lose_flows();
    dataplane.frontend(VIP, 82, proto::TCP, Service { id: 2, ..with_affinity(http) });
    assert_eq!(spread(&mut dataplane, POD, VIP, 82, 15).len(), 1);
    // Its backend leaves: the client gets another, and stays with that.
    let [a, b, c, d] = *first.keys().next().expect("one");
    let gone = format!("{a}.{b}.{c}.{d}");
    let left: Vec<_> = at(8080).into_iter().filter(|(addr, _)| *addr != gone).collect();
    let fewer = dataplane.run_of(&left);
    dataplane.frontend(VIP, 80, proto::TCP, with_affinity(fewer));
    dataplane.lose_flows();
    let second = spread(&mut dataplane, POD, VIP, 80, 15);
    assert!(second.len() == 1 && second.keys().next() != first.keys().next());
    // Switched off.
    dataplane.lose_flows();
    dataplane.frontend(VIP, 80, proto::TCP, serving(http, 0));
    assert!(spread(&mut dataplane, POD, VIP, 80, 40).len() > 1);
}

#[test]
fn a_flow_has_its_place_in_a_maglev_table() {
    let slots = |connections: u16| -> Vec<_> {
        let mut dataplane = Dataplane::new();
        let backends: Vec<String> = (1..=64).map(|n| format!("10.244.2.{n}")).collect();
        let backends: Vec<_> = backends.iter().map(|addr| (addr.as_str(), 8080)).collect();
        let run = dataplane.run_of(&backends);
        dataplane.frontend(VIP, 80, proto::TCP, serving(run, flags::MAGLEV));
        spread(&mut dataplane, POD, VIP, 80, connections).into_iter().collect()
    };
    let one = slots(100);
    assert!(one.len() > 30, "100 flows over 64 slots: {one:?}");
    assert_eq!(one, slots(100), "another node chooses the same");
}
