//! `from_wire` and `from_wire_xdp`: what comes from other nodes and from outside.

use shunt_common::{address::kind, net::proto, verdict::Counter};

use crate::{
    harness::{
        Dataplane, NODE_IP, OUTSIDE, PEER_IP, POD, REMOTE_POD, TUNNEL_MAC, VIP,
        Verdict::{Drop, Pass, Redirect},
        address,
    },
    packet::{ACK, ETHERNET, L4, Packet, SYN, echo, error, tcp, tunnel, udp},
};

const PROGRAM: &str = "from_wire";

/// What is left of a frame once the tunnel's headers are gone: the outer Ethernet header and the inner packet.
pub(crate) fn popped(inner: Packet) -> Vec<u8> {
    [&ETHERNET[..], &inner.bytes()[14..]].concat()
}

#[test]
fn a_tunnel_packet_for_a_pod() {
    let mut dataplane = Dataplane::new();
    for inner in [
        tcp(REMOTE_POD, 40_000, POD, 80, SYN),
        udp(REMOTE_POD, 40_000, POD, 53),
        echo(REMOTE_POD, POD, 8, 1),
        udp(PEER_IP, 40_000, POD, 53),
        tcp(REMOTE_POD, 1, POD, 2, ACK).options(&[7, 4, 4, 0]),
    ] {
        let outcome = dataplane.run(PROGRAM, &tunnel(PEER_IP, &inner, 0).bytes());
        outcome.is(Redirect, &popped(inner.aged()), &["from_tunnel", "to_local_pod"]);
    }
}

#[test]
fn a_tunnel_packet_to_another_address_of_this_node() {
    let mut dataplane = Dataplane::new();
    dataplane.address("192.0.2.77", address(kind::HOST));
    let inner = udp(REMOTE_POD, 40_000, POD, 53);
    let from = |peer| tunnel(peer, &inner, 0).to("192.0.2.77").bytes();
    // The long way, and by the shortcut that it left.
    for _ in 0..3 {
        let outcome = dataplane.run(PROGRAM, &from(PEER_IP));
        outcome.is(Redirect, &popped(inner.clone().aged()), &["from_tunnel", "to_local_pod"]);
        let stranger = from("192.0.2.66");
        dataplane.run(PROGRAM, &stranger).is(Drop, &stranger, &["tunnel_peer_unknown"]);
    }
    // XDP leaves it to that.
    dataplane.run_xdp(&from(PEER_IP)).is(Pass, &from(PEER_IP), &[]);
    // One that is not this node's goes by, whoever's it is.
    for other in ["192.0.2.78", PEER_IP, POD] {
        let elsewhere = tunnel(PEER_IP, &inner, 0).to(other).bytes();
        dataplane.run(PROGRAM, &elsewhere).is(Pass, &elsewhere, &[]);
    }
}

#[test]
fn a_tunnel_packet_for_this_host_enters_at_the_tunnel_device() {
    let mut dataplane = Dataplane::new();
    let inner = tcp(REMOTE_POD, 40_000, NODE_IP, 22, SYN);
    let outcome = dataplane.run(PROGRAM, &tunnel(PEER_IP, &inner, 0).bytes());
    let mut expected = popped(inner);
    expected[..6].copy_from_slice(&TUNNEL_MAC);
    outcome.is(Redirect, &expected, &["from_tunnel", "to_host"]);
}

#[test]
fn tunnel_packets_that_are_not_to_be_believed() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(POD, 8080)]);
    let inner = tcp(REMOTE_POD, 1, POD, 2, SYN);
    let good = tunnel(PEER_IP, &inner, 0);
    let bend = |at: usize, to: &[u8]| {
        let mut bytes = good.bytes();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    for (what, packet, reason) in [
        ("a stranger", tunnel("192.0.2.66", &inner, 0).bytes(), "tunnel_peer_unknown"),
        ("a pod's address", tunnel(REMOTE_POD, &inner, 0).bytes(), "tunnel_peer_unknown"),
        ("ourselves", tunnel(NODE_IP, &inner, 0).bytes(), "tunnel_peer_unknown"),
        ("another network", bend(46, &[0, 0, 2]), "tunnel_vni_unknown"),
        ("no valid network", bend(42, &[0]), "tunnel_malformed"),
        ("IPv6 inside", bend(62, &[0x86, 0xdd]), "protocol_unsupported"),
        ("outer options", tunnel(PEER_IP, &inner, 0).options(&[7, 4, 4, 0]).bytes(), "tunnel_malformed"),
        ("an outer fragment", tunnel(PEER_IP, &inner, 0).fragment(0x2000).bytes(), "tunnel_malformed"),
    ] {
        let outcome = dataplane.run(PROGRAM, &packet);
        assert_eq!((what, outcome.verdict, outcome.counted.keys().copied().collect::<Vec<_>>()), (what, Drop, vec![reason]));
    }
    for (dst, reason) in [("10.244.1.99", "no_such_pod"), (REMOTE_POD, "no_route"), (OUTSIDE, "no_route"), (VIP, "no_route")] {
        let packet = tunnel(PEER_IP, &tcp(REMOTE_POD, 1, dst, 80, SYN), 0).bytes();
        let outcome = dataplane.run(PROGRAM, &packet);
        assert_eq!(outcome.verdict, Drop);
        assert_eq!(outcome.counted.keys().copied().collect::<Vec<_>>(), ["from_tunnel", reason]);
    }
}

#[test]
fn a_tunnel_packet_cut_at_every_length_does_no_harm() {
    let mut dataplane = Dataplane::new();
    let whole = tunnel(PEER_IP, &tcp(REMOTE_POD, 1, POD, 2, SYN), 0).bytes();
    for len in 34..whole.len() {
        let outcome = dataplane.run(PROGRAM, &whole[..len]);
        let is_tunnel = len >= 14 + 20 + 4;
        assert_eq!(outcome.verdict, if is_tunnel { Drop } else { Pass }, "cut at {len}");
        assert_eq!(outcome.counted.is_empty(), !is_tunnel, "cut at {len}");
    }
}

#[test]
fn ecn_crosses_the_tunnel_as_rfc_6040_says() {
    let mut dataplane = Dataplane::new();
    for (inner_ecn, outer_ecn, after) in
        [(0, 0, Some(0)), (0, 3, None), (1, 3, Some(3)), (2, 3, Some(3)), (2, 1, Some(1)), (3, 0, Some(3)), (2, 0, Some(2))]
    {
        let inner = udp(REMOTE_POD, 1, POD, 2).tos(0xb8 | inner_ecn);
        let outcome = dataplane.run(PROGRAM, &tunnel(PEER_IP, &inner, outer_ecn).bytes());
        match after {
            Some(ecn) => {
                outcome.is(Redirect, &popped(inner.tos(0xb8 | ecn).aged()), &["from_tunnel", "to_local_pod"]);
            }
            None => outcome.is(Drop, &popped(inner), &["from_tunnel", "tunnel_ecn"]),
        }
    }
}

#[test]
fn the_last_hop_is_left_to_the_stack() {
    let mut dataplane = Dataplane::new();
    let inner = udp(REMOTE_POD, 1, POD, 2).ttl(1);
    let outcome = dataplane.run(PROGRAM, &tunnel(PEER_IP, &inner, 0).bytes());
    let mut expected = popped(inner);
    expected[..6].copy_from_slice(&TUNNEL_MAC);
    outcome.is(Redirect, &expected, &["from_tunnel", "slow_path", "to_host"]);
}

#[test]
fn the_answer_of_a_remote_backend_is_translated_back() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(REMOTE_POD, 8080)]);
    dataplane.run("from_pod", &tcp(POD, 40_000, VIP, 80, SYN).bytes());
    let answer = tcp(REMOTE_POD, 8080, POD, 40_000, SYN | ACK);
    let outcome = dataplane.run(PROGRAM, &tunnel(PEER_IP, &answer, 0).bytes());
    let expected = popped(answer.from(VIP).sport(80).aged());
    outcome.is(Redirect, &expected, &["from_tunnel", "to_local_pod"]);
}

#[test]
fn a_routers_error_about_a_translated_packet_is_about_the_virtual_ip() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(REMOTE_POD, 5353)]);
    dataplane.run("from_pod", &udp(POD, 40_000, VIP, 53).bytes());
    let sent = udp(POD, 40_000, REMOTE_POD, 5353);
    let asked = udp(POD, 40_000, VIP, 53);
    for (from, kind, code, expected_from) in [
        // A router on the way keeps its name, the backend itself becomes the virtual IP.
        (PEER_IP, 11, 0, PEER_IP),
        (PEER_IP, 3, 4, PEER_IP),
        (REMOTE_POD, 3, 3, VIP),
    ] {
        let inner = error(from, POD, kind, code, &sent);
        let outcome = dataplane.run(PROGRAM, &tunnel(PEER_IP, &inner, 0).bytes());
        let expected = popped(error(expected_from, POD, kind, code, &asked).aged());
        outcome.is(Redirect, &expected, &["from_tunnel", "to_local_pod"]);
    }
    // A quote of no more than RFC 792 asks for, in which TCP's checksum is not.
    dataplane.service(VIP, 80, proto::TCP, &[(REMOTE_POD, 8080)]);
    dataplane.run("from_pod", &tcp(POD, 40_000, VIP, 80, SYN).bytes());
    let mut inner = error(PEER_IP, POD, 11, 0, &tcp(POD, 40_000, REMOTE_POD, 8080, SYN));
    let mut expected = error(PEER_IP, POD, 11, 0, &tcp(POD, 40_000, VIP, 80, SYN));
    for packet in [&mut inner, &mut expected] {
        if let L4::IcmpError { quote, .. } = &mut packet.l4 {
            quote.truncate(28);
        }
    }
    let outcome = dataplane.run(PROGRAM, &tunnel(PEER_IP, &inner, 0).bytes());
    outcome.is(Redirect, &popped(expected.aged()), &["from_tunnel", "to_local_pod"]);
}

#[test]
fn answers_from_outside_come_back_to_the_pod_that_asked() {
    let mut dataplane = Dataplane::new();
    let asked = udp(POD, 40_000, OUTSIDE, 53);
    let out = dataplane.run("from_pod", &asked.bytes());
    assert_eq!(out.counted.get(Counter::SnatNewFlow.name()), Some(&1));
    let port = dataplane.flows().iter().map(|(key, _)| key.dport.to_host()).find(|port| *port != 53).expect("a port of ours");
    let answer = udp(OUTSIDE, 53, NODE_IP, port);
    let expected = answer.clone().to(POD).dport(40_000).aged().bytes();
    dataplane.run(PROGRAM, &answer.bytes()).is(Redirect, &expected, &["to_local_pod"]);
    // Somebody else's packet to the same port is the host's.
    for stranger in
        [udp(OUTSIDE, 54, NODE_IP, port), udp("198.51.100.8", 53, NODE_IP, port), tcp(OUTSIDE, 53, NODE_IP, port, ACK)]
    {
        dataplane.run(PROGRAM, &stranger.bytes()).is(Pass, &stranger.bytes(), &[]);
    }
    // An error about it finds the pod too.
    let complaint = error("203.0.113.1", NODE_IP, 3, 1, &udp(NODE_IP, port, OUTSIDE, 53));
    let expected = error("203.0.113.1", POD, 3, 1, &asked).aged().bytes();
    dataplane.run(PROGRAM, &complaint.bytes()).is(Redirect, &expected, &["to_local_pod"]);
}

#[test]
fn a_ping_to_outside_comes_back() {
    let mut dataplane = Dataplane::new();
    dataplane.run("from_pod", &echo(POD, OUTSIDE, 8, 77).bytes());
    let id = dataplane.flows().iter().map(|(key, _)| key.dport.to_host()).find(|id| *id != 0).expect("an identifier of ours");
    let answer = echo(OUTSIDE, NODE_IP, 0, id);
    let expected = echo(OUTSIDE, POD, 0, 77).aged().bytes();
    dataplane.run(PROGRAM, &answer.bytes()).is(Redirect, &expected, &["to_local_pod"]);
}

#[test]
fn the_hosts_own_traffic_is_left_alone() {
    let mut dataplane = Dataplane::new();
    let mut arp = udp(PEER_IP, 1, NODE_IP, 2).bytes();
    arp[12..14].copy_from_slice(&[8, 6]);
    for packet in [
        arp,
        tcp(OUTSIDE, 40_000, NODE_IP, 22, SYN).bytes(),
        tcp(OUTSIDE, 40_000, NODE_IP, 10_001, SYN).bytes(),
        echo(OUTSIDE, NODE_IP, 8, 10_001).bytes(),
        udp(PEER_IP, 1, POD, 2).bytes(),
        udp(PEER_IP, 1, "192.0.2.200", 8472).bytes(),
        vec![0xff; 60],
    ] {
        dataplane.run(PROGRAM, &packet).is(Pass, &packet, &[]);
    }
}

#[test]
fn xdp_pops_what_from_wire_would_and_leaves_it_the_rest() {
    let mut dataplane = Dataplane::new();
    let inner = tcp(REMOTE_POD, 40_000, POD, 80, SYN);
    // In front of the frame stands the mark that `from_wire` knows it by, with the outer ECN field and no backend's name.
    let marks = [&u32::from_be_bytes(*b"shnt").to_ne_bytes()[..], &[2, 0, 0, 0], &[0; 8]].concat();
    let marked = [&marks[..], &popped(inner.clone())].concat();
    dataplane.run_xdp(&tunnel(PEER_IP, &inner, 2).bytes()).is(Pass, &marked, &[]);
    let stranger = tunnel("192.0.2.66", &inner, 0).bytes();
    dataplane.run_xdp(&stranger).is(Drop, &stranger, &["tunnel_peer_unknown"]);
    let native = tcp(OUTSIDE, 40_000, NODE_IP, 22, SYN).bytes();
    dataplane.run_xdp(&native).is(Pass, &native, &[]);
    let mut other_network = tunnel(PEER_IP, &inner, 0).bytes();
    other_network[48] = 9;
    dataplane.run_xdp(&other_network).is(Drop, &other_network, &["tunnel_vni_unknown"]);
    let whole = tunnel(PEER_IP, &inner, 0).bytes();
    for len in 14..whole.len() {
        let outcome = dataplane.run_xdp(&whole[..len]);
        assert!(outcome.verdict == Pass || outcome.counted.len() == 1, "cut at {len}: {outcome:?}");
    }
}
