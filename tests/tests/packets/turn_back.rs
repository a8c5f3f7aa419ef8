//! `from_wire_xdp` and clients outside whose backend is on another node: their packets, and the answers, go back out by the wire that they came
//! in by, exactly as `from_wire` sends them. What is not a plain packet of a flow under way is left to that.
//!
//! ```text
//!   OUTSIDE -- router --+-- underlay, this node
//!                       +-- PEER_IP, with REMOTE_POD
//! ```

use std::time::{Duration, Instant};

use shunt::kernel::skb::SkbAccess;
use shunt_common::{
    address::{Address, Route, kind, route},
    config::xdp_forwards,
    conntrack::{kind as half, seen},
    net::{Mac, proto},
    service::{flags, state},
    verdict::Counter,
};

use crate::{
    frontends::{NODE_PORT, node_port},
    harness::{
        Dataplane, NODE_IP, OUTSIDE, Outcome, PEER_IP, POD, REMOTE_POD, SNAT_PORTS, TUNNEL_MAC, VIP,
        Verdict::{Drop, Pass, Redirect, RedirectAtXdp},
        address, run_on, serving,
    },
    packet::{ACK, FIN, L4, Packet, RST, SYN, echo, error, ip, tcp, tunnel, udp},
    shortcut::system,
};

/// The underlay's own MAC, that of the other node and that of the router.
pub(crate) const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const PEER: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// Another node, whose pods are in 10.244.3.0/24.
const THIRD_IP: &str = "192.0.2.3";
const THIRD_POD: &str = "10.244.3.2";
/// A shortcut holds for a part of a second; what is asserted of one begins anew if that ended in its middle.
const TRIES: usize = 50;

/// A node on such a wire, with node ports for TCP and UDP and a virtual IP, all with a backend of the other node.
pub(crate) fn dataplane() -> Dataplane {
    let mut dataplane = bare(xdp_forwards::TX);
    node_port(&mut dataplane, proto::TCP, &[(REMOTE_POD, 8080)], 0);
    node_port(&mut dataplane, proto::UDP, &[(REMOTE_POD, 8080)], 0);
    let run = dataplane.run_of(&[(REMOTE_POD, 8080)]);
    dataplane.frontend(VIP, 80, proto::TCP, serving(run, flags::EXTERNAL));
    dataplane
}

/// The same without any Service.
pub(crate) fn bare(xdp_forwards: u32) -> Dataplane {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    system("ip link add underlay address 02:00:00:00:00:01 type veth peer name wire");
    for device in ["lo", "wire", "underlay"] {
        system(&format!("ip link set {device} up"));
    }
    system(&format!("ip addr add {NODE_IP}/24 dev underlay"));
    system("ip route add default via 192.0.2.254");
    for (address, mac) in [(PEER_IP, PEER), ("192.0.2.254", ROUTER)] {
        let [a, b, c, d, e, f] = mac;
        system(&format!("ip neigh replace {address} lladdr {a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x} dev underlay nud permanent"));
    }
    system("sysctl -qw net.ipv4.ip_forward=1");
    let underlay = nix::net::if_::if_nametoindex("underlay").expect("the underlay");
    let config = shunt_common::config::NodeConfig { xdp_forwards, ..Dataplane::node(underlay) };
    let skb = SkbAccess::of_this_kernel().expect("a kernel that describes its types");
    Dataplane::of(&config, &skb, 256)
}

/// A packet as the router brings it.
fn arriving(packet: Packet) -> Packet {
    packet.macs(OWN, ROUTER)
}

/// A flow from outside to a node port or a virtual IP that was opened, asked and answered by way of `from_wire`.
pub(crate) struct Opened {
    /// What the client sends.
    pub(crate) question: Packet,
    /// What leaves for the backend.
    pub(crate) sent: Packet,
    /// What the backend answers.
    pub(crate) answer: Packet,
    /// What leaves for the client.
    pub(crate) returned: Packet,
}

impl Opened {
    pub(crate) fn tcp(dataplane: &mut Dataplane, address: &str, port: u16) -> Self {
        let syn = tcp(OUTSIDE, 40_000, address, port, SYN);
        Self::new(dataplane, &syn, tcp(OUTSIDE, 40_000, address, port, ACK), |port, flags| {
            tcp(REMOTE_POD, 8080, NODE_IP, port, flags)
        })
    }

    pub(crate) fn udp(dataplane: &mut Dataplane) -> Self {
        let question = udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT);
        Self::new(dataplane, &question, question.clone(), |port, _| udp(REMOTE_POD, 8080, NODE_IP, port))
    }

    fn new(dataplane: &mut Dataplane, opener: &Packet, question: Packet, answer: impl Fn(u16, u8) -> Packet) -> Self {
        // As often as it takes for both ways to have met their entries.
        let port = port_inside(&dataplane.run("from_wire", &from_outside(opener)));
        for (flags, packet) in [(SYN | ACK, opener), (ACK, &question)] {
            let outcome = dataplane.run("from_wire", &tunnel(PEER_IP, &answer(port, flags), 0).bytes());
            assert_eq!(outcome.counted.get("to_outside"), Some(&1), "{outcome:?}");
            dataplane.run("from_wire", &from_outside(packet));
        }
        let (asked, asker) = (question.dst.to_string(), ports(&question));
        let sent = question.clone().from(NODE_IP).sport(port).to(REMOTE_POD).dport(8080).aged();
        let answer = answer(port, ACK);
        let returned = answer.clone().from(&asked).sport(asker.1).to(OUTSIDE).dport(asker.0).aged().macs(ROUTER, OWN);
        Self { question: arriving(question), sent, answer, returned }
    }
}

pub(crate) fn from_outside(packet: &Packet) -> Vec<u8> {
    // What the network card of a test run at TC is called by: else a frame would only be overheard.
    packet.clone().macs([0; 6], ROUTER).bytes()
}

fn ports(packet: &Packet) -> (u16, u16) {
    match packet.l4 {
        L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } => (sport, dport),
        _ => panic!("a packet without ports"),
    }
}

/// The source port inside of a packet that left in the tunnel, whoever it is for: one of the node's.
fn port_inside(outcome: &Outcome) -> u16 {
    let port = u16::from_be_bytes([outcome.packet[84], outcome.packet[85]]);
    assert!(SNAT_PORTS.contains(&port), "{port} is none of the node's: {outcome:?}");
    port
}

/// Asserts that a packet leaves in the tunnel for the other node, by the link to it.
#[track_caller]
fn is_sent(outcome: &Outcome, counted: &[&str], inner: &Packet) {
    assert_eq!(outcome.packet[..14], [&PEER[..], &OWN, &[8, 0]].concat()[..]);
    outcome.tunnelled(inner.tos, counted, &inner.ethernet).is(Redirect, &inner.bytes(), counted);
}

const SENT: &[&str] = &["to_tunnel", "xdp_forwarded"];
const RETURNED: &[&str] = &["from_tunnel", "to_outside", "xdp_forwarded"];

#[test]
fn questions_and_answers_turn_back_byte_for_byte() {
    let mut dataplane = dataplane();
    let flows =
        [Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT), Opened::tcp(&mut dataplane, VIP, 80), Opened::udp(&mut dataplane)];
    for Opened { question, sent, answer, returned } in flows {
        // The first is decided, those that follow have a shortcut.
        for tos in [0, 0xb8, 2] {
            let (question, sent) = (question.clone().tos(tos), sent.clone().tos(tos));
            is_sent(&dataplane.run_xdp(&question.bytes()), SENT, &sent);
            let (answer, returned) = (answer.clone().tos(tos), returned.clone().tos(tos));
            dataplane.run_xdp(&tunnel(PEER_IP, &answer, tos & 3).bytes()).is(Redirect, &returned.bytes(), RETURNED);
        }
        if matches!(question.l4, L4::Udp { .. }) {
            is_sent(&dataplane.run_xdp(&question.zero_checksum().bytes()), SENT, &sent.zero_checksum());
            let outcome = dataplane.run_xdp(&tunnel(PEER_IP, &answer.zero_checksum(), 0).bytes());
            outcome.is(Redirect, &returned.zero_checksum().bytes(), RETURNED);
        }
    }
}

#[test]
fn it_is_what_from_wire_sends() {
    let mut dataplane = dataplane();
    for Opened { question, answer, .. } in [Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT), Opened::udp(&mut dataplane)] {
        for len in [0, 1, 2, 700, 1400] {
            let question = question.clone().payload(vec![0xa5; len]);
            let (tc, xdp) = (dataplane.run("from_wire", &question.bytes()), dataplane.run_xdp(&question.bytes()));
            assert_eq!((&tc.verdict, &xdp.verdict), (&Redirect, &Redirect));
            // But for the outer Ethernet header, which the kernel writes afterwards, and the identification with its checksum.
            assert_eq!(tc.packet[14..18], xdp.packet[14..18]);
            assert_eq!(tc.packet[20..24], xdp.packet[20..24]);
            assert_eq!(tc.packet[26..], xdp.packet[26..]);
            let answer = tunnel(PEER_IP, &answer.clone().payload(vec![0x5a; len]), 0).bytes();
            let (tc, xdp) = (dataplane.run("from_wire", &answer), dataplane.run_xdp(&answer));
            assert_eq!((&tc.verdict, tc.packet), (&xdp.verdict, xdp.packet));
        }
    }
}

#[test]
fn a_flow_under_way_needs_no_entry_and_its_tunnel_packets_are_numbered() {
    let mut dataplane = dataplane();
    let is_short = (0..TRIES).any(|_| {
        dataplane.lose_flows();
        let Opened { question, sent, answer, returned } = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
        for packet in [question.bytes(), tunnel(PEER_IP, &answer, 0).bytes()] {
            dataplane.run_xdp(&packet);
        }
        dataplane.lose_flows();
        let outcomes = [(); 2].map(|()| dataplane.run_xdp(&question.bytes()));
        let back = dataplane.run_xdp(&tunnel(PEER_IP, &answer, 0).bytes());
        if outcomes.iter().chain([&back]).any(|outcome| outcome.verdict != Redirect) {
            return false;
        }
        let [one, two] = outcomes.each_ref().map(|outcome| u16::from_be_bytes([outcome.packet[18], outcome.packet[19]]));
        outcomes.iter().for_each(|outcome| is_sent(outcome, SENT, &sent));
        back.is(Redirect, &returned.bytes(), RETURNED);
        two == one.wrapping_add(1)
    });
    assert!(is_short);
}

#[test]
fn what_is_not_a_plain_packet_is_left_as_it_came() {
    let mut dataplane = dataplane();
    let Opened { question, answer, .. } = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
    let datagrams = Opened::udp(&mut dataplane);
    let flagged = |flags| tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, flags);
    let cut = |by: usize| {
        let mut bytes = question.bytes();
        bytes.truncate(bytes.len() - by);
        bytes
    };
    for (what, packet) in [
        ("a SYN", arriving(flagged(SYN)).bytes()),
        ("a FIN", arriving(flagged(FIN | ACK)).bytes()),
        ("a reset", arriving(flagged(RST)).bytes()),
        ("its last hop", question.clone().ttl(1).bytes()),
        ("a first fragment", question.clone().fragment(0x2000).bytes()),
        ("a later fragment", question.clone().fragment(0x00b9).bytes()),
        ("IP options", question.clone().options(&[7, 4, 4, 0]).bytes()),
        ("too big for the tunnel", question.clone().payload(vec![0; 1411]).bytes()),
        ("a ping", arriving(echo(OUTSIDE, NODE_IP, 8, 1)).bytes()),
        ("an error", arriving(error(OUTSIDE, NODE_IP, 3, 3, &datagrams.returned)).bytes()),
        ("an unknown flow", question.clone().sport(40_001).bytes()),
        ("another protocol", arriving(udp(OUTSIDE, 40_001, NODE_IP, NODE_PORT)).bytes()),
        ("the host's own", arriving(tcp(OUTSIDE, 40_000, NODE_IP, 22, ACK)).bytes()),
        ("another node's", arriving(tcp(OUTSIDE, 40_000, PEER_IP, NODE_PORT, ACK)).bytes()),
        ("a pod's", arriving(tcp(OUTSIDE, 40_000, POD, NODE_PORT, ACK)).bytes()),
        ("cut in its data", cut(1)),
        ("cut in its header", cut(7)),
    ] {
        let outcome = dataplane.run_xdp(&packet);
        assert_eq!((outcome.verdict, outcome.counted.len()), (Pass, 0), "{what}");
        assert_eq!(outcome.packet, packet, "{what}");
    }
    is_sent(&dataplane.run_xdp(&question.clone().payload(vec![0; 1410]).bytes()), SENT, &{
        let port = ports(&answer).1;
        question.clone().payload(vec![0; 1410]).from(NODE_IP).sport(port).to(REMOTE_POD).dport(8080).aged()
    });
}

/// A tunnel packet popped and marked for `from_wire`.
pub(crate) fn popped(inner: &Packet, ecn: u8) -> Vec<u8> {
    let mark = [&u32::from_be_bytes(*b"shnt").to_ne_bytes()[..], &[ecn, 0, 0, 0], &[0; 8]].concat();
    [&mark[..], &crate::from_wire::popped(inner.clone())].concat()
}

#[test]
fn answers_that_are_not_plain_are_popped_and_left() {
    let mut dataplane = dataplane();
    let Opened { answer, returned, .. } = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
    let port = ports(&answer).1;
    let flagged = |flags| tcp(REMOTE_POD, 8080, NODE_IP, port, flags);
    for (what, inner, ecn) in [
        ("a SYN", flagged(SYN | ACK), 0),
        ("a FIN", flagged(FIN | ACK), 0),
        ("a reset", flagged(RST), 0),
        ("its last hop", answer.clone().ttl(1), 0),
        ("a fragment", answer.clone().fragment(0x2000), 0),
        ("IP options", answer.clone().options(&[7, 4, 4, 0]), 0),
        ("congestion", answer.clone().tos(2), 3),
        ("a congestion that it cannot carry", answer.clone(), 3),
        ("an unknown flow", answer.clone().sport(8081), 0),
        ("a pod's", answer.clone().to(POD), 0),
        ("too big", answer.clone().payload(vec![0; 1411]), 0),
        ("a source that is this node's", answer.clone().from(NODE_IP), 0),
    ] {
        let outcome = dataplane.run_xdp(&tunnel(PEER_IP, &inner, ecn).bytes());
        assert_eq!((outcome.verdict, outcome.counted.len()), (Pass, 0), "{what}");
        assert_eq!(outcome.packet, popped(&inner, ecn), "{what}");
    }
    dataplane.run_xdp(&tunnel(PEER_IP, &answer, 0).bytes()).is(Redirect, &returned.bytes(), RETURNED);
    // The same from somebody who is no node, with a shortcut and without.
    for opener in [None, Some(answer.clone().sport(8081))] {
        let inner = opener.as_ref().unwrap_or(&answer);
        let stranger = tunnel("192.0.2.66", inner, 0).bytes();
        dataplane.run_xdp(&stranger).is(Drop, &stranger, &["tunnel_peer_unknown"]);
    }
}

#[test]
fn until_from_wire_has_seen_a_whole_checksum_it_is_from_wires() {
    let mut dataplane = dataplane();
    let question = udp(OUTSIDE, 40_000, NODE_IP, NODE_PORT);
    dataplane.run("from_wire", &from_outside(&question));
    let arrived = arriving(question.clone()).bytes();
    for _ in 0..2 {
        dataplane.run_xdp(&arrived).is(Pass, &arrived, &[]);
    }
    dataplane.run("from_wire", &from_outside(&question));
    assert_eq!(dataplane.run_xdp(&arrived).verdict, Redirect);
    // Of the answers nothing has been seen yet.
    let noted = |dataplane: &mut Dataplane, kind| {
        let flows = dataplane.flows();
        flows.iter().find(|(_, entry)| entry.kind == kind).expect("a half").1.seen & seen::WHOLE != 0
    };
    assert!(noted(&mut dataplane, half::ORIGINAL) && !noted(&mut dataplane, half::REPLY));

    // Where programs cannot see into packets nobody knows.
    let mut blind = Dataplane::with(&SkbAccess::NONE);
    node_port(&mut blind, proto::UDP, &[(REMOTE_POD, 8080)], 0);
    for _ in 0..3 {
        blind.run("from_wire", &from_outside(&question));
        blind.run_xdp(&arrived).is(Pass, &arrived, &[]);
    }
}

#[test]
fn where_the_driver_does_not_send_packets_are_redirected() {
    let mut dataplane = bare(xdp_forwards::REDIRECT);
    node_port(&mut dataplane, proto::UDP, &[(REMOTE_POD, 8080)], 0);
    let Opened { question, answer, returned, .. } = Opened::udp(&mut dataplane);
    let outcome = dataplane.run_xdp(&question.bytes());
    assert_eq!((&outcome.verdict, &outcome.packet[..6]), (&RedirectAtXdp, &PEER[..]));
    dataplane.run_xdp(&tunnel(PEER_IP, &answer, 0).bytes()).is(RedirectAtXdp, &returned.bytes(), RETURNED);
}

#[test]
fn without_the_agents_leave_all_is_from_wires() {
    let mut dataplane = bare(xdp_forwards::NO);
    node_port(&mut dataplane, proto::TCP, &[(REMOTE_POD, 8080)], 0);
    let Opened { question, answer, .. } = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
    dataplane.run_xdp(&question.bytes()).is(Pass, &question.bytes(), &[]);
    dataplane.run_xdp(&tunnel(PEER_IP, &answer, 0).bytes()).is(Pass, &popped(&answer, 0), &[]);
    assert!(dataplane.flows().iter().all(|(_, entry)| entry.seen & seen::WHOLE == 0));
}

#[test]
fn a_way_that_leads_elsewhere_is_from_wires() {
    let mut dataplane = dataplane();
    let Opened { question, sent, answer, returned } = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
    let answer = tunnel(PEER_IP, &answer, 0).bytes();
    let comes = |dataplane: &mut Dataplane, packet: &[u8], verdict| {
        let start = Instant::now();
        while dataplane.run_xdp(packet).verdict != verdict {
            assert!(start.elapsed() < Duration::from_secs(2), "never {verdict:?}");
        }
    };
    let both = |dataplane: &mut Dataplane| {
        comes(dataplane, &question.bytes(), Redirect);
        comes(dataplane, &answer, Redirect);
        is_sent(&dataplane.run_xdp(&question.bytes()), SENT, &sent);
        dataplane.run_xdp(&answer).is(Redirect, &returned.bytes(), RETURNED);
    };
    both(&mut dataplane);
    // The client is behind another interface.
    system("ip link add other type veth peer name another");
    system("ip link set other up");
    system("ip link set another up");
    system("ip addr add 203.0.113.1/24 dev other");
    system("ip neigh replace 203.0.113.254 lladdr 02:00:00:00:00:05 dev other nud permanent");
    system(&format!("ip route add {OUTSIDE}/32 via 203.0.113.254"));
    comes(&mut dataplane, &answer, Pass);
    system(&format!("ip route del {OUTSIDE}/32"));
    both(&mut dataplane);
    // The way to the client is narrower than the tunnel.
    system(&format!("ip route add {OUTSIDE}/32 via 192.0.2.254 mtu lock 1300"));
    comes(&mut dataplane, &answer, Pass);
    system(&format!("ip route del {OUTSIDE}/32"));
    both(&mut dataplane);
    // The next node's MAC is not known, then another.
    system(&format!("ip neigh del {PEER_IP} dev underlay"));
    comes(&mut dataplane, &question.bytes(), Pass);
    system(&format!("ip neigh replace {PEER_IP} lladdr 02:00:00:00:00:02 dev underlay nud permanent"));
    both(&mut dataplane);
    // A backend on this node; all that has changed is where its address is.
    dataplane.address(REMOTE_POD, address(kind::POD));
    dataplane.begin_epoch();
    dataplane.run_xdp(&question.bytes()).is(Pass, &question.bytes(), &[]);
}

#[test]
fn a_backend_that_is_a_node_is_reached_without_the_tunnel() {
    let mut dataplane = bare(xdp_forwards::TX);
    node_port(&mut dataplane, proto::TCP, &[(PEER_IP, 8080)], 0);
    let syn = tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN);
    let first = dataplane.run("from_wire", &from_outside(&syn));
    let port = first.snat_port();
    let (question, answer) = (tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, ACK), tcp(PEER_IP, 8080, NODE_IP, port, ACK));
    for packet in [&question, &answer] {
        dataplane.run("from_wire", &from_outside(packet));
    }
    for _ in 0..2 {
        let sent = question.clone().from(NODE_IP).sport(port).to(PEER_IP).dport(8080).aged().macs(PEER, OWN).bytes();
        dataplane.run_xdp(&arriving(question.clone()).bytes()).is(Redirect, &sent, &["to_outside", "xdp_forwarded"]);
        let returned = answer.clone().from(NODE_IP).sport(NODE_PORT).to(OUTSIDE).dport(40_000).aged().macs(ROUTER, OWN).bytes();
        dataplane.run_xdp(&answer.clone().macs(OWN, PEER).bytes()).is(Redirect, &returned, &["to_outside", "xdp_forwarded"]);
    }
}

#[test]
fn a_pod_elsewhere_asks_through_the_tunnel_and_is_answered_so() {
    let mut dataplane = dataplane();
    let third =
        Address { underlay: ip(THIRD_IP).into(), mac: Mac { bytes: [0x72, 0x73, 192, 0, 2, 3] }, ..address(kind::NODE) };
    dataplane.address(THIRD_IP, third);
    let (underlay, mac) = (third.underlay, third.mac);
    dataplane.route("10.244.3.0", 24, Route { kind: route::TUNNEL, underlay, mac, flags: 0 });
    system(&format!("ip neigh replace {THIRD_IP} lladdr 02:00:00:00:00:03 dev underlay nud permanent"));
    let question = |flags| tcp(THIRD_POD, 40_000, NODE_IP, NODE_PORT, flags);
    let port = port_inside(&dataplane.run("from_wire", &tunnel(THIRD_IP, &question(SYN), 0).bytes()));
    let answer = tcp(REMOTE_POD, 8080, NODE_IP, port, ACK);
    dataplane.run("from_wire", &tunnel(THIRD_IP, &question(ACK), 0).bytes());
    dataplane.run("from_wire", &tunnel(PEER_IP, &answer, 0).bytes());
    let counted = ["from_tunnel", "to_tunnel", "xdp_forwarded"];
    for _ in 0..2 {
        let sent = question(ACK).from(NODE_IP).sport(port).to(REMOTE_POD).dport(8080).aged();
        is_sent(&dataplane.run_xdp(&tunnel(THIRD_IP, &question(ACK), 0).bytes()), &counted, &sent);
        let outcome = dataplane.run_xdp(&tunnel(PEER_IP, &answer, 0).bytes());
        assert_eq!(outcome.verdict, Redirect);
        assert_eq!(outcome.packet[..14], [2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(outcome.packet[26..34], [192, 0, 2, 1, 192, 0, 2, 3]);
        assert_eq!(outcome.packet[50..62], [&mac.bytes[..], &TUNNEL_MAC].concat()[..]);
        let returned = answer.clone().from(NODE_IP).sport(NODE_PORT).to(THIRD_POD).dport(40_000).aged().bytes();
        assert_eq!(outcome.packet[64..], returned[14..]);
        assert_eq!(shunt_common::checksum::of(&outcome.packet[14..34]), 0);
        assert_eq!(outcome.counted.keys().copied().collect::<Vec<_>>(), counted);
    }
}

#[test]
fn a_service_that_is_gone_and_a_backend_that_is_are_from_wires_at_once() {
    let mut dataplane = dataplane();
    let segments = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
    let datagrams = Opened::udp(&mut dataplane);
    let (segment, datagram) = (segments.question.bytes(), datagrams.question.bytes());
    for packet in [&segment, &datagram] {
        assert_eq!(dataplane.run_xdp(packet).verdict, Redirect);
    }
    // `node_port` gave the ids 1 and 2: a connection stays with its backend, datagrams don't.
    for id in [1, 2] {
        dataplane.backend(id, "0.0.0.0", 0, state::FREE, 1);
    }
    is_sent(&dataplane.run_xdp(&segment), SENT, &segments.sent);
    dataplane.run_xdp(&datagram).is(Pass, &datagram, &[]);
    let answer = tunnel(PEER_IP, &segments.answer, 0).bytes();
    assert_eq!(dataplane.run_xdp(&answer).verdict, Redirect);
    dataplane.no_node_port(NODE_PORT, proto::TCP);
    dataplane.run_xdp(&segment).is(Pass, &segment, &[]);
    // As at TC, whose own look at it is no other.
    let outcome = dataplane.run("from_wire", &from_outside(&segments.question));
    assert_eq!((outcome.verdict, outcome.counted.len()), (Pass, 0));
    // What is still answered goes on.
    dataplane.run_xdp(&answer).is(Redirect, &segments.returned.bytes(), RETURNED);
}

#[test]
fn the_entry_hears_of_its_flow_before_long() {
    let mut dataplane = dataplane();
    let Opened { question, answer, .. } = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
    let (question, answer) = (question.bytes(), tunnel(PEER_IP, &answer, 0).bytes());
    let turn = |dataplane: &mut Dataplane| {
        assert_eq!([&question, &answer].map(|packet| dataplane.run_xdp(packet).verdict), [Redirect, Redirect]);
    };
    turn(&mut dataplane);
    // As if the flow had been silent for ever.
    let silent: Vec<_> = dataplane
        .flows()
        .into_iter()
        .map(|(key, mut entry)| {
            entry.last_seen = entry.last_seen.wrapping_sub(1000);
            (key, entry)
        })
        .collect();
    let then: Vec<u32> = silent.iter().map(|(_, entry)| entry.last_seen).collect();
    dataplane.track(silent);
    let start = Instant::now();
    while dataplane.flows().iter().any(|(_, entry)| then.contains(&entry.last_seen)) {
        turn(&mut dataplane);
        assert!(start.elapsed() < Duration::from_secs(2), "no entry has heard of it");
    }
    assert_eq!(dataplane.counted(Counter::SlowPath), 0);
}

#[test]
fn another_cpus_new_connection_is_not_mistaken_for_the_old() {
    let mut dataplane = dataplane();
    run_on(0);
    let Opened { question, sent, .. } = Opened::tcp(&mut dataplane, NODE_IP, NODE_PORT);
    is_sent(&dataplane.run_xdp(&question.bytes()), SENT, &sent);
    run_on(1);
    dataplane.run("from_wire", &from_outside(&tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, RST)));
    let syn = dataplane.run("from_wire", &from_outside(&tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, SYN)));
    let port = port_inside(&syn);
    run_on(0);
    // It is opened, and no packet under way has come yet.
    dataplane.run_xdp(&question.bytes()).is(Pass, &question.bytes(), &[]);
    dataplane.run("from_wire", &from_outside(&tcp(OUTSIDE, 40_000, NODE_IP, NODE_PORT, ACK)));
    is_sent(&dataplane.run_xdp(&question.bytes()), SENT, &sent.sport(port));
}
