//! Packets that are too big for the way to the outside: told to who forbids it to cut them, else left to the host's stack, which does.
//!
//! ```text
//!   OUTSIDE -- router -- (1,300 bytes) -- underlay, this node
//! ```

use shunt_common::{config::xdp_forwards, net::proto};

use crate::{
    from_pod::refusal,
    from_wire::popped,
    frontends::{NODE_PORT, node_port},
    harness::{
        Dataplane, NODE_IP, OUTSIDE, Outcome, PEER_IP, POD, REMOTE_POD, TUNNEL_MAC, VIP,
        Verdict::{Drop, Pass, Redirect},
    },
    packet::{ACK, Packet, echo, tcp, tunnel, udp},
    shortcut::system,
    turn_back::{self, OWN, ROUTER, bare},
};

/// What the way carries, in bytes of an IP packet.
const MTU: u16 = 1300;
/// A field of the IPv4 header that forbids nobody to cut the packet.
const MAY_BE_CUT: u16 = 0;
/// Data of a UDP datagram that the way just carries.
const FITS: usize = MTU as usize - 28;

fn dataplane() -> Dataplane {
    let dataplane = bare(xdp_forwards::TX);
    system(&format!("ip link set underlay mtu {MTU}"));
    dataplane
}

/// A packet as it enters at the tunnel device, for the host's stack to age and to send.
fn enters(packet: &Packet) -> Vec<u8> {
    let mut bytes = packet.bytes();
    bytes[..6].copy_from_slice(&TUNNEL_MAC);
    bytes
}

/// A packet as it leaves for the router.
fn leaves(packet: &Packet) -> Vec<u8> {
    packet.clone().aged().macs(ROUTER, OWN).bytes()
}

/// What tells a sender how large its packets may be.
fn too_big(about: &Packet) -> Vec<u8> {
    let mut answer = refusal(about, 4);
    answer[40..42].copy_from_slice(&MTU.to_be_bytes());
    // Of the sums only ICMP's covers it (RFC 1624).
    let sum = u32::from(!u16::from_be_bytes([answer[36], answer[37]])) + u32::from(MTU);
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    answer[36..38].copy_from_slice(&sum.to_be_bytes());
    answer
}

#[test]
fn a_pods_datagram_that_may_be_cut_is_left_to_the_stack_with_the_nodes_address() {
    let mut dataplane = dataplane();
    for packet in [
        udp(POD, 40_000, OUTSIDE, 53).payload(vec![7; FITS + 1]),
        udp(POD, 40_001, OUTSIDE, 53).payload(vec![7; FITS + 1]).zero_checksum(),
        udp(POD, 40_002, OUTSIDE, 53).payload(vec![7; FITS + 1]).options(&[7, 4, 4, 0]),
        tcp(POD, 40_000, OUTSIDE, 80, ACK).payload(vec![7; 1400]).tos(0xb8),
        echo(POD, OUTSIDE, 8, 7).payload(vec![7; FITS + 1]),
        udp(POD, 40_003, OUTSIDE, 53).payload(vec![7; FITS + 1]).ttl(2),
    ] {
        let packet = packet.fragment(MAY_BE_CUT);
        let first = dataplane.run("from_pod", &packet.bytes());
        let translated = packet.clone().from(NODE_IP).sport(port(&first));
        first.is(Redirect, &enters(&translated), &["slow_path", "snat_new_flow"]);
        // By the next hop that its flow remembers, too.
        dataplane.run("from_pod", &packet.bytes()).is(Redirect, &enters(&translated), &["slow_path"]);
    }
}

/// The source port, or identifier, that a packet left with, wherever its IP header ends.
fn port(outcome: &Outcome) -> u16 {
    let transport = 14 + usize::from(outcome.packet[14] & 0xf) * 4;
    let at = if outcome.packet[23] == proto::ICMP { transport + 4 } else { transport };
    u16::from_be_bytes([outcome.packet[at], outcome.packet[at + 1]])
}

#[test]
fn what_fits_what_forbids_it_and_what_is_a_part_already_are_not_left_to_be_cut() {
    let mut dataplane = dataplane();
    let fits = udp(POD, 40_000, OUTSIDE, 53).payload(vec![7; FITS]).fragment(MAY_BE_CUT);
    let outcome = dataplane.run("from_pod", &fits.bytes());
    let translated = fits.clone().from(NODE_IP).sport(outcome.snat_port());
    // The first goes by the kernel's own entry of the router.
    outcome.is(Redirect, &translated.clone().aged().bytes(), &["snat_new_flow", "to_outside"]);
    dataplane.run("from_pod", &fits.bytes()).is(Redirect, &leaves(&translated), &["to_outside"]);
    let too_long = fits.clone().payload(vec![7; FITS + 1]);
    dataplane.run("from_pod", &too_long.bytes()).is(Redirect, &enters(&translated.payload(vec![7; FITS + 1])), &["slow_path"]);
    // Its last hop is this one: the stack tells the pod, which must not have become the node by then.
    let last = too_long.clone().ttl(1);
    dataplane.run("from_pod", &last.bytes()).is(Pass, &last.bytes(), &["slow_path"]);
    // Don't fragment, and a first fragment: those that follow it would go past the stack.
    for fragment in [0x4000, 0x2000] {
        let packet = too_long.clone().fragment(fragment);
        dataplane.run("from_pod", &packet.bytes()).is(Redirect, &too_big(&packet), &["packet_too_big", "refused"]);
    }
    let later = too_long.fragment(0x00b9);
    dataplane.run("from_pod", &later.bytes()).is(Drop, &later.bytes(), &["packet_too_big"]);
}

#[test]
fn a_service_whose_backend_is_outside() {
    let mut dataplane = dataplane();
    dataplane.service(VIP, 53, proto::UDP, &[(OUTSIDE, 5353)]);
    let packet = udp(POD, 40_000, VIP, 53).payload(vec![7; FITS + 1]);
    let forbidden = dataplane.run("from_pod", &packet.bytes());
    forbidden.is(Redirect, &too_big(&packet), &["packet_too_big", "refused", "service_new_flow", "snat_new_flow"]);
    let packet = packet.fragment(MAY_BE_CUT);
    for _ in 0..2 {
        let outcome = dataplane.run("from_pod", &packet.bytes());
        let translated = packet.clone().from(NODE_IP).sport(outcome.snat_port()).to(OUTSIDE).dport(5353);
        outcome.is(Redirect, &enters(&translated), &["slow_path"]);
    }
}

#[test]
fn answers_of_a_pod_elsewhere_to_a_client_of_a_node_port() {
    let mut dataplane = dataplane();
    node_port(&mut dataplane, proto::UDP, &[(REMOTE_POD, 8080)], 0);
    let question = udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).macs([0; 6], ROUTER);
    let asked = dataplane.run("from_wire", &question.bytes());
    let port = u16::from_be_bytes([asked.packet[84], asked.packet[85]]);
    let answer = udp(REMOTE_POD, 8080, NODE_IP, port).payload(vec![7; FITS + 1]).fragment(MAY_BE_CUT);
    let returned = answer.clone().from(NODE_IP).sport(NODE_PORT).to(OUTSIDE).dport(40_000);
    for _ in 0..2 {
        let arrived = tunnel(PEER_IP, &answer, 0).bytes();
        // XDP pops what it has no way out for, and no more.
        dataplane.run_xdp(&arrived).is(Pass, &turn_back::popped(&answer, 0), &[]);
        dataplane.run("from_wire", &arrived).is(Redirect, &enters(&returned), &["from_tunnel", "slow_path"]);
    }
    // There is no way to tell it: the tunnel's other end is not where the interface leads.
    let forbidden = tunnel(PEER_IP, &answer.clone().fragment(0x4000), 0).bytes();
    let outcome = dataplane.run("from_wire", &forbidden);
    outcome.is(Drop, &popped(answer.fragment(0x4000)), &["from_tunnel", "packet_too_big"]);
}

#[test]
fn a_client_and_a_backend_of_a_node_port_that_are_both_outside() {
    let mut dataplane = dataplane();
    node_port(&mut dataplane, proto::UDP, &[("203.0.113.9", 8080)], 0);
    let packet = udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT).payload(vec![7; FITS + 1]).macs([0; 6], ROUTER);
    let forbidden = dataplane.run("from_wire", &packet.bytes());
    forbidden.is(Redirect, &too_big(&packet), &["packet_too_big", "refused", "service_new_flow", "snat_new_flow"]);
    let packet = packet.fragment(MAY_BE_CUT);
    let outcome = dataplane.run("from_wire", &packet.bytes());
    let translated = packet.from(NODE_IP).sport(outcome.snat_port()).to("203.0.113.9").dport(8080);
    outcome.is(Redirect, &enters(&translated), &["slow_path"]);
}
