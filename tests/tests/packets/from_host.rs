//! `from_host`: what the host's routes send to virtual IPs and to other nodes' pods.

use shunt_common::net::proto;

use crate::{
    from_pod::reset,
    harness::{
        Dataplane, HAIRPIN, NODE_IP, OUTSIDE, POD, POD_MAC, REMOTE_POD, TUNNEL_MAC, VIP,
        Verdict::{Drop, Redirect},
    },
    packet::{ACK, ETHERNET, SYN, tcp, udp},
};

const PROGRAM: &str = "from_host";

#[test]
fn to_a_pod_of_another_node_without_nat() {
    let mut dataplane = Dataplane::new();
    let packet = tcp(NODE_IP, 40_000, REMOTE_POD, 80, SYN);
    let outcome = dataplane.run(PROGRAM, &packet.bytes());
    // The stack has not been a router for its own packet: no hop is counted.
    outcome.tunnelled(0, &["to_tunnel"], &ETHERNET).is(Redirect, &packet.bytes(), &["to_tunnel"]);
}

#[test]
fn a_service_with_a_pod_of_this_node_and_its_answer() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[(POD, 8080)]);
    let packet = tcp(NODE_IP, 40_000, VIP, 80, SYN);
    let outcome = dataplane.run(PROGRAM, &packet.bytes());
    let port = outcome.snat_port();
    let mut expected = packet.to(POD).sport(port).dport(8080).bytes();
    expected[..6].copy_from_slice(&POD_MAC);
    outcome.is(Redirect, &expected, &["service_new_flow", "snat_new_flow", "to_local_pod"]);
    let answer = tcp(POD, 8080, NODE_IP, port, SYN | ACK);
    let expected = answer.clone().from(VIP).sport(80).dport(40_000).bytes();
    dataplane.run("from_pod", &answer.bytes()).is(crate::harness::Verdict::Pass, &expected, &["to_host"]);
}

#[test]
fn a_service_with_a_remote_pod() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(REMOTE_POD, 5353)]);
    let packet = udp(NODE_IP, 40_000, VIP, 53);
    let outcome = dataplane.run(PROGRAM, &packet.bytes());
    let counted = ["service_new_flow", "snat_new_flow", "to_tunnel"];
    let inner = outcome.tunnelled(0, &counted, &ETHERNET);
    let port = inner.snat_port();
    inner.is(Redirect, &packet.to(REMOTE_POD).sport(port).dport(5353).bytes(), &counted);
}

#[test]
fn the_node_reaches_itself_through_a_service() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 443, proto::TCP, &[(NODE_IP, 6443)]);
    let packet = tcp(NODE_IP, 40_000, VIP, 443, SYN);
    let outcome = dataplane.run(PROGRAM, &packet.bytes());
    let port = outcome.snat_port();
    let mut expected = packet.from(HAIRPIN).to(NODE_IP).sport(port).dport(6443).bytes();
    expected[..6].copy_from_slice(&TUNNEL_MAC);
    outcome.is(Redirect, &expected, &["service_new_flow", "snat_new_flow", "to_host"]);
    let answer = tcp(NODE_IP, 6443, HAIRPIN, port, SYN | ACK);
    let mut expected = answer.clone().from(VIP).sport(443).to(NODE_IP).dport(40_000).bytes();
    expected[..6].copy_from_slice(&TUNNEL_MAC);
    dataplane.run(PROGRAM, &answer.bytes()).is(Redirect, &expected, &["to_host"]);
}

#[test]
fn a_service_without_endpoints_refuses_the_host_too() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 80, proto::TCP, &[]);
    let syn = tcp(NODE_IP, 40_000, VIP, 80, SYN);
    dataplane.run(PROGRAM, &syn.bytes()).is(Redirect, &reset(&syn), &["no_endpoints", "refused"]);
    let outcome = dataplane.run(PROGRAM, &tcp(NODE_IP, 40_000, VIP, 80, ACK).bytes());
    assert_eq!(outcome.verdict, Redirect);
    assert_eq!(outcome.counted.keys().copied().collect::<Vec<_>>(), ["no_endpoints", "refused"]);
    assert_eq!(outcome.packet[26..34], [10, 96, 0, 10, 192, 0, 2, 1]);
    assert_eq!(outcome.packet[34..36], [3, 3]);
}

#[test]
fn nothing_else_leaves_by_this_way() {
    let mut dataplane = Dataplane::new();
    let mut ipv6 = udp(NODE_IP, 1, POD, 2).payload(vec![0; 40]).bytes();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    for (packet, reason) in [
        (tcp(NODE_IP, 1, OUTSIDE, 2, ACK).bytes(), "no_route"),
        (udp(NODE_IP, 1, HAIRPIN, 2).bytes(), "no_route"),
        (udp(NODE_IP, 1, "224.0.0.1", 2).bytes(), "multicast"),
        (udp(NODE_IP, 1, REMOTE_POD, 2).payload(vec![0; 1500]).bytes(), "packet_too_big"),
        (ipv6, "ipv6_unsupported"),
    ] {
        dataplane.run(PROGRAM, &packet).is(Drop, &packet, &[reason]);
    }
}
