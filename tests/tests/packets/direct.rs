//! Direct server return: the node that a client has asked (`from_wire` sends the packet on with its backend's name), and the backend's
//! (`from_wire` takes it in, `from_pod` answers the client).

use shunt_common::{
    address::{Address, Route, kind, route, route_flags},
    conntrack::{CtEntry, CtKey, seen, translates},
    net::{Ip4, Mac, Port, V4, proto},
    service::{flags, state},
};

use crate::{
    from_wire::popped,
    frontends::{FROM_OUTSIDE, NODE_PORT, arriving, node_port},
    harness::{
        Dataplane, NODE_IP, OTHER_POD, OUTSIDE, Outcome, PEER_IP, PEER_MAC, POD, REMOTE_POD, SNAT_PORTS, TUNNEL_MAC,
        Verdict::{Drop, Pass, Redirect},
        address,
    },
    packet::{ACK, FIN, Packet, SYN, echo, error, ip, raw, tcp, tunnel, udp},
};

const DIRECT: u32 = flags::KEEP_SOURCE | flags::DIRECT_RETURN;

/// A node of two backends, on a peer that takes names.
fn asked(proto: u8, backends: &[(&str, u16)]) -> Dataplane {
    let mut dataplane = Dataplane::new();
    peer_takes_names(&mut dataplane, true);
    node_port(&mut dataplane, proto, backends, DIRECT);
    dataplane
}

fn peer_takes_names(dataplane: &mut Dataplane, takes: bool) {
    let flags = if takes { route_flags::TAKES_NAMES } else { 0 };
    let underlay = Ip4::from(ip(PEER_IP));
    dataplane.route("10.244.2.0", 24, Route { kind: route::TUNNEL, underlay, mac: Mac { bytes: PEER_MAC }, flags });
}

/// The inner Ethernet addresses that name a backend.
fn name(addr: &str, port: u16) -> Vec<u8> {
    [&[0x72, 0x74][..], &ip(addr).octets(), &[0x72, 0x74, 0, 0], &port.to_be_bytes()].concat()
}

/// Asserts that a packet left for the peer as it came, with the name of its backend.
#[track_caller]
fn left_named(outcome: Outcome, sent: &Packet, backend: (&str, u16), counted: &[&str]) {
    let mut outcome = outcome;
    assert_eq!(outcome.packet[50..62], name(backend.0, backend.1), "{outcome:?}");
    outcome.packet[50..62].copy_from_slice(&[PEER_MAC, TUNNEL_MAC].concat());
    let inner = outcome.tunnelled(sent.tos, counted, &FROM_OUTSIDE);
    inner.is(Redirect, &sent.bytes(), counted);
}

/// A packet with its backend's name, as the peer that was asked sends it.
fn from_peer(from: &str, inner: &Packet, backend: (&str, u16)) -> Vec<u8> {
    let mut bytes = tunnel(from, inner, inner.tos & 3).bytes();
    bytes[50..62].copy_from_slice(&name(backend.0, backend.1));
    bytes
}

/// Asserts that a pod's packet leaves for the outside with these ends. A machine without a route there refuses it as it came: then the
/// entry that it met tells.
#[track_caller]
fn answers(dataplane: &mut Dataplane, packet: &Packet, from: (&str, u16), to: (&str, u16)) {
    let outcome = dataplane.run("from_pod", &packet.bytes());
    let ends = [&ip(from.0).octets()[..], &ip(to.0).octets(), &from.1.to_be_bytes(), &to.1.to_be_bytes()].concat();
    let gone = outcome.counted.contains_key("to_outside");
    assert_ne!(gone, outcome.counted.contains_key("no_route"), "{outcome:?}");
    if gone {
        assert_eq!(outcome.packet[26..38], ends);
        return;
    }
    let (src, dst) = (Ip4::from(packet.src), Ip4::from(packet.dst));
    let flows = dataplane.flows();
    let met = flows.iter().find(|(key, _)| key.src == src && key.dst == dst).expect("an entry of the answer");
    let left = [
        &met.1.src.be.to_ne_bytes()[..],
        &met.1.dst.be.to_ne_bytes(),
        &met.1.sport.be.to_ne_bytes(),
        &met.1.dport.be.to_ne_bytes(),
    ];
    assert_eq!(left.concat(), ends);
}

fn counted(outcome: &Outcome) -> Vec<&'static str> {
    outcome.counted.keys().copied().collect()
}

#[test]
fn a_clients_packets_go_on_as_they_came_with_the_name_of_one_backend() {
    for (protocol, packets) in [
        (proto::TCP, [SYN, ACK, FIN | ACK].map(|flags| tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, flags))),
        (proto::UDP, [1, 2, 3].map(|tos| udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).tos(tos))),
    ] {
        let mut dataplane = asked(protocol, &[(REMOTE_POD, 8080)]);
        let [first, second, third] = packets.map(arriving);
        let outcome = dataplane.run("from_wire", &first.bytes());
        left_named(outcome, &first, (REMOTE_POD, 8080), &["service_new_flow", "to_tunnel"]);
        for packet in [second, third] {
            let outcome = dataplane.run("from_wire", &packet.bytes());
            left_named(outcome, &packet, (REMOTE_POD, 8080), &["to_tunnel"]);
        }
        let flows = dataplane.flows();
        assert_eq!(flows.len(), 2);
        assert!(flows.iter().all(|(_, entry)| entry.translates == translates::THERE));
    }
}

#[test]
fn a_flow_stays_with_its_backend() {
    let backends: Vec<String> = (1..=20).map(|n| format!("10.244.2.{n}")).collect();
    let backends: Vec<_> = backends.iter().map(|addr| (addr.as_str(), 8080)).collect();
    let mut dataplane = asked(proto::TCP, &backends);
    let mut names = std::collections::BTreeSet::new();
    for port in 40_000..40_012 {
        let syn = arriving(tcp(OUTSIDE, port, NODE_IP, NODE_PORT, SYN));
        let named = dataplane.run("from_wire", &syn.bytes()).packet[50..62].to_vec();
        for flags in [SYN, ACK, ACK, FIN | ACK, ACK] {
            let packet = arriving(tcp(OUTSIDE, port, NODE_IP, NODE_PORT, flags));
            assert_eq!(dataplane.run("from_wire", &packet.bytes()).packet[50..62], named);
        }
        names.insert(named);
    }
    assert!(names.len() > 1, "12 flows over 20 backends");
}

#[test]
fn where_the_backends_node_cannot_answer_it_is_as_ever() {
    let syn = tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN);
    let through_the_peer = |dataplane: &mut Dataplane, packet: &Packet, backend: (&str, u16), first: &[&str]| {
        let outcome = dataplane.run("from_wire", &packet.bytes());
        let all = [first, &["service_new_flow", "snat_new_flow", "to_tunnel"]].concat();
        let ethernet = packet.bytes()[..14].try_into().expect("an Ethernet header");
        let inner = outcome.tunnelled(0, &all, &ethernet);
        let port = inner.snat_port();
        inner.is(Redirect, &packet.clone().from(NODE_IP).sport(port).to(backend.0).dport(backend.1).aged().bytes(), &all);
    };
    // A node that does not say that it can, as flannel's.
    let mut dataplane = asked(proto::TCP, &[(REMOTE_POD, 8080)]);
    peer_takes_names(&mut dataplane, false);
    through_the_peer(&mut dataplane, &arriving(syn.clone()), (REMOTE_POD, 8080), &[]);
    // A process of the peer, whose answers meet no program. It is asked by the host's routes, which a test's machine need not have.
    let mut dataplane = asked(proto::TCP, &[(PEER_IP, 6443)]);
    let outcome = dataplane.run("from_wire", &arriving(syn.clone()).bytes());
    assert!(!outcome.counted.contains_key("to_tunnel"), "{outcome:?}");
    let flows = dataplane.flows();
    let opener = flows.iter().find(|(key, _)| key.dport.to_host() == NODE_PORT).expect("the opener's entry").1;
    assert_eq!((opener.translates, opener.src, opener.dst), (translates::HERE, ip(NODE_IP).into(), ip(PEER_IP).into()));
    // A client of the cluster's nodes.
    let mut dataplane = asked(proto::TCP, &[(REMOTE_POD, 8080)]);
    through_the_peer(&mut dataplane, &arriving(syn.clone().from(PEER_IP)), (REMOTE_POD, 8080), &[]);
    // Another address of this node, by which nobody else need know it.
    let second = "192.0.2.3";
    dataplane.address(second, address(kind::HOST));
    let run = dataplane.run_of(&[(REMOTE_POD, 8080)]);
    dataplane.node_port_at(second, NODE_PORT, proto::TCP, crate::harness::serving(run, DIRECT | flags::EXTERNAL));
    through_the_peer(&mut dataplane, &arriving(syn.clone().to(second)), (REMOTE_POD, 8080), &[]);
    // A pod of this node sees the client all the same.
    let mut dataplane = asked(proto::TCP, &[(POD, 8080)]);
    let syn = arriving(syn);
    let expected = syn.clone().to(POD).dport(8080).aged().bytes();
    dataplane.run("from_wire", &syn.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
    answers(&mut dataplane, &tcp(POD, 8080, OUTSIDE, 40_000, SYN | ACK), (NODE_IP, NODE_PORT), (OUTSIDE, 40_000));
}

#[test]
fn a_pod_of_another_node_hears_through_the_tunnel() {
    let mut dataplane = asked(proto::UDP, &[(REMOTE_POD, 8080)]);
    let query = udp("10.244.2.9", 40_000, NODE_IP, NODE_PORT);
    let outcome = dataplane.run("from_wire", &tunnel(PEER_IP, &query, 0).bytes());
    let all = ["from_tunnel", "service_new_flow", "snat_new_flow", "to_tunnel"];
    let inner = outcome.tunnelled(0, &all, &crate::packet::ETHERNET);
    let port = inner.snat_port();
    inner.is(Redirect, &query.from(NODE_IP).sport(port).to(REMOTE_POD).dport(8080).aged().bytes(), &all);
}

#[test]
fn of_the_opener_alone_it_is_seen_how_far_a_connection_is() {
    let mut dataplane = asked(proto::TCP, &[(REMOTE_POD, 8080)]);
    let mut seen_after = |flags: u8| {
        dataplane.run("from_wire", &arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, flags)).bytes());
        let flows = dataplane.flows();
        flows.iter().find(|(key, _)| key.dport.to_host() == NODE_PORT).expect("the opener's entry").1.seen
    };
    assert_eq!(seen_after(SYN), seen::ANY);
    assert_eq!(seen_after(SYN), seen::ANY);
    assert_eq!(seen_after(ACK), seen::ANY | seen::ACK);
    assert_eq!(seen_after(FIN | ACK), seen::ANY | seen::ACK | seen::FIN);
    // A new connection from the same port is a new flow.
    assert_eq!(seen_after(SYN), seen::ANY);
}

#[test]
fn udp_leaves_a_dead_backend_and_tcp_stays_with_a_draining_one() {
    let other = "10.244.2.9";
    let mut dataplane = asked(proto::UDP, &[(REMOTE_POD, 8080)]);
    let query = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT));
    let outcome = dataplane.run("from_wire", &query.bytes());
    left_named(outcome, &query, (REMOTE_POD, 8080), &["service_new_flow", "to_tunnel"]);
    dataplane.backend(1, REMOTE_POD, 8080, state::FREE, 1);
    node_port(&mut dataplane, proto::UDP, &[(other, 8080)], DIRECT);
    let outcome = dataplane.run("from_wire", &query.bytes());
    left_named(outcome, &query, (other, 8080), &["service_new_flow", "to_tunnel"]);

    let mut dataplane = asked(proto::TCP, &[(REMOTE_POD, 8080)]);
    for flags in [SYN, ACK] {
        dataplane.run("from_wire", &arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, flags)).bytes());
    }
    dataplane.backend(1, REMOTE_POD, 8080, state::DRAINING, 1);
    node_port(&mut dataplane, proto::TCP, &[(other, 8080)], DIRECT);
    // It is answered, so that a repeated SYN is its own too.
    for flags in [ACK, SYN, FIN | ACK] {
        let packet = arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, flags));
        let outcome = dataplane.run("from_wire", &packet.bytes());
        left_named(outcome, &packet, (REMOTE_POD, 8080), &["to_tunnel"]);
    }
    let syn = arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN));
    let outcome = dataplane.run("from_wire", &syn.bytes());
    left_named(outcome, &syn, (other, 8080), &["service_new_flow", "to_tunnel"]);
}

#[test]
fn a_node_that_is_given_back_gets_no_more_names() {
    let mut dataplane = asked(proto::UDP, &[(REMOTE_POD, 8080)]);
    let query = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT));
    dataplane.run("from_wire", &query.bytes());
    peer_takes_names(&mut dataplane, false);
    dataplane.run("from_wire", &query.bytes()).is(Drop, &query.bytes(), &["no_route"]);
    assert!(dataplane.flows().is_empty());
    let outcome = dataplane.run("from_wire", &query.bytes());
    outcome.tunnelled(0, &["service_new_flow", "snat_new_flow", "to_tunnel"], &FROM_OUTSIDE);
}

#[test]
fn the_last_hop_and_what_the_tunnel_cannot_carry_are_answered() {
    let mut dataplane = asked(proto::UDP, &[(REMOTE_POD, 8080)]);
    let last = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).ttl(1));
    let outcome = dataplane.run("from_wire", &last.bytes());
    assert_eq!((counted(&outcome), outcome.verdict), (vec!["refused", "service_new_flow", "ttl_expired"], Redirect));
    assert_eq!(outcome.packet[26..36], [192, 0, 2, 1, 198, 51, 100, 7, 11, 0]);
    let big = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).payload(vec![1; 1450 - 27]));
    let outcome = dataplane.run("from_wire", &big.bytes());
    assert_eq!((counted(&outcome), outcome.verdict), (vec!["packet_too_big", "refused"], Redirect));
    assert_eq!(outcome.packet[26..36], [192, 0, 2, 1, 198, 51, 100, 7, 3, 4]);
    assert_eq!(outcome.packet[40..42], 1450u16.to_be_bytes());
    let most = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).payload(vec![1; 1450 - 28]));
    let outcome = dataplane.run("from_wire", &most.bytes());
    left_named(outcome, &most, (REMOTE_POD, 8080), &["to_tunnel"]);
}

#[test]
fn errors_about_the_answers_follow_the_flow() {
    let mut dataplane = asked(proto::UDP, &[(REMOTE_POD, 8080)]);
    dataplane.run("from_wire", &arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT)).bytes());
    // A router between the backend's node and the client tells the address that the answer came from: ours.
    let complaint = arriving(error("203.0.113.1", NODE_IP, 3, 4, &udp(NODE_IP, NODE_PORT, OUTSIDE, 40_000)));
    let outcome = dataplane.run("from_wire", &complaint.bytes());
    left_named(outcome, &complaint, (REMOTE_POD, 8080), &["to_tunnel"]);
    let strange = arriving(error("203.0.113.1", NODE_IP, 3, 4, &udp(NODE_IP, NODE_PORT, OUTSIDE, 40_001)));
    dataplane.run("from_wire", &strange.bytes()).is(Pass, &strange.bytes(), &[]);
}

#[test]
fn fragments_go_the_way_of_the_first() {
    let mut dataplane = asked(proto::UDP, &[(REMOTE_POD, 8080)]);
    let first = arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).fragment(0x2000));
    let outcome = dataplane.run("from_wire", &first.bytes());
    left_named(outcome, &first, (REMOTE_POD, 8080), &["service_new_flow", "to_tunnel"]);
    let later = arriving(raw(OUTSIDE, NODE_IP, 17, vec![9; 64]).fragment(2));
    let outcome = dataplane.run("from_wire", &later.bytes());
    left_named(outcome, &later, (REMOTE_POD, 8080), &["to_tunnel"]);
}

#[test]
fn a_named_packet_reaches_its_pod_from_the_client_and_the_answer_is_the_asked_nodes() {
    for (protocol, packets, answer) in [
        (
            proto::TCP,
            [SYN, ACK, FIN | ACK].map(|flags| tcp(OUTSIDE, 40_000, PEER_IP, NODE_PORT, flags)),
            tcp(POD, 8080, OUTSIDE, 40_000, SYN | ACK),
        ),
        (
            proto::UDP,
            // The node that was asked has seen that there is a hop to go.
            [64, 3, 2].map(|ttl| udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT).ttl(ttl)),
            udp(POD, 8080, OUTSIDE, 40_000),
        ),
    ] {
        let mut dataplane = Dataplane::new();
        for packet in packets {
            let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &packet, (POD, 8080)));
            outcome.is(Redirect, &popped(packet.to(POD).dport(8080).aged()), &["from_tunnel", "to_local_pod"]);
            for _ in 0..2 {
                answers(&mut dataplane, &answer, (PEER_IP, NODE_PORT), (OUTSIDE, 40_000));
            }
        }
        assert_eq!(dataplane.flows().len(), 2, "protocol {protocol}: no other flow was opened");
        assert!(dataplane.flows().iter().all(|(_, entry)| entry.translates == translates::HERE));
    }
}

#[test]
fn the_node_that_was_asked_decides_on_the_backend() {
    let mut dataplane = Dataplane::new();
    let query = udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT);
    for (backend, port) in [(POD, 8080), (OTHER_POD, 8080), (OTHER_POD, 8081)] {
        for _ in 0..2 {
            let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &query, (backend, port)));
            let expected = popped(query.clone().to(backend).dport(port).aged());
            outcome.is(Redirect, &expected, &["from_tunnel", "to_local_pod"]);
        }
        assert_eq!(dataplane.flows().len(), 2, "of what was before nothing is left");
    }
}

#[test]
fn one_client_through_two_nodes_to_one_backend_is_two_flows() {
    let third = "192.0.2.4";
    let mut dataplane = Dataplane::new();
    let node = Address { underlay: ip(third).into(), mac: Mac { bytes: PEER_MAC }, ..address(kind::NODE) };
    dataplane.address(third, node);
    let one = udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT);
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &one, (POD, 8080)));
    outcome.is(Redirect, &popped(one.to(POD).dport(8080).aged()), &["from_tunnel", "to_local_pod"]);
    let other = udp(OUTSIDE, 40_000, third, NODE_PORT);
    let outcome = dataplane.run("from_wire", &from_peer(third, &other, (POD, 8080)));
    let port = outcome.snat_port();
    let expected = popped(other.sport(port).to(POD).dport(8080).aged());
    outcome.is(Redirect, &expected, &["from_tunnel", "snat_new_flow", "to_local_pod"]);
    assert!(SNAT_PORTS.contains(&port));
    let flows = dataplane.flows();
    for (dport, node) in [(40_000, PEER_IP), (port, third)] {
        let (_, entry) = flows.iter().find(|(key, _)| key.dport.to_host() == dport).expect("the answer's entry");
        assert_eq!((entry.src, entry.dport.to_host()), (Ip4::from(ip(node)), 40_000));
    }
}

#[test]
fn names_that_are_not_to_be_believed() {
    let mut dataplane = Dataplane::new();
    let good = udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT);
    let backend = (POD, 8080);
    for (what, packet, reasons) in [
        ("a stranger", from_peer("192.0.2.66", &good, backend), vec!["tunnel_peer_unknown"]),
        ("another node's port", from_peer(PEER_IP, &good.clone().to("192.0.2.9"), backend), vec!["source_spoofed"]),
        ("this node's port", from_peer(PEER_IP, &good.clone().to(NODE_IP), backend), vec!["source_spoofed"]),
        ("a pod's packet", from_peer(PEER_IP, &good.clone().to(POD), backend), vec!["source_spoofed"]),
        (
            "this node as client",
            from_peer(PEER_IP, &good.clone().from(NODE_IP), backend),
            vec!["from_tunnel", "source_spoofed"],
        ),
        ("a pod as client", from_peer(PEER_IP, &good.clone().from(OTHER_POD), backend), vec!["from_tunnel", "source_spoofed"]),
        ("a node as client", from_peer(PEER_IP, &good.clone().from(PEER_IP), backend), vec!["from_tunnel", "source_spoofed"]),
        (
            "another pod as client",
            from_peer(PEER_IP, &good.clone().from(REMOTE_POD), backend),
            vec!["from_tunnel", "source_spoofed"],
        ),
        ("nobody", from_peer(PEER_IP, &good, ("10.244.1.99", 8080)), vec!["from_tunnel", "no_such_pod"]),
        ("this host", from_peer(PEER_IP, &good, (NODE_IP, 22)), vec!["from_tunnel", "no_such_pod"]),
        ("a pod elsewhere", from_peer(PEER_IP, &good, (REMOTE_POD, 8080)), vec!["from_tunnel", "no_such_pod"]),
    ] {
        let outcome = dataplane.run("from_wire", &packet);
        assert_eq!((what, outcome.verdict, counted_of(&outcome.counted)), (what, Drop, reasons));
    }
    // Without a name, or with half of one, it is a packet that was led astray.
    for (at, byte) in [(50, 0x02), (56, 0x02), (58, 1)] {
        let mut packet = from_peer(PEER_IP, &good, backend);
        packet[at] = byte;
        let outcome = dataplane.run("from_wire", &packet);
        assert_eq!((outcome.verdict, counted_of(&outcome.counted)), (Drop, vec!["from_tunnel", "no_route"]));
    }
    assert!(dataplane.flows().is_empty());
}

fn counted_of(counted: &std::collections::BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    counted.keys().copied().collect()
}

#[test]
fn a_named_packet_cut_at_every_length_does_no_harm() {
    let mut dataplane = Dataplane::new();
    let whole = from_peer(PEER_IP, &tcp(OUTSIDE, 40_000, PEER_IP, NODE_PORT, SYN), (POD, 8080));
    for len in 14 + 20 + 4..whole.len() {
        let outcome = dataplane.run("from_wire", &whole[..len]);
        assert_eq!(outcome.verdict, Drop, "cut at {len}");
    }
    assert!(dataplane.flows().is_empty());
}

#[test]
fn errors_with_a_name_are_about_what_the_pod_sent() {
    let mut dataplane = Dataplane::new();
    dataplane.run("from_wire", &from_peer(PEER_IP, &udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT), (POD, 8080)));
    let complaint = error("203.0.113.1", PEER_IP, 3, 4, &udp(PEER_IP, NODE_PORT, OUTSIDE, 40_000));
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &complaint, (POD, 8080)));
    let expected = popped(error("203.0.113.1", POD, 3, 4, &udp(POD, 8080, OUTSIDE, 40_000)).aged());
    outcome.is(Redirect, &expected, &["from_tunnel", "to_local_pod"]);
    let strange = error("203.0.113.1", PEER_IP, 3, 4, &udp(PEER_IP, NODE_PORT, OUTSIDE, 40_001));
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &strange, (POD, 8080)));
    outcome.is(Drop, &popped(strange), &["from_tunnel", "icmp_error_unmatched"]);
    // The pod's port is closed: the client hears it from the node that it has asked.
    let complaint = error(POD, OUTSIDE, 3, 3, &udp(OUTSIDE, 40_000, POD, 8080));
    let outcome = dataplane.run("from_pod", &complaint.bytes());
    let expected = error(PEER_IP, OUTSIDE, 3, 3, &udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT)).bytes();
    // Its age is left out, which depends on there being a route.
    assert_eq!(outcome.packet[26..], expected[26..]);
    // Nothing else of ICMP has a name.
    let ping = echo(OUTSIDE, PEER_IP, 8, 1);
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &ping, (POD, 8080)));
    outcome.is(Drop, &popped(ping), &["from_tunnel", "icmp_error_unmatched"]);
}

#[test]
fn fragments_with_a_name_follow_the_first_and_none_goes_astray() {
    let mut dataplane = Dataplane::new();
    let later = raw(OUTSIDE, PEER_IP, 17, vec![9; 64]).fragment(2);
    // By the host's routes it would go back to the node that was asked.
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &later, (POD, 8080)));
    outcome.is(Drop, &popped(later.clone()), &["from_tunnel", "fragment_without_reassembly"]);
    let first = udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT).fragment(0x2000);
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &first, (POD, 8080)));
    outcome.is(Redirect, &popped(first.to(POD).dport(8080).aged()), &["from_tunnel", "to_local_pod"]);
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &later, (POD, 8080)));
    outcome.is(Redirect, &popped(later.to(POD).aged()), &["from_tunnel", "to_local_pod"]);
}

#[test]
fn what_is_the_stacks_stays_the_stacks() {
    let mut dataplane = Dataplane::new();
    let query = udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT);
    let tuple = |src: &str, dst: &str, sport: u16, dport: u16| shunt_common::flow::Tuple::<V4> {
        src: ip(src).into(),
        dst: ip(dst).into(),
        sport: Port::from_host(sport),
        dport: Port::from_host(dport),
        proto: proto::UDP,
    };
    let original = tuple(OUTSIDE, PEER_IP, 40_000, NODE_PORT);
    let flow: [(CtKey<V4>, CtEntry<V4>); 2] = CtEntry::left_to_stack(&original, &tuple(OUTSIDE, OTHER_POD, 40_000, 53), 0);
    dataplane.track(flow);
    let outcome = dataplane.run("from_wire", &from_peer(PEER_IP, &query, (POD, 8080)));
    outcome.is(Drop, &popped(query), &["from_tunnel", "no_route"]);
    assert!(dataplane.flows().iter().all(|(_, entry)| entry.translates == translates::STACK));
    assert_eq!(dataplane.flows().len(), 2);
}

#[test]
fn xdp_leaves_the_name_with_the_packet() {
    let mut dataplane = Dataplane::new();
    let inner = udp(OUTSIDE, 40_000, PEER_IP, NODE_PORT).tos(2);
    let mark = [&u32::from_be_bytes(*b"shnt").to_ne_bytes()[..], &[2, 0, 0, 0], &ip(POD).octets(), &[0x1f, 0x90, 0, 0]];
    let marked = [&mark.concat()[..], &popped(inner.clone())].concat();
    dataplane.run_xdp(&from_peer(PEER_IP, &inner, (POD, 8080))).is(Pass, &marked, &[]);
    let anothers = from_peer(PEER_IP, &inner.to(NODE_IP), (POD, 8080));
    dataplane.run_xdp(&anothers).is(Drop, &anothers, &["source_spoofed"]);
}
