//! `from_pod`: what a pod sends.

use shunt_common::{
    address::{Address, Route, kind, route},
    conntrack::seen,
    net::{Ip4, Mac, proto},
    service::{Run, flags, state},
    verdict::Counter,
};

use crate::{
    harness::{
        Dataplane, GATEWAY, NODE_IP, OTHER_POD, OUTSIDE, PEER_IP, PEER_MAC, POD, REMOTE_POD, VIP,
        Verdict::{Drop, Pass, Redirect},
        address, serving,
    },
    packet::{ACK, ETHERNET, FIN, Packet, RST, SYN, echo, error, raw, tcp, udp},
};

const PROGRAM: &str = "from_pod";

#[test]
fn to_a_pod_of_this_node() {
    let mut dataplane = Dataplane::new();
    for packet in [
        tcp(POD, 40_000, OTHER_POD, 80, SYN),
        tcp(POD, 40_000, OTHER_POD, 80, ACK),
        udp(POD, 40_000, OTHER_POD, 53),
        udp(POD, 40_000, OTHER_POD, 54).zero_checksum(),
        echo(POD, OTHER_POD, 8, 7),
        echo(POD, OTHER_POD, 0, 7),
        raw(POD, OTHER_POD, 47, vec![0; 8]),
        tcp(POD, 40_000, OTHER_POD, 80, ACK).options(&[7, 4, 4, 0]),
        udp(POD, 40_001, OTHER_POD, 53).tos(0xbb),
    ] {
        let outcome = dataplane.run(PROGRAM, &packet.bytes());
        outcome.is(Redirect, &packet.aged().bytes(), &["to_local_pod"]);
    }
}

#[test]
fn to_a_pod_of_another_node() {
    let mut dataplane = Dataplane::new();
    for packet in [
        tcp(POD, 40_000, REMOTE_POD, 80, SYN),
        udp(POD, 40_000, REMOTE_POD, 53).tos(0x03),
        echo(POD, REMOTE_POD, 8, 7),
        // Another node's own address is reached through the tunnel too, with the pod's source.
        tcp(POD, 40_000, PEER_IP, 10_250, SYN),
    ] {
        let outcome = dataplane.run(PROGRAM, &packet.bytes());
        let inner = outcome.tunnelled(packet.tos, &["to_tunnel"], &ETHERNET);
        inner.is(Redirect, &packet.aged().bytes(), &["to_tunnel"]);
    }
}

#[test]
fn to_this_host() {
    let mut dataplane = Dataplane::new();
    let packet = tcp(POD, 40_000, NODE_IP, 22, SYN).ttl(1);
    dataplane.run(PROGRAM, &packet.bytes()).is(Pass, &packet.bytes(), &["to_host"]);
}

#[test]
fn a_source_that_is_not_the_pods_own() {
    let mut dataplane = Dataplane::new();
    for source in [OTHER_POD, REMOTE_POD, NODE_IP, OUTSIDE, "0.0.0.0", VIP] {
        let packet = udp(source, 1, OTHER_POD, 2).bytes();
        dataplane.run(PROGRAM, &packet).is(Drop, &packet, &["source_spoofed"]);
    }
}

#[test]
fn what_is_not_ipv4_unicast() {
    let mut dataplane = Dataplane::new();
    let with_ethertype = |ethertype: [u8; 2]| {
        let mut bytes = udp(POD, 1, OTHER_POD, 2).payload(vec![0; 40]).bytes();
        bytes[12..14].copy_from_slice(&ethertype);
        bytes
    };
    for (packet, verdict, counted) in [
        (with_ethertype([0x86, 0xdd]), Drop, vec!["ipv6_unsupported"]),
        (with_ethertype([0x88, 0xcc]), Drop, vec!["protocol_unsupported"]),
        (with_ethertype([0x08, 0x06]), Pass, vec![]),
        (udp(POD, 1, "224.0.0.251", 5353).bytes(), Drop, vec!["multicast"]),
        (udp(POD, 68, "255.255.255.255", 67).bytes(), Drop, vec!["multicast"]),
    ] {
        dataplane.run(PROGRAM, &packet).is(verdict, &packet, &counted);
    }
}

#[test]
fn a_packet_cut_at_every_length_is_dropped_or_whole() {
    let mut dataplane = Dataplane::new();
    for packet in [tcp(POD, 1, VIP, 2, ACK), udp(POD, 1, OTHER_POD, 2), echo(POD, REMOTE_POD, 8, 1)] {
        let whole = packet.bytes();
        // BPF_PROG_TEST_RUN takes no less than an IPv4 header where the EtherType says so.
        for len in 34..whole.len() {
            let cut = &whole[..len];
            dataplane.run(PROGRAM, cut).is(Drop, cut, &["malformed"]);
        }
    }
}

#[test]
fn headers_that_contradict_themselves() {
    let mut dataplane = Dataplane::new();
    let bend = |packet: &Packet, at: usize, to: &[u8]| {
        let mut bytes = packet.bytes();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let udp = udp(POD, 1, OTHER_POD, 2);
    let tcp = tcp(POD, 1, OTHER_POD, 2, ACK);
    for packet in [
        bend(&udp, 14, &[0x65]),
        bend(&udp, 14, &[0x44]),
        bend(&udp, 16, &[0, 19]),
        bend(&udp, 16, &[0xff, 0xff]),
        bend(&udp, 38, &[0, 7]),
        bend(&udp, 38, &[0xff, 0xff]),
        bend(&tcp, 46, &[0x40]),
        bend(&tcp, 46, &[0xf0]),
        // Options that reach past the packet's end.
        bend(&udp, 14, &[0x4f]),
    ] {
        dataplane.run(PROGRAM, &packet).is(Drop, &packet, &["malformed"]);
    }
}

#[test]
fn the_last_hop_and_what_the_tunnel_cannot_carry_are_left_to_the_stack() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(REMOTE_POD, 8080)]);
    for packet in [
        udp(POD, 1, OTHER_POD, 2).ttl(1),
        tcp(POD, 1, VIP, 80, SYN).ttl(1),
        udp(POD, 1, REMOTE_POD, 2).ttl(0),
        udp(POD, 1, OUTSIDE, 53).ttl(1),
        // It answers or cuts, as the packet allows.
        udp(POD, 1, REMOTE_POD, 2).payload(vec![1; 1450 - 27]),
        udp(POD, 1, REMOTE_POD, 2).payload(vec![1; 1450 - 27]).fragment(0),
    ] {
        dataplane.run(PROGRAM, &packet.bytes()).is(Pass, &packet.bytes(), &["slow_path"]);
    }
    // Too big after a backend was chosen: the stack answers about the virtual IP, so the packet must not have changed.
    let big = tcp(POD, 7, VIP, 80, SYN | ACK).payload(vec![1; 1450 - 39]);
    dataplane.run(PROGRAM, &big.bytes()).is(Pass, &big.bytes(), &["service_new_flow", "slow_path"]);
    let fits = udp(POD, 1, REMOTE_POD, 2).payload(vec![1; 1450 - 28]);
    dataplane.run(PROGRAM, &fits.bytes()).tunnelled(0, &["to_tunnel"], &ETHERNET);
}

#[test]
fn an_address_in_our_range_that_is_nobodys() {
    let mut dataplane = Dataplane::new();
    let packet = tcp(POD, 1, "10.244.1.99", 2, SYN);
    let outcome = dataplane.run(PROGRAM, &packet.bytes());
    outcome.is(Redirect, &refusal(&packet, 1), &["no_such_pod", "refused"]);
}

/// What refuses a packet: an unreachable from its destination, quoting its start, with Ethernet ends swapped.
pub(crate) fn refusal(about: &Packet, code: u8) -> Vec<u8> {
    let quote = if matches!(about.l4, crate::packet::L4::Tcp { .. }) { 40 } else { 28 };
    let (to, from) = (about.src.to_string(), about.dst.to_string());
    let mut answer = error(&from, &to, 3, code, about).fragment(0);
    answer.id = 0;
    if let crate::packet::L4::IcmpError { quote: bytes, .. } = &mut answer.l4 {
        bytes.truncate(quote);
    }
    let (mut dst, mut src) = ([0; 6], [0; 6]);
    dst.copy_from_slice(&about.ethernet[6..12]);
    src.copy_from_slice(&about.ethernet[..6]);
    answer.macs(dst, src).bytes()
}

/// What refuses a SYN: a reset from its destination that acknowledges it, with Ethernet ends swapped.
pub(crate) fn reset(syn: &Packet) -> Vec<u8> {
    let mut bytes = syn.bytes();
    for (one, other, len) in [(0, 6, 6), (26, 30, 4), (34, 36, 2)] {
        let (front, back) = bytes.split_at_mut(other);
        front[one..one + len].swap_with_slice(&mut back[..len]);
    }
    let seq = u32::from_be_bytes([bytes[38], bytes[39], bytes[40], bytes[41]]);
    bytes[42..46].copy_from_slice(&(seq + 1).to_be_bytes());
    bytes[38..42].fill(0);
    bytes[47] = RST | ACK;
    bytes[48..52].fill(0);
    let covered = [&bytes[26..34], &[0, 6, 0, (bytes.len() - 34) as u8], &bytes[34..]].concat();
    bytes[50..52].copy_from_slice(&shunt_common::checksum::of(&covered).to_ne_bytes());
    bytes
}

#[test]
fn a_service_without_endpoints_refuses_and_keeps_nothing() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[]);
    dataplane.service(VIP, 53, proto::UDP, &[]);
    for (packet, reason) in [
        (tcp(POD, 1, VIP, 80, ACK), "no_endpoints"),
        (udp(POD, 1, VIP, 53), "no_endpoints"),
        (tcp(POD, 1, VIP, 81, SYN | ACK), "service_port_undefined"),
        // The protocol is part of the key.
        (udp(POD, 1, VIP, 80), "service_port_undefined"),
        (echo(POD, VIP, 8, 1), "service_port_undefined"),
    ] {
        let outcome = dataplane.run(PROGRAM, &packet.bytes());
        outcome.is(Redirect, &refusal(&packet, 3), &[reason, "refused"]);
    }
    for (port, reason) in [(80, "no_endpoints"), (81, "service_port_undefined")] {
        let syn = tcp(POD, 1, VIP, port, SYN);
        dataplane.run(PROGRAM, &syn.bytes()).is(Redirect, &reset(&syn), &[reason, "refused"]);
    }
    let with_options = udp(POD, 1, VIP, 53).options(&[7, 4, 4, 0]).bytes();
    dataplane.run(PROGRAM, &with_options).is(Drop, &with_options, &["no_endpoints"]);
    assert!(dataplane.flows().is_empty(), "a refused packet leaves no flow behind");
}

#[test]
fn a_local_policy_without_local_endpoints_is_silent() {
    let mut dataplane = Dataplane::new();
    dataplane.frontend(VIP, 80, proto::TCP, serving(Run::EMPTY, flags::DROP_WHEN_EMPTY));
    let packet = tcp(POD, 1, VIP, 80, SYN).bytes();
    dataplane.run(PROGRAM, &packet).is(Drop, &packet, &["no_local_endpoints"]);
}

#[test]
fn a_service_with_a_backend_here_there_and_back() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    let syn = tcp(POD, 40_000, VIP, 80, SYN);
    let to_backend = |packet: Packet| packet.to(OTHER_POD).dport(8080).aged().bytes();
    let first = dataplane.run(PROGRAM, &syn.bytes());
    first.is(Redirect, &to_backend(syn.clone()), &["service_new_flow", "to_local_pod"]);
    // Its retransmission and what follows go the same way, without a new flow.
    for packet in [syn, tcp(POD, 40_000, VIP, 80, ACK)] {
        dataplane.run(PROGRAM, &packet.bytes()).is(Redirect, &to_backend(packet), &["to_local_pod"]);
    }
    assert_eq!(dataplane.flows().len(), 2, "two halves of one flow");
}

#[test]
fn replies_are_translated_back_by_the_node_that_translated() {
    let mut dataplane = Dataplane::new();
    // The test pod plays the backend: it answers a client whose packet went through `from_wire` or `from_host` before.
    dataplane.service(VIP, 53, proto::UDP, &[(POD, 5353)]);
    let hairpin = udp(POD, 40_000, VIP, 53);
    let asked = dataplane.run(PROGRAM, &hairpin.bytes());
    let expected = hairpin.from(GATEWAY).to(POD).dport(5353).aged().bytes();
    asked.is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
    let answer = udp(POD, 5353, GATEWAY, 40_000);
    let expected = answer.clone().from(VIP).sport(53).to(POD).aged().bytes();
    dataplane.run(PROGRAM, &answer.bytes()).is(Redirect, &expected, &["to_local_pod"]);
}

#[test]
fn a_zero_udp_checksum_stays_zero() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    let packet = udp(POD, 40_000, VIP, 53).zero_checksum();
    let expected = packet.clone().to(OTHER_POD).dport(5353).aged().bytes();
    dataplane.run(PROGRAM, &packet.bytes()).is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
}

#[test]
fn udp_moves_when_its_backend_goes_tcp_stays() {
    let mut dataplane = Dataplane::new();
    let udp_ids = dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    let tcp_ids = dataplane.service(VIP, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    let query = udp(POD, 40_000, VIP, 53).bytes();
    let syn = tcp(POD, 40_000, VIP, 80, SYN);
    dataplane.run(PROGRAM, &query);
    dataplane.run(PROGRAM, &syn.bytes());
    // A draining backend keeps both.
    for (id, port) in [(udp_ids[0], 5353), (tcp_ids[0], 8080)] {
        dataplane.backend(id, OTHER_POD, port, state::DRAINING, 1);
    }
    assert_eq!(dataplane.run(PROGRAM, &query).counted.keys().copied().collect::<Vec<_>>(), ["to_local_pod"]);
    // Gone: the ids are free, the Services name others.
    for (id, port) in [(udp_ids[0], 5353), (tcp_ids[0], 8080)] {
        dataplane.backend(id, OTHER_POD, port, state::FREE, 1);
    }
    dataplane.service(VIP, 53, proto::UDP, &[(REMOTE_POD, 5353)]);
    dataplane.service(VIP, 80, proto::TCP, &[(REMOTE_POD, 8080)]);
    let moved = dataplane.run(PROGRAM, &query);
    let expected = udp(POD, 40_000, REMOTE_POD, 5353).aged().bytes();
    moved.tunnelled(0, &["service_new_flow", "to_tunnel"], &ETHERNET).is(
        Redirect,
        &expected,
        &["service_new_flow", "to_tunnel"],
    );
    let stays = tcp(POD, 40_000, VIP, 80, ACK);
    let expected = stays.clone().to(OTHER_POD).dport(8080).aged().bytes();
    dataplane.run(PROGRAM, &stays.bytes()).is(Redirect, &expected, &["to_local_pod"]);
    // A SYN is a new connection and goes where there is somebody.
    let again = dataplane.run(PROGRAM, &syn.bytes());
    again.tunnelled(0, &["service_new_flow", "to_tunnel"], &ETHERNET);
    assert_eq!(dataplane.flows().len(), 4, "the old halves are gone");
}

#[test]
fn a_reused_id_is_not_mistaken_for_its_last_tenant() {
    let mut dataplane = Dataplane::new();
    let ids = dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    let query = udp(POD, 40_000, VIP, 53).bytes();
    dataplane.run(PROGRAM, &query);
    dataplane.backend(ids[0], REMOTE_POD, 5353, state::ACTIVE, 2);
    dataplane.run(PROGRAM, &query).tunnelled(0, &["service_new_flow", "to_tunnel"], &ETHERNET);
}

#[test]
fn a_closed_connection_gives_its_ports_to_the_next() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    let syn = tcp(POD, 40_000, VIP, 80, SYN).bytes();
    dataplane.run(PROGRAM, &syn);
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, RST | ACK).bytes());
    let next = dataplane.run(PROGRAM, &syn);
    assert_eq!(next.counted.get(Counter::ServiceNewFlow.name()), Some(&1));
    // A reset that was not believed, since data follows it, closes nothing.
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, RST).bytes());
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, ACK).bytes());
    let same = dataplane.run(PROGRAM, &syn);
    assert_eq!(same.counted.get(Counter::ServiceNewFlow.name()), None);
}

#[test]
fn flows_whose_translated_ends_collide_both_work() {
    let mut dataplane = Dataplane::new();
    let other_vip = "10.96.0.11";
    for vip in [VIP, other_vip] {
        dataplane.service(vip, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    }
    // Direct first, then through two Services: one client port, one backend.
    let direct = tcp(POD, 40_000, OTHER_POD, 8080, SYN);
    dataplane.run(PROGRAM, &direct.bytes()).is(Redirect, &direct.clone().aged().bytes(), &["to_local_pod"]);
    let mut ports = vec![40_000];
    for vip in [VIP, other_vip] {
        let packet = tcp(POD, 40_000, vip, 80, SYN);
        let outcome = dataplane.run(PROGRAM, &packet.bytes());
        let port = outcome.snat_port();
        let expected = packet.to(OTHER_POD).sport(port).dport(8080).aged().bytes();
        outcome.is(Redirect, &expected, &["service_new_flow", "snat_new_flow", "to_local_pod"]);
        ports.push(port);
    }
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 3, "three flows, three ports");
}

#[test]
fn a_direct_flow_after_a_service_flow_of_the_same_ends_gets_a_port_of_its_own() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    dataplane.run(PROGRAM, &udp(POD, 40_000, VIP, 53).bytes());
    let direct = udp(POD, 40_000, OTHER_POD, 5353);
    let outcome = dataplane.run(PROGRAM, &direct.bytes());
    let port = outcome.snat_port();
    outcome.is(Redirect, &direct.clone().sport(port).aged().bytes(), &["snat_new_flow", "to_local_pod"]);
    // And keeps it.
    dataplane.run(PROGRAM, &direct.bytes()).is(Redirect, &direct.sport(port).aged().bytes(), &["to_local_pod"]);
}

#[test]
fn source_ports_run_out_loudly_and_harm_nobody() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    // Sixteen ports and the flow's own: the eighteenth flow of one client port to one backend has none. A try is random, so that a few
    // may be refused before.
    let mut vips: Vec<String> = (1..=64).map(|n| format!("10.97.0.{n}")).collect();
    for vip in &vips {
        dataplane.service(vip, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    }
    let mut served = 0;
    let mut refused = 0;
    for vip in &vips {
        let packet = tcp(POD, 40_000, vip, 80, SYN).bytes();
        let outcome = dataplane.run(PROGRAM, &packet);
        if outcome.counted.contains_key("snat_ports_exhausted") {
            outcome.is(Drop, &packet, &["snat_ports_exhausted"]);
            refused += 1;
        } else {
            served += 1;
        }
    }
    assert!(served <= 17 && refused >= 47, "{served} served, {refused} refused");
    assert_eq!(dataplane.flows().len(), served * 2, "never half a flow");
    vips.truncate(1);
    let live = tcp(POD, 40_000, &vips[0], 80, ACK);
    assert_eq!(dataplane.run(PROGRAM, &live.bytes()).verdict, Redirect, "the first flow goes on");
}

/// A server in TIME-WAIT takes a SYN for a new connection only where its timestamp is newer, as that of the same opener is.
#[test]
fn one_client_port_leaves_by_one_port_of_the_node_again_and_again() {
    let mut dataplane = Dataplane::new();
    // There is no route to the outside in this namespace: the flow says by what port it would leave.
    let mut leaves_by = |client_port: u16, is_forgotten: bool| {
        if is_forgotten {
            dataplane.lose_flows();
        }
        dataplane.run(PROGRAM, &tcp(POD, client_port, OUTSIDE, 80, SYN).bytes());
        let flows = dataplane.flows();
        let answer = flows.iter().find(|(key, entry)| key.sport.to_host() == 80 && entry.dport.to_host() == client_port);
        answer.expect("an answer's way back").0.dport.to_host()
    };
    let first = leaves_by(40_000, false);
    assert_eq!(leaves_by(40_000, true), first);
    for other in (40_002..40_010).step_by(2) {
        assert_ne!(leaves_by(other, true), first, "port {other}");
    }
    // Somebody else has it: any other will do.
    let other = (1..40_000).find(|port| leaves_by(*port, true) == first);
    assert!(other.is_some(), "no other flow ever gets {first}");
    assert_ne!(leaves_by(40_000, false), first);
}

#[test]
fn source_ports_of_flows_that_are_over_serve_new_ones() {
    let mut dataplane = Dataplane::new();
    // Four times as many connections to one server as there are ports, none of them forgotten yet.
    for client_port in 40_000..40_064 {
        let outcome = dataplane.run(PROGRAM, &tcp(POD, client_port, OUTSIDE, 80, SYN).bytes());
        assert_ne!(outcome.verdict, Drop, "port {client_port}: {:?}", outcome.counted);
        dataplane.run(PROGRAM, &tcp(POD, client_port, OUTSIDE, 80, RST).bytes());
    }
    assert!(dataplane.flows().len() <= shunt_lab::test_run::dataplane::SNAT_PORTS.count() * 2, "a port is one flow's");
}

#[test]
fn a_full_table_refuses_new_translated_flows_only() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    let live = tcp(POD, 1, VIP, 80, SYN);
    dataplane.run(PROGRAM, &live.bytes());
    let mut port = 2;
    let refused = loop {
        let packet = tcp(POD, port, VIP, 80, SYN).bytes();
        let outcome = dataplane.run(PROGRAM, &packet);
        if outcome.verdict != Redirect {
            break (outcome, packet);
        }
        port += 1;
        assert!(port < 300, "the table holds 256 entries");
    };
    refused.0.is(Drop, &refused.1, &["conntrack_full"]);
    let goes_on = tcp(POD, 1, VIP, 80, ACK);
    let expected = goes_on.clone().to(OTHER_POD).dport(8080).aged().bytes();
    dataplane.run(PROGRAM, &goes_on.bytes()).is(Redirect, &expected, &["to_local_pod"]);
    let direct = udp(POD, 9, OTHER_POD, 9);
    let expected = direct.clone().aged().bytes();
    dataplane.run(PROGRAM, &direct.bytes()).is(Redirect, &expected, &["direct_untracked", "to_local_pod"]);
    assert_eq!(dataplane.flows().len() % 2, 0, "never half a flow");
}

#[test]
fn outside_is_asked_with_the_nodes_address_and_answered_by_none_here() {
    // There is no route in this namespace: what is asserted is the refusal, with the flow already translated being no part of it. The
    // way out itself is the lab's to show.
    let mut dataplane = Dataplane::new();
    let packet = udp(POD, 40_000, OUTSIDE, 53);
    let outcome = dataplane.run(PROGRAM, &packet.bytes());
    assert!(outcome.counted.contains_key("snat_new_flow"), "{outcome:?}");
    assert_eq!(dataplane.flows().len(), 2);
    let native = Route { kind: route::NATIVE, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, flags: 0 };
    dataplane.route("203.0.113.0", 24, native);
    let packet = udp(POD, 40_000, "203.0.113.9", 53);
    dataplane.run(PROGRAM, &packet.bytes()).is(Pass, &packet.bytes(), &["to_host"]);
    // Nothing answers at the gateway's address but replies to a hairpin.
    let packet = udp(POD, 1, GATEWAY, 53).bytes();
    dataplane.run(PROGRAM, &packet).is(Drop, &packet, &["no_route"]);
}

#[test]
fn fragments_in_order_follow_the_first() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    let first = fragmented_query();
    let outcome = dataplane.run(PROGRAM, &first.bytes());
    // The checksum covers the whole datagram: it moves by the difference, which a checksum over this part alone does too.
    let expected = first.clone().to(OTHER_POD).dport(5353).aged().bytes();
    outcome.is(Redirect, &expected, &["service_new_flow", "to_local_pod"]);
    let later = raw(POD, VIP, 17, vec![9; 64]).fragment(2);
    dataplane.run(PROGRAM, &later.bytes()).is(Redirect, &later.to(OTHER_POD).aged().bytes(), &["to_local_pod"]);
}

fn fragmented_query() -> Packet {
    udp(POD, 40_000, VIP, 53).fragment(0x2000)
}

#[test]
fn fragments_out_of_order_are_all_left_to_reassembly() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    for packet in
        [raw(POD, VIP, 17, vec![9; 64]).fragment(2), fragmented_query(), raw(POD, VIP, 17, vec![9; 8]).fragment(0x2004)]
    {
        dataplane.run(PROGRAM, &packet.bytes()).is(Pass, &packet.bytes(), &["slow_path"]);
    }
    // The stack's way to the outside would show the pod's address.
    let outside = raw(POD, OUTSIDE, 17, vec![9; 64]).fragment(2).bytes();
    dataplane.run(PROGRAM, &outside).is(Drop, &outside, &["fragment_without_reassembly"]);
    // The first fragment of another datagram does not meet this one's fate.
    let mut other = fragmented_query();
    other.id = 0x4321;
    assert_eq!(dataplane.run(PROGRAM, &other.bytes()).verdict, Redirect);
}

#[test]
fn an_error_from_the_client_reaches_the_backend_about_its_own_packet() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    dataplane.run(PROGRAM, &udp(POD, 40_000, VIP, 53).bytes());
    // The client has closed its socket: port unreachable about the answer that it saw as the virtual IP's.
    let answer = udp(VIP, 53, POD, 40_000);
    let complaint = error(POD, VIP, 3, 3, &answer);
    let backends_own = udp(OTHER_POD, 5353, POD, 40_000);
    let expected = error(POD, OTHER_POD, 3, 3, &backends_own).aged().bytes();
    dataplane.run(PROGRAM, &complaint.bytes()).is(Redirect, &expected, &["to_local_pod"]);
    // About a flow that nobody knows: not refused, which would answer an error with an error.
    let stray = error(POD, VIP, 3, 3, &udp(VIP, 53, POD, 1)).bytes();
    dataplane.run(PROGRAM, &stray).is(Drop, &stray, &["service_port_undefined"]);
}

#[test]
fn a_fin_from_both_sides_is_seen() {
    let mut dataplane = Dataplane::new();
    dataplane.run(PROGRAM, &tcp(POD, 5, OTHER_POD, 6, SYN).bytes());
    dataplane.run(PROGRAM, &tcp(POD, 5, OTHER_POD, 6, FIN | ACK).bytes());
    let original = dataplane.flows().into_iter().find(|(key, _)| key.dport.to_host() == 6).expect("the flow");
    assert_eq!(original.1.seen, seen::ANY | seen::FIN | seen::ACK);
}

#[test]
fn a_flow_under_way_follows_its_pod_when_that_moves() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    let direct = udp(POD, 7, OTHER_POD, 7);
    let through = tcp(POD, 40_000, VIP, 80, ACK);
    for packet in [&direct, &tcp(POD, 40_000, VIP, 80, SYN), &through] {
        dataplane.run(PROGRAM, &packet.bytes());
    }
    // Its address is another node's now.
    let moved = Address { underlay: Ip4::new(192, 0, 2, 2), mac: Mac { bytes: PEER_MAC }, ..address(kind::NODE) };
    dataplane.address(OTHER_POD, moved);
    dataplane.begin_epoch();
    for packet in [direct, through] {
        dataplane.run(PROGRAM, &packet.bytes()).tunnelled(0, &["to_tunnel"], &ETHERNET);
    }
}

#[test]
fn what_a_flow_remembers_is_no_licence_to_spoof() {
    let mut dataplane = Dataplane::new();
    let packet = tcp(POD, 7, OTHER_POD, 7, SYN);
    dataplane.run(PROGRAM, &packet.bytes());
    let next = tcp(POD, 7, OTHER_POD, 7, ACK).bytes();
    assert_eq!(dataplane.run(PROGRAM, &next).verdict, Redirect);
    // The address went to a pod on another interface; the old one goes on sending.
    dataplane.address(POD, Address { ifindex: 99, ..address(kind::POD) });
    dataplane.begin_epoch();
    dataplane.run(PROGRAM, &next).is(Drop, &next, &["source_spoofed"]);
}
