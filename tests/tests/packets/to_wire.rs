//! `to_wire`: what processes of the node answer clients elsewhere, and the way there.

use std::net::Ipv4Addr;

use shunt_common::{
    flow::Tuple,
    net::{Port, V4, proto},
    service::flags,
    snat,
};

use crate::{
    from_wire::popped,
    frontends::{NODE_PORT, arriving, node_port},
    harness::{
        Dataplane, HAIRPIN, NODE_IP, OUTSIDE, PEER_IP, POD, REMOTE_POD, SNAT_PORTS, TUNNEL_MAC, VIP,
        Verdict::{Pass, Redirect},
    },
    packet::{ACK, ETHERNET, FIN, Packet, SYN, echo, error, raw, tcp, tunnel, udp},
};

const PROGRAM: &str = "to_wire";
const OPENED: [&str; 3] = ["service_new_flow", "snat_new_flow", "to_host"];

/// Sends the opener of a flow to the process at port 6443; the port that it sees.
fn ask(dataplane: &mut Dataplane, opener: &Packet) -> u16 {
    let outcome = dataplane.run("from_wire", &opener.bytes());
    let port = outcome.snat_port();
    outcome.is(Pass, &opener.clone().sport(port).to(NODE_IP).dport(6443).bytes(), &OPENED);
    port
}

#[test]
fn a_process_of_the_node_sees_the_clients_address_and_answers_as_the_service() {
    let mut dataplane = Dataplane::new();
    for (client, policy) in [(OUTSIDE, 0), (OUTSIDE, flags::KEEP_SOURCE), (PEER_IP, 0)] {
        dataplane.lose_flows();
        node_port(&mut dataplane, proto::TCP, &[(NODE_IP, 6443)], policy);
        // The node is where it was sent: no hop is counted, and the last one will do.
        let syn = arriving(tcp(client, 40_000, NODE_IP, NODE_PORT, SYN).ttl(1));
        let port = ask(&mut dataplane, &syn);
        for flags in [SYN | ACK, ACK, FIN | ACK] {
            let answer = tcp(NODE_IP, 6443, client, port, flags);
            let expected = answer.clone().sport(NODE_PORT).dport(40_000).bytes();
            dataplane.run(PROGRAM, &answer.bytes()).is(Pass, &expected, &[]);
        }
        let follows = arriving(tcp(client, 40_000, NODE_IP, NODE_PORT, ACK));
        let expected = follows.clone().sport(port).dport(6443).bytes();
        dataplane.run("from_wire", &follows.bytes()).is(Pass, &expected, &["to_host"]);
    }
}

#[test]
fn it_answers_as_the_virtual_ip_in_fragments_and_with_errors_too() {
    let mut dataplane = Dataplane::new();
    dataplane.service(VIP, 53, proto::UDP, &[(NODE_IP, 6443)]);
    let query = arriving(udp(OUTSIDE, 40_000, VIP, 53));
    let port = ask(&mut dataplane, &query);
    let first = udp(NODE_IP, 6443, OUTSIDE, port).fragment(0x2000);
    let expected = first.clone().from(VIP).sport(53).dport(40_000).bytes();
    dataplane.run(PROGRAM, &first.bytes()).is(Pass, &expected, &[]);
    let later = raw(NODE_IP, OUTSIDE, 17, vec![7; 32]).fragment(2);
    dataplane.run(PROGRAM, &later.bytes()).is(Pass, &later.from(VIP).bytes(), &[]);
    let complaint = error(NODE_IP, OUTSIDE, 3, 3, &udp(OUTSIDE, port, NODE_IP, 6443));
    let expected = error(VIP, OUTSIDE, 3, 3, &udp(OUTSIDE, 40_000, VIP, 53)).bytes();
    dataplane.run(PROGRAM, &complaint.bytes()).is(Pass, &expected, &[]);
    // A router that cannot carry an answer says so of what it saw.
    let complaint = arriving(error("203.0.113.1", VIP, 3, 4, &udp(VIP, 53, OUTSIDE, 40_000)));
    let expected = arriving(error("203.0.113.1", NODE_IP, 3, 4, &udp(NODE_IP, 6443, OUTSIDE, port))).bytes();
    dataplane.run("from_wire", &complaint.bytes()).is(Pass, &expected, &["to_host"]);
}

#[test]
fn a_pod_of_another_node_hears_through_the_tunnel() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(NODE_IP, 6443)], 0);
    let syn = tcp(REMOTE_POD, 40_000, NODE_IP, NODE_PORT, SYN);
    let outcome = dataplane.run("from_wire", &tunnel(PEER_IP, &syn, 0).bytes());
    let port = outcome.snat_port();
    let mut expected = popped(syn.sport(port).dport(6443));
    expected[..6].copy_from_slice(&TUNNEL_MAC);
    outcome.is(Redirect, &expected, &["from_tunnel", "service_new_flow", "snat_new_flow", "to_host"]);
    let answer = tcp(NODE_IP, 6443, REMOTE_POD, port, SYN | ACK);
    let inner = dataplane.run("from_host", &answer.bytes()).tunnelled(0, &["to_tunnel"], &ETHERNET);
    inner.is(Redirect, &answer.sport(NODE_PORT).dport(40_000).bytes(), &["to_tunnel"]);
}

#[test]
fn what_has_no_port_to_know_it_by_comes_back_through_the_tunnel_device() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::SCTP, &[(NODE_IP, NODE_PORT)], flags::KEEP_SOURCE);
    let [high, low] = NODE_PORT.to_be_bytes();
    let chunk = |sport: [u8; 2], dport: [u8; 2]| [&sport[..], &dport, &[0; 12]].concat();
    let init = arriving(raw(OUTSIDE, NODE_IP, 132, chunk([0x9c, 0x40], [high, low])));
    let mut expected = init.clone().from(HAIRPIN).bytes();
    expected[..6].copy_from_slice(&TUNNEL_MAC);
    dataplane.run("from_wire", &init.bytes()).is(Redirect, &expected, &["service_new_flow", "to_host"]);
}

#[test]
fn one_port_for_a_service_and_for_the_process_behind_it_is_two_flows() {
    let mut dataplane = Dataplane::new();
    for protocol in [proto::TCP, proto::UDP] {
        let opener = |sport, port| match protocol {
            proto::TCP => tcp(OUTSIDE, sport, NODE_IP, port, SYN),
            _ => udp(OUTSIDE, sport, NODE_IP, port),
        };
        let answer = |to| match protocol {
            proto::TCP => tcp(NODE_IP, 6443, OUTSIDE, to, SYN | ACK),
            _ => udp(NODE_IP, 6443, OUTSIDE, to),
        };
        node_port(&mut dataplane, protocol, &[(NODE_IP, 6443)], 0);
        let seen = ask(&mut dataplane, &arriving(opener(40_000, NODE_PORT)));
        // Past the Service, from the very port that stands for its client.
        let direct = arriving(opener(seen, 6443));
        let outcome = dataplane.run("from_wire", &direct.bytes());
        let other = outcome.snat_port();
        assert_ne!(other, seen);
        for packet in [&direct, &direct] {
            let outcome = dataplane.run("from_wire", &packet.bytes());
            assert_eq!((outcome.verdict, outcome.packet), (Pass, packet.clone().sport(other).bytes()));
        }
        let expected = answer(other).dport(seen).bytes();
        dataplane.run(PROGRAM, &answer(other).bytes()).is(Pass, &expected, &[]);
        let expected = answer(seen).sport(NODE_PORT).dport(40_000).bytes();
        dataplane.run(PROGRAM, &answer(seen).bytes()).is(Pass, &expected, &[]);
        // From a port that is nobody's it goes as it came.
        let free = SNAT_PORTS.into_iter().find(|port| ![seen, other].contains(port)).expect("a free port");
        let free = arriving(opener(free, 6443));
        dataplane.run("from_wire", &free.bytes()).is(Pass, &free.bytes(), &[]);
    }
}

/// A connection to the process itself, from a port that a Service's client would be given: as one that another node masquerades.
#[test]
fn no_services_client_gets_the_port_of_a_flow_that_stands() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::TCP, &[(NODE_IP, 6443)], 0);
    let address = |text: &str| text.parse::<Ipv4Addr>().expect("an address").into();
    let first_choice = |sport| {
        let (src, dst) = (address(OUTSIDE), address(NODE_IP));
        let (sport, dport) = (Port::from_host(sport), Port::from_host(NODE_PORT));
        let opener = Tuple::<V4> { src, dst, sport, dport, proto: proto::TCP };
        SNAT_PORTS.start() + snat::first_place(&opener, SNAT_PORTS.len() as u32) as u16
    };
    let stands = first_choice(40_000);
    let direct = arriving(tcp(OUTSIDE, stands, NODE_IP, 6443, SYN));
    dataplane.run("from_wire", &direct.bytes()).is(Pass, &direct.bytes(), &[]);
    assert_ne!(ask(&mut dataplane, &arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN))), stands);
    let answer = tcp(NODE_IP, 6443, OUTSIDE, stands, SYN | ACK);
    dataplane.run(PROGRAM, &answer.bytes()).is(Pass, &answer.bytes(), &[]);
    let follows = arriving(tcp(OUTSIDE, stands, NODE_IP, 6443, ACK));
    dataplane.run("from_wire", &follows.bytes()).is(Pass, &follows.bytes(), &[]);
    // Had nobody had it, it would have been the first choice.
    dataplane.lose_flows();
    assert_eq!(ask(&mut dataplane, &arriving(tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN))), stands);
}

#[test]
fn all_else_leaves_untouched() {
    let mut dataplane = Dataplane::new();
    node_port(&mut dataplane, proto::UDP, &[(NODE_IP, 6443)], 0);
    let port = ask(&mut dataplane, &arriving(udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT)));
    let mut ipv6 = udp(NODE_IP, 1, OUTSIDE, 2).payload(vec![0; 40]).bytes();
    ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
    for packet in [
        tunnel(NODE_IP, &tcp(POD, 1, REMOTE_POD, 2, ACK), 0).bytes(),
        tcp(NODE_IP, 40_000, OUTSIDE, 443, SYN).bytes(),
        // Another port of the process, another client, another protocol.
        udp(NODE_IP, 6444, OUTSIDE, port).bytes(),
        udp(NODE_IP, 6443, PEER_IP, port).bytes(),
        tcp(NODE_IP, 6443, OUTSIDE, port, ACK).bytes(),
        echo(NODE_IP, OUTSIDE, 8, port).bytes(),
        raw(NODE_IP, OUTSIDE, 17, vec![7; 32]).fragment(2).bytes(),
        ipv6,
        vec![0; 60],
    ] {
        dataplane.run(PROGRAM, &packet).is(Pass, &packet, &[]);
    }
    // What somebody else made is translated by now.
    let answer = udp(NODE_IP, 6443, OUTSIDE, port).bytes();
    dataplane.entered_by = 1;
    dataplane.run(PROGRAM, &answer).is(Pass, &answer, &[]);
}
