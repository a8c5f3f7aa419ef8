//! Shortcuts: packets of a flow under way are served without a look-up, and only while nothing has changed that this was decided from.

use std::time::{Duration, Instant};

use shunt::kernel::skb::SkbAccess;
use shunt_common::{
    address::{Address, Route, kind, route},
    net::{Mac, proto},
    service::state,
};

use crate::{
    harness::{
        Dataplane, NODE_IP, OTHER_POD, PEER_IP, PEER_MAC, POD, REMOTE_POD, VIP,
        Verdict::{Drop, Redirect},
        address, run_on,
    },
    packet::{ACK, ETHERNET, Packet, RST, SYN, tcp, tunnel, udp},
};

const PROGRAM: &str = "from_pod";
const POD_3: &str = "10.244.1.4";

/// A shortcut holds for a part of a second; a test that needs one begins anew if that ended in its middle.
const TRIES: usize = 50;

/// A Service over one backend on this node, TCP and UDP, and another pod to move to.
fn dataplane() -> Dataplane {
    serve(Dataplane::new())
}

fn serve(mut dataplane: Dataplane) -> Dataplane {
    dataplane.address(POD_3, Address { ifindex: 78, ..address(kind::POD) });
    dataplane.service(VIP, 80, proto::TCP, &[(OTHER_POD, 8080)]);
    dataplane.service(VIP, 53, proto::UDP, &[(OTHER_POD, 5353)]);
    dataplane
}

/// Sends a flow's packet until its CPU has kept a shortcut for it.
fn settle(dataplane: &mut Dataplane, packet: &Packet) {
    for _ in 0..3 {
        dataplane.run(PROGRAM, &packet.bytes());
    }
}

/// Whether a packet of a flow that `opener` opens is still served as `expected` once the flow's entries are gone: by a shortcut then.
fn is_short(dataplane: &mut Dataplane, opener: &Packet, program: &str, packet: &[u8], expected: &[u8]) -> bool {
    (0..TRIES).any(|_| {
        dataplane.run(PROGRAM, &opener.bytes());
        for _ in 0..3 {
            dataplane.run(program, packet);
        }
        dataplane.lose_flows();
        let outcome = dataplane.run(program, packet);
        outcome.packet == expected && dataplane.flows().is_empty()
    })
}

#[test]
fn a_packet_by_a_shortcut_is_the_packet_by_the_long_way() {
    for mut dataplane in [dataplane(), serve(Dataplane::with(&SkbAccess::NONE))] {
        dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, SYN).bytes());
        dataplane.run(PROGRAM, &tcp(POD, 40_000, OTHER_POD, 80, SYN).bytes());
        let to_backend = |packet: &Packet, port| packet.clone().to(OTHER_POD).dport(port);
        let over_tcp = tcp(POD, 40_000, VIP, 80, ACK);
        let over_udp = udp(POD, 40_000, VIP, 53);
        let unchecked = udp(POD, 40_000, VIP, 53).zero_checksum();
        let direct = tcp(POD, 40_000, OTHER_POD, 80, ACK).tos(0xbb);
        for (packet, sent) in [
            (&over_tcp, to_backend(&over_tcp, 8080)),
            (&over_udp, to_backend(&over_udp, 5353)),
            (&unchecked, to_backend(&unchecked, 5353)),
            (&direct, direct.clone()),
        ] {
            let sent = sent.aged().bytes();
            settle(&mut dataplane, packet);
            for _ in 0..3 {
                dataplane.run(PROGRAM, &packet.bytes()).is(Redirect, &sent, &["to_local_pod"]);
            }
        }
        let remote = udp(POD, 40_000, REMOTE_POD, 53).tos(0x03);
        settle(&mut dataplane, &remote);
        let mut ids = Vec::new();
        for _ in 0..3 {
            let outcome = dataplane.run(PROGRAM, &remote.bytes());
            ids.push(u16::from_be_bytes([outcome.packet[18], outcome.packet[19]]));
            outcome.tunnelled(0x03, &["to_tunnel"], &ETHERNET).is(Redirect, &remote.clone().aged().bytes(), &["to_tunnel"]);
        }
        assert!(ids.windows(2).any(|pair| pair[1] == pair[0].wrapping_add(1)), "{ids:?} are not consecutive");
    }
}

#[test]
fn a_flow_under_way_needs_no_entry() {
    let mut dataplane = dataplane();
    let segment = tcp(POD, 40_000, VIP, 80, ACK);
    let sent = segment.clone().to(OTHER_POD).dport(8080).aged().bytes();
    assert!(is_short(&mut dataplane, &tcp(POD, 40_000, VIP, 80, SYN), PROGRAM, &segment.bytes(), &sent));
    let datagram = udp(POD, 40_000, VIP, 53);
    let sent = datagram.clone().to(OTHER_POD).dport(5353).aged().bytes();
    assert!(is_short(&mut dataplane, &datagram, PROGRAM, &datagram.bytes(), &sent));
}

#[test]
fn the_entry_hears_of_its_flow_again_before_long() {
    let mut dataplane = dataplane();
    let packet = udp(POD, 40_000, VIP, 53).bytes();
    for _ in 0..3 {
        dataplane.run(PROGRAM, &packet);
    }
    dataplane.lose_flows();
    let start = Instant::now();
    while dataplane.flows().is_empty() {
        assert_eq!(dataplane.run(PROGRAM, &packet).verdict, Redirect);
        assert!(start.elapsed() < Duration::from_secs(2), "a shortcut without an end");
    }
}

#[test]
fn a_change_of_addresses_ends_shortcuts() {
    let mut dataplane = dataplane();
    let through = udp(POD, 40_000, VIP, 53);
    let direct = tcp(POD, 40_000, OTHER_POD, 80, ACK);
    for packet in [&through, &direct] {
        settle(&mut dataplane, packet);
    }
    let moved = Address {
        underlay: PEER_IP.parse::<std::net::Ipv4Addr>().unwrap().into(),
        mac: Mac { bytes: PEER_MAC },
        ..address(kind::NODE)
    };
    dataplane.address(OTHER_POD, moved);
    dataplane.begin_epoch();
    for packet in [through, direct] {
        dataplane.run(PROGRAM, &packet.bytes()).tunnelled(0, &["to_tunnel"], &ETHERNET);
    }
}

#[test]
fn a_connection_opened_anew_on_another_cpu_is_a_new_one_everywhere() {
    let mut dataplane = dataplane();
    let packet = tcp(POD, 40_000, VIP, 80, ACK);
    run_on(0);
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, SYN).bytes());
    settle(&mut dataplane, &packet);
    let old = packet.clone().to(OTHER_POD).dport(8080).aged().bytes();
    dataplane.run(PROGRAM, &packet.bytes()).is(Redirect, &old, &["to_local_pod"]);

    dataplane.service(VIP, 80, proto::TCP, &[(POD_3, 9090)]);
    run_on(1);
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, RST).bytes());
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, SYN).bytes());
    run_on(0);
    let new = packet.clone().to(POD_3).dport(9090).aged().bytes();
    dataplane.run(PROGRAM, &packet.bytes()).is(Redirect, &new, &["to_local_pod"]);
}

#[test]
fn what_was_untracked_is_looked_up_once_a_flow_is_opened_over_it() {
    let mut dataplane = dataplane();
    // A segment of a connection that nobody here opened, in the direction of an answer.
    let answer = tcp(OTHER_POD, 8080, POD, 40_000, ACK);
    dataplane.address(OTHER_POD, Address { mac: Mac { bytes: [2; 6] }, ..address(kind::POD) });
    dataplane.begin_epoch();
    settle(&mut dataplane, &answer);
    dataplane.run(PROGRAM, &answer.bytes()).is(Redirect, &answer.clone().aged().bytes(), &["to_local_pod"]);
    run_on(1);
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, SYN).bytes());
    run_on(0);
    let translated = answer.clone().from(VIP).sport(80).aged().bytes();
    dataplane.run(PROGRAM, &answer.bytes()).is(Redirect, &translated, &["to_local_pod"]);
}

#[test]
fn a_datagram_leaves_a_backend_that_is_gone_and_a_segment_stays() {
    let mut dataplane = dataplane();
    let datagram = udp(POD, 40_000, VIP, 53);
    let segment = tcp(POD, 40_000, VIP, 80, ACK);
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 80, SYN).bytes());
    for packet in [&datagram, &segment] {
        settle(&mut dataplane, packet);
    }
    // `service` gave the ids 1 and 2.
    let stays = segment.clone().to(OTHER_POD).dport(8080).aged().bytes();
    let moves = datagram.clone().to(POD_3).dport(53).aged().bytes();
    dataplane.service(VIP, 53, proto::UDP, &[(POD_3, 53)]);
    for id in [1, 2] {
        dataplane.backend(id, "0.0.0.0", 0, state::FREE, 1);
    }
    dataplane.run(PROGRAM, &segment.bytes()).is(Redirect, &stays, &["to_local_pod"]);
    dataplane.run(PROGRAM, &datagram.bytes()).is(Redirect, &moves, &["service_new_flow", "to_local_pod"]);
    // The id's next tenant is another, though it is in use.
    settle(&mut dataplane, &datagram);
    dataplane.backend(3, OTHER_POD, 54, state::ACTIVE, 2);
    let moves = datagram.clone().to(OTHER_POD).dport(54).aged().bytes();
    dataplane.run(PROGRAM, &datagram.bytes()).is(Redirect, &moves, &["service_new_flow", "to_local_pod"]);
}

#[test]
fn a_shortcut_is_no_licence_to_spoof() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    let added =
        std::process::Command::new("ip").args(["link", "add", "other", "type", "veth", "peer", "name", "another"]).status();
    assert!(added.is_ok_and(|status| status.success()), "a second interface");
    let mut dataplane = dataplane();
    let packet = udp(POD, 40_000, VIP, 53);
    settle(&mut dataplane, &packet);
    dataplane.ingress = nix::net::if_::if_nametoindex("other").expect("the second interface");
    dataplane.run(PROGRAM, &packet.bytes()).is(Drop, &packet.bytes(), &["source_spoofed"]);
}

#[test]
fn what_comes_out_of_the_tunnel_has_shortcuts_too() {
    let mut dataplane = dataplane();
    dataplane.service(VIP, 81, proto::TCP, &[(REMOTE_POD, 8080)]);
    dataplane.run(PROGRAM, &tcp(POD, 40_000, VIP, 81, SYN).bytes());
    let direct = udp(REMOTE_POD, 40_000, POD, 53).tos(0xb8);
    let answer = tcp(REMOTE_POD, 8080, POD, 40_000, ACK);
    for (inner, delivered) in [(&direct, direct.clone()), (&answer, answer.clone().from(VIP).sport(81))] {
        let arriving = tunnel(PEER_IP, inner, 0).bytes();
        let popped = [&ETHERNET[..], &delivered.aged().bytes()[14..]].concat();
        for _ in 0..4 {
            dataplane.run("from_wire", &arriving).is(Redirect, &popped, &["from_tunnel", "to_local_pod"]);
        }
        // From somebody who is no node, and from the pod itself, the same packet is none of it.
        let stranger = tunnel("192.0.2.66", inner, 0).bytes();
        dataplane.run("from_wire", &stranger).is(Drop, &stranger, &["tunnel_peer_unknown"]);
        dataplane.run(PROGRAM, &inner.bytes()).is(Drop, &inner.bytes(), &["source_spoofed"]);
        // Congestion is marked on packets one by one.
        let congested = dataplane.run("from_wire", &tunnel(PEER_IP, inner, 3).bytes());
        assert_eq!(congested.counted.get("tunnel_ecn"), Some(&1));
    }
    let popped = [&ETHERNET[..], &answer.clone().from(VIP).sport(81).aged().bytes()[14..]].concat();
    let arriving = tunnel(PEER_IP, &answer, 0).bytes();
    assert!(is_short(&mut dataplane, &tcp(POD, 40_000, VIP, 81, SYN), "from_wire", &arriving, &popped));
    // The peer is no node any more.
    dataplane.address(PEER_IP, address(kind::SERVICE));
    dataplane.begin_epoch();
    dataplane.run("from_wire", &arriving).is(Drop, &arriving, &["tunnel_peer_unknown"]);
}

/// Runs a command of iproute2 or sysctl in this thread's namespace.
pub(crate) fn system(command: &str) {
    let mut words = command.split_whitespace();
    let program = shunt_lab::command::program(words.next().expect("a command").as_ref());
    let output = std::process::Command::new(program).args(words).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A node whose underlay is a link with neighbours, in a namespace of this thread's.
fn on_a_link() -> Dataplane {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
    system("ip link add underlay address 02:00:00:00:00:01 type veth peer name wire");
    system("ip link set wire up");
    system(&format!("ip addr add {NODE_IP}/24 dev underlay"));
    system("ip link set underlay up");
    system("ip link set lo up");
    system("sysctl -qw net.ipv4.conf.underlay.forwarding=1");
    let underlay = nix::net::if_::if_nametoindex("underlay").expect("the underlay");
    serve(Dataplane::on(underlay, &SkbAccess::of_this_kernel().expect("a kernel that describes its types")))
}

#[test]
fn a_tunnel_packet_by_a_shortcut_has_the_next_hops_mac() {
    let mut dataplane = on_a_link();
    let packet = udp(POD, 40_000, REMOTE_POD, 53);
    // By the long way, and where nobody knows the neighbour, the header is left as it was to the kernel, which asks.
    let left = ETHERNET;
    let station = |mac| [&[2, 0, 0, 0, 0, mac][..], &[2, 0, 0, 0, 0, 1, 8, 0]].concat().try_into().expect("a header");
    let send = |dataplane: &mut Dataplane| -> [u8; 14] {
        let outcome = dataplane.run(PROGRAM, &packet.bytes());
        outcome.tunnelled(0, &["to_tunnel"], &ETHERNET);
        outcome.packet[..14].try_into().expect("a header")
    };
    let comes_to = |dataplane: &mut Dataplane, header: [u8; 14]| {
        let start = Instant::now();
        while send(dataplane) != header {
            assert!(start.elapsed() < Duration::from_secs(2), "{header:x?} never comes");
        }
    };
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        assert_eq!(send(&mut dataplane), left);
    }
    for mac in [2, 3] {
        system(&format!("ip neigh replace {PEER_IP} lladdr 02:00:00:00:00:0{mac} dev underlay nud reachable"));
        comes_to(&mut dataplane, station(mac));
    }
    dataplane.begin_epoch();
    assert_eq!(send(&mut dataplane), left, "addresses or routes have changed: all is looked up anew");
    comes_to(&mut dataplane, station(3));
    system(&format!("ip neigh del {PEER_IP} dev underlay"));
    comes_to(&mut dataplane, left);
    // A shortcut of its own that knows no link, not the long way before one.
    let unknown = (0..TRIES).map(|_| send(&mut dataplane));
    assert!(unknown.into_iter().all(|header| header == left));
}

#[test]
fn a_tunnel_packet_by_a_shortcut_goes_by_the_router() {
    let mut dataplane = on_a_link();
    // Beyond the underlay's own subnet.
    let underlay = "203.0.113.2".parse::<std::net::Ipv4Addr>().unwrap().into();
    let route = Route { kind: route::TUNNEL, underlay, mac: Mac { bytes: PEER_MAC }, flags: 0 };
    dataplane.route("10.244.3.0", 24, route);
    system("ip route add default via 192.0.2.254");
    system("ip neigh replace 192.0.2.254 lladdr 02:00:00:00:00:fe dev underlay nud reachable");
    let packet = udp(POD, 40_000, "10.244.3.2", 53).bytes();
    let start = Instant::now();
    while dataplane.run(PROGRAM, &packet).packet[..14] != [2, 0, 0, 0, 0, 0xfe, 2, 0, 0, 0, 0, 1, 8, 0] {
        assert!(start.elapsed() < Duration::from_secs(2), "never by the router");
    }
    // Another interface than the underlay is the kernel's to find.
    system("ip route replace default dev lo");
    while dataplane.run(PROGRAM, &packet).packet[..14] != ETHERNET {
        assert!(start.elapsed() < Duration::from_secs(4), "the router for ever");
    }
}

#[test]
fn whoever_comes_last_has_the_slot() {
    let mut dataplane = dataplane();
    // More flows than the table remembers, and than a CPU has slots: each is right whatever slot it shares.
    for port in 1..=6_000 {
        let packet = tcp(POD, port, OTHER_POD, 80, ACK);
        dataplane.run(PROGRAM, &packet.bytes());
        if port % 500 == 0 {
            dataplane.run(PROGRAM, &packet.bytes()).is(Redirect, &packet.aged().bytes(), &["to_local_pod"]);
        }
    }
}
