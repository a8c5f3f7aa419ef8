//! Devices, routes and settings in a network namespace of each test's own, which goes with the test's thread. Needs root.
//!
//! ```text
//!   [ test's namespace ]   wire9 == eth9 (192.0.2.1/24)   shunt0   shunt0123456789 == its peer
//! ```

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    thread,
};

use ipnet::Ipv4Net;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    LinkUnspec,
    packet_core::Nla as _,
    packet_route::{RouteNetlinkMessage, link::LinkAttribute},
};
use shunt::kernel::{
    headroom::{self, BRIDGE},
    links::{self, Kind, LinksError, TUNNEL, TunnelSpec},
    netlink::Netlink,
    routes::{self, PodSide, Via},
    sysctl,
};
use shunt_common::net::Mac;

const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const MAC: Mac = Mac { bytes: [0x72, 0x73, 192, 0, 2, 1] };
const SPEC: TunnelSpec = TunnelSpec { port: 8472, mtu: 1450, mac: MAC };

/// Runs a test in a fresh network namespace with an underlay.
fn in_namespace(test: fn(&mut Netlink)) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        ip("link add eth9 type veth peer name wire9");
        ip("link set wire9 up");
        ip("address add 192.0.2.1/24 dev eth9");
        ip("link set eth9 up");
        test(&mut Netlink::open().unwrap());
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn tunnel(netlink: &mut Netlink) -> Via {
    let tunnel = links::ensure_tunnel(netlink, &SPEC).unwrap();
    let via = Via { tunnel: tunnel.index, node_ip: NODE_IP };
    via.set_up(netlink, MAC).unwrap();
    via
}

#[test]
fn the_underlay_is_found_by_address_or_name() {
    in_namespace(|netlink| {
        assert_eq!(links::find_underlay(netlink, None, NODE_IP).unwrap().name, "eth9");
        assert_eq!(links::find_underlay(netlink, Some("lo"), NODE_IP).unwrap().name, "lo");
        let error = links::find_underlay(netlink, Some("eth7"), NODE_IP).unwrap_err();
        assert!(
            matches!(&error, LinksError::UnknownInterface { present, .. } if present.contains(&"eth9".to_owned())),
            "{error}"
        );
        let error = links::find_underlay(netlink, None, Ipv4Addr::new(198, 51, 100, 1)).unwrap_err().to_string();
        assert!(error.contains("198.51.100.1") && error.contains("status.addresses"), "{error}");
        ip("link set eth9 mtu 600");
        assert!(matches!(links::find_underlay(netlink, None, NODE_IP), Err(LinksError::MtuTooSmall { mtu: 600, .. })));
    });
}

#[test]
fn the_tunnel_device_is_made_once_and_mended() {
    in_namespace(|netlink| {
        let first = links::ensure_tunnel(netlink, &SPEC).unwrap();
        assert!(first.created && first.without_gro.is_none());
        let link = links::by_name(netlink, TUNNEL).unwrap().unwrap();
        assert_eq!(
            (link.kind, link.mtu, link.mac, link.up),
            (Kind::Vxlan { vni: 0, port: 8472, external: true }, 1450, Some(MAC), true)
        );
        assert!(ip("link show shunt0").contains("NOARP"));

        let again = links::ensure_tunnel(netlink, &SPEC).unwrap();
        assert_eq!((again.index, again.created), (first.index, false));

        ip("link set shunt0 down mtu 1280 address 02:00:00:00:00:01");
        assert_eq!(links::ensure_tunnel(netlink, &SPEC).unwrap().index, first.index);
        let link = links::by_name(netlink, TUNNEL).unwrap().unwrap();
        assert_eq!((link.mtu, link.mac, link.up), (1450, Some(MAC), true));

        let other = links::ensure_tunnel(netlink, &TunnelSpec { port: 4789, ..SPEC }).unwrap();
        assert!(other.created, "a port cannot be changed in place");
    });
}

#[test]
fn a_taken_port_costs_gro_and_no_more() {
    in_namespace(|netlink| {
        let socket = UdpSocket::bind("0.0.0.0:8472").unwrap();
        let tunnel = links::ensure_tunnel(netlink, &SPEC).unwrap();
        let reason = tunnel.without_gro.unwrap();
        assert!(reason.contains("8472") && reason.contains("GRO"), "{reason}");
        assert_eq!(links::by_name(netlink, TUNNEL).unwrap().unwrap().kind, Kind::Vxlan { vni: 0, port: 8473, external: true });
        let again = links::ensure_tunnel(netlink, &SPEC).unwrap();
        assert!(!again.created && again.without_gro.is_some(), "a restart keeps what there is while the port is taken");
        drop(socket);
        assert_eq!(links::ensure_tunnel(netlink, &SPEC).unwrap().without_gro, None, "the next start finds it free");
    });
}

#[test]
fn a_foreign_device_of_our_name_is_left_alone() {
    in_namespace(|netlink| {
        ip("link add shunt0 type bridge");
        assert!(matches!(links::ensure_tunnel(netlink, &SPEC), Err(LinksError::Foreign(TUNNEL))));
        assert!(ip("-d link show shunt0").contains("bridge"));
    });
}

/// Bytes that a device wants in front of what it sends; `None` where the kernel doesn't say (before 6.14).
fn needed_headroom(netlink: &mut Netlink, name: &str) -> Option<u16> {
    /// include/uapi/linux/if_link.h.
    const IFLA_HEADROOM: u16 = 68;
    let query = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build());
    let RouteNetlinkMessage::NewLink(link) = netlink.get(query).unwrap() else { panic!("no link") };
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Other(value) if value.kind() == IFLA_HEADROOM => {
            let mut bytes = [0; 2];
            value.emit_value(&mut bytes);
            Some(u16::from_ne_bytes(bytes))
        }
        _ => None,
    })
}

#[test]
fn what_a_pod_sends_has_room_for_the_tunnels_headers() {
    in_namespace(|netlink| {
        let bridge = headroom::ensure(netlink, MAC).unwrap();
        ip("link add shunt0123456789 type veth peer name eth7");
        let port = links::by_name(netlink, "shunt0123456789").unwrap().unwrap();
        for _ in 0..2 {
            headroom::join(netlink, bridge, port.index, &port.name, Some(MAC)).unwrap();
            let shown = ip("-d link show shunt0123456789");
            for expected in
                ["master shunt-pods", "learning off", "isolated on", " flood off", "mcast_flood off", "bcast_flood off"]
            {
                assert!(shown.contains(expected), "{expected} is missing: {shown}");
            }
            assert_eq!(headroom::ensure(netlink, MAC).unwrap(), bridge, "made once");
        }
        let link = links::by_name(netlink, BRIDGE).unwrap().unwrap();
        assert_eq!((link.mac, link.up), (Some(MAC), true));
        match needed_headroom(netlink, "eth7") {
            Some(room) => assert!(u32::from(room) >= links::ENCAPSULATION, "only {room} bytes"),
            None => eprintln!("not looked at: this kernel doesn't say how much room a device wants"),
        }

        headroom::remove(netlink).unwrap();
        assert_eq!(links::by_name(netlink, BRIDGE).unwrap(), None);
        assert!(links::by_name(netlink, "shunt0123456789").unwrap().is_some(), "a pod does without");
        headroom::remove(netlink).unwrap();
        ip("link add shunt-pods type veth peer name eth8");
        let error = headroom::ensure(netlink, MAC).unwrap_err();
        assert!(matches!(error, LinksError::Foreign(BRIDGE)), "{error}");
    });
}

#[test]
fn ten_thousand_routes_come_and_go() {
    in_namespace(|netlink| {
        let via = tunnel(netlink);
        assert_eq!(via.list(netlink).unwrap(), BTreeSet::new(), "the fixed ones are not counted");
        let prefixes: Vec<Ipv4Net> = (0..10_000u32)
            .map(|i| Ipv4Net::from(Ipv4Addr::from(0x0a60_0000 + i)))
            .chain(["10.244.2.0/24".parse().unwrap()])
            .collect();
        via.add(netlink, &prefixes).unwrap();
        via.add(netlink, &prefixes).unwrap();
        assert_eq!(via.list(netlink).unwrap(), prefixes.iter().copied().collect());
        let route = ip("route show 10.244.2.0/24");
        assert_eq!(route.trim(), "10.244.2.0/24 via 169.254.1.1 dev shunt0 proto 83 src 192.0.2.1 onlink");

        ip("route del 10.96.0.5");
        via.remove(netlink, &prefixes[..10]).unwrap();
        assert_eq!(via.list(netlink).unwrap(), prefixes[10..].iter().copied().collect());

        ip("route add 203.0.113.0/24 dev eth9");
        routes::remove_all(netlink).unwrap();
        assert_eq!(via.list(netlink).unwrap(), BTreeSet::new());
        assert!(ip("route").contains("203.0.113.0/24"), "others' routes stay");
        assert!(!ip("route").contains("proto 83"));
    });
}

#[test]
fn routes_of_others_stay_and_ours_are_replaced() {
    in_namespace(|netlink| {
        let via = tunnel(netlink);
        // Another's, one without a way, one that policy rules hide, one of ours from before, one that lives beside ours, and a free place.
        let others = [
            ("10.96.0.1", "via 192.0.2.9 dev eth9 proto static"),
            ("blackhole 10.96.0.2", "proto boot"),
            ("10.244.2.0/24", "dev eth9 proto 186 scope link"),
            ("10.96.0.3", "dev eth9 proto 83 scope link"),
            ("10.96.0.4", "dev eth9 proto static metric 100"),
        ];
        for (prefix, way) in others {
            ip(&format!("route add {prefix} {way}"));
        }
        for hidden in ["10.244.0.0/16", "10.96.0.3/32"] {
            ip(&format!("rule add pref 10 to {hidden} lookup 1234"));
            ip(&format!("route add {hidden} dev eth9 table 1234"));
        }
        let prefixes = ["10.96.0.1/32", "10.96.0.2/32", "10.244.2.0/24", "10.96.0.3/32", "10.96.0.4/32", "10.96.0.5/32"];
        let prefixes = prefixes.map(|prefix| prefix.parse().unwrap());
        let before =
            ip("route show exact 10.96.0.1") + &ip("route show exact 10.96.0.2") + &ip("route show exact 10.244.2.0/24");
        for _ in 0..2 {
            let contested = via.add(netlink, &prefixes).unwrap();
            let contested: Vec<_> = contested.iter().map(|(prefix, route)| format!("{prefix} {route}")).collect();
            assert_eq!(
                contested,
                [
                    "10.96.0.1/32 via 192.0.2.9 dev eth9 proto static",
                    "10.96.0.2/32 proto boot",
                    "10.244.2.0/24 dev eth9 proto bgp"
                ]
            );
            assert_eq!(via.list(netlink).unwrap(), prefixes[3..].iter().copied().collect());
        }
        via.remove(netlink, &prefixes).unwrap();
        let after =
            ip("route show exact 10.96.0.1") + &ip("route show exact 10.96.0.2") + &ip("route show exact 10.244.2.0/24");
        assert_eq!(after, before);
        assert_eq!(ip("route show exact 10.96.0.4").trim(), "10.96.0.4 dev eth9 proto static scope link metric 100");
        assert_eq!(via.list(netlink).unwrap(), BTreeSet::new());
    });
}

#[test]
fn a_route_that_the_kernel_refuses_is_named() {
    in_namespace(|netlink| {
        let via = tunnel(netlink);
        let prefixes = ["10.96.0.1/32", "10.96.0.2/32"].map(|prefix| prefix.parse().unwrap());
        let gone = Via { tunnel: 4242, ..via };
        let (index, error) = gone.add(netlink, &prefixes).unwrap_err();
        assert_eq!(index, 0);
        assert!(error.to_string().contains("10.96.0.1/32"), "{error}");
    });
}

#[test]
fn a_pods_host_side_is_set_up_and_listed() {
    in_namespace(|netlink| {
        let via = tunnel(netlink);
        ip("link add shunt0123456789 type veth peer name peer9");
        ip("link set peer9 up");
        let link = links::by_name(netlink, "shunt0123456789").unwrap().unwrap();
        assert!(links::is_pod_side(&link));
        let pod = PodSide {
            name: &link.name,
            index: link.index,
            address: Ipv4Addr::new(10, 244, 1, 2),
            mac: Mac { bytes: [0x72, 0x70, 10, 244, 1, 2] },
            node_ip: NODE_IP,
        };
        routes::set_up_pod(netlink, &pod).unwrap();
        routes::set_up_pod(netlink, &pod).unwrap();
        sysctl::apply(&sysctl::of_pod(&link.name)).unwrap();
        assert_eq!(ip("route show 10.244.1.2").trim(), "10.244.1.2 dev shunt0123456789 proto 83 scope link src 192.0.2.1");
        assert!(ip("neighbour show dev shunt0123456789").contains("10.244.1.2 lladdr 72:70:0a:f4:01:02 PERMANENT"));
        for device in ["shunt0", "shunt0123456789"] {
            let addresses = ip(&format!("address show dev {device}"));
            assert!(addresses.contains("inet 169.254.1.3/32 scope host"), "without one, rp_filter drops: {addresses}");
        }
        let routes = routes::pod_routes(netlink, via.tunnel).unwrap();
        assert_eq!(routes, [("10.244.1.2/32".parse().unwrap(), link.index)]);
        assert_eq!(via.list(netlink).unwrap(), BTreeSet::new(), "a pod's route is no host route");
        let mut is_there = |index| routes::has_pod_route(netlink, via.tunnel, pod.address, index).unwrap();
        assert!(is_there(link.index) && !is_there(via.tunnel));
        // Somebody's rules and a table of theirs come first: it is there all the same.
        ip("rule add pref 10 lookup 1234");
        ip("route add 10.244.0.0/16 dev eth9 table 1234");
        assert!(is_there(link.index));
        ip("route del 10.244.1.2");
        assert!(!is_there(link.index));
        ip("rule del pref 10");
        assert!(!is_there(link.index));
        ip("route add 10.244.1.2 dev shunt0123456789");
        assert!(!is_there(link.index), "somebody else's");
        ip("route replace 10.244.1.2 dev eth9 proto 83");
        assert!(!is_there(link.index), "it leads elsewhere");
        ip("route del 10.244.1.2");
        routes::set_up_pod(netlink, &pod).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/conf/shunt0123456789/rp_filter").unwrap().trim(), "2");
        links::delete(netlink, link.index, &link.name).unwrap();
        links::delete(netlink, link.index, &link.name).unwrap();
        assert_eq!(routes::pod_routes(netlink, via.tunnel).unwrap(), []);
    });
}
