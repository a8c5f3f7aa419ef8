//! Fragments of translated datagrams, and ICMP errors about translated flows.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a (client), b
//!                       +-- n2 -- pod c
//! ```

use std::{io, net::SocketAddrV4};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use shunt_common::verdict::Counter;
use shunt_lab::{
    cluster::Endpoint,
    lab::{Lab, eventually},
    netns::Netns,
    pod::Pod,
    service::{PORTS, SOON, Service, TARGET, serve, serve_pod},
    topology::{OUTSIDE, PAIR, ROUTER_OUTSIDE},
    traffic::{
        echo::{TcpClient, UdpClient, ask_tcp, ask_udp},
        packet::{fragments, send_ipv4, udp},
    },
    translation::Translation,
};

/// A datagram in fragments of 1,200 bytes, sent in the order of `order`, is answered whole.
fn fragments_arrive(client: &Pod, to: SocketAddrV4, order: &[usize], id: u16) -> Result<()> {
    let payload: Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
    let socket = UdpClient::bind(&client.netns, 46_000)?;
    let whole = udp((client.address, 46_000), (*to.ip(), to.port()), &payload);
    let parts = fragments(&whole, 1200, id);
    let ordered: Vec<_> = order.iter().map(|index| parts[*index].clone()).collect();
    send_ipv4(&client.netns, &ordered)?;
    let mut buffer = vec![0; 65536];
    let (len, from) =
        socket.socket().recv_from(&mut buffer).with_context(|| format!("fragments in the order {order:?} to {to}"))?;
    ensure!(from == to.into(), "answered from {from}");
    ensure!(buffer[..len].ends_with(&payload), "the answer holds other bytes");
    Ok(())
}

/// End to end:
/// - `should be able to handle large requests: udp`
#[test]
fn fragments_reach_a_service_in_order_and_out_of_order() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    for (index, backend) in [(10u8, &b), (20, &c)] {
        let service = Service::create(&lab, &format!("web{index}"), index, &[backend])?;
        let id = u16::from(index) * 100;
        fragments_arrive(&a, service.vip, &[0, 1], id)?;
        fragments_arrive(&a, service.vip, &[1, 0], id + 1)?;
        fragments_arrive(&a, service.vip, &[1, 0], id + 2)?;
        fragments_arrive(&a, service.vip, &[0, 1], id + 3)?;
        ask_udp(&a.netns, service.vip, &vec![7; 2000])?;
    }
    Ok(())
}

#[test]
fn fragments_reach_pods_directly_in_order_and_out_of_order() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    for (id, backend) in [(10, &b), (20, &c)] {
        let direct = SocketAddrV4::new(backend.address, TARGET);
        fragments_arrive(&a, direct, &[0, 1], id)?;
        fragments_arrive(&a, direct, &[1, 0], id + 1)?;
    }
    Ok(())
}

#[test]
fn large_datagrams_of_a_node_reach_a_service() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (b, c) = (lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    for (index, backend) in [(10, &b), (20, &c)] {
        let service = Service::create(&lab, &format!("web{index}"), index, &[backend])?;
        ask_udp(&lab.node("n1").netns, service.vip, &vec![7; 2000])?;
    }
    Ok(())
}

#[test]
fn large_datagrams_of_a_pod_reach_the_outside() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let _outside = serve(lab.outside(), OUTSIDE, "outside")?;
    ask_udp(&a.netns, SocketAddrV4::new(OUTSIDE, TARGET), &vec![7; 4000])?;
    Ok(())
}

/// Makes the way beyond the router narrower than anybody says: the outside sends small segments but announces large ones.
fn narrow(lab: &Lab) -> Result<()> {
    let around = lab.surroundings.as_ref().context("no router")?;
    around.router.ip("link set outside mtu 1200")?;
    around.outside.ip(&format!("route replace 192.0.2.0/24 via {ROUTER_OUTSIDE} mtu lock 1200 advmss 1460"))?;
    Ok(())
}

/// A TCP stream whose segments are too big at first gets through, and its sender learnt the path's MTU.
fn learns_the_mtu(from: &Netns, to: SocketAddrV4) -> Result<()> {
    let mut client = TcpClient::connect(from, to)?;
    let before = client.max_segment()?;
    client.exchange(&vec![1; 500_000])?;
    let after = client.max_segment()?;
    ensure!(after <= 1200 - 40, "segments of {before} bytes at first, {after} in the end");
    Ok(())
}

#[test]
fn path_mtu_discovery_works_through_a_service() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Packet)?;
    let a = lab.pod("n1", "a")?;
    let _outside = serve(lab.outside(), OUTSIDE, "outside")?;
    let service = Service::create(&lab, "external", 10, &[])?;
    service.set(&lab, &PORTS, &[Endpoint::ready(OUTSIDE, "")])?;
    narrow(&lab)?;
    learns_the_mtu(&a.netns, service.vip).context("through the Service")
}

#[test]
fn path_mtu_discovery_works_for_masqueraded_flows() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let _outside = serve(lab.outside(), OUTSIDE, "outside")?;
    narrow(&lab)?;
    learns_the_mtu(&a.netns, SocketAddrV4::new(OUTSIDE, TARGET))
}

#[test]
fn a_closed_port_behind_a_service_is_reported_to_the_client() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Packet)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    for (index, backend) in [(10, &b), (20, &c)] {
        let service = Service::create(&lab, &format!("closed{index}"), index, &[backend])?;
        for client in [&a.netns, &lab.node("n1").netns] {
            shunt_lab::service::refused(client, service.vip).with_context(|| format!("backend {}", backend.name))?;
        }
    }
    Ok(())
}

/// What a UDP datagram with a time to live meets: an error of the way, or one of the target.
fn probe(from: &Netns, to: SocketAddrV4, ttl: i32) -> Result<io::ErrorKind> {
    let client = UdpClient::bind(from, 0)?;
    setsockopt(client.socket(), sockopt::Ipv4Ttl, &ttl)?;
    setsockopt(client.socket(), sockopt::Ipv4RecvErr, &true)?;
    client.connect(to)?;
    match client.ask(to, b"probe") {
        Ok(answer) => anyhow::bail!("{} answered", answer.server),
        Err(error) => Ok(error.kind()),
    }
}

#[test]
fn traceroute_sees_the_way_through_the_overlay_through_a_service_and_to_the_outside() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let service = Service::create(&lab, "closed", 10, &[&c])?;
    for to in [SocketAddrV4::new(c.address, TARGET), service.vip, SocketAddrV4::new(OUTSIDE, TARGET)] {
        let first = probe(&a.netns, to, 1)?;
        ensure!(first == io::ErrorKind::HostUnreachable, "{to}, one hop: {first}");
        let last = probe(&a.netns, to, 8)?;
        ensure!(last == io::ErrorKind::ConnectionRefused, "{to}, all the way: {last}");
    }
    Ok(())
}

#[test]
fn a_segment_too_big_for_the_tunnel_is_answered_with_its_mtu() -> Result<()> {
    let lab = Lab::build_with(&PAIR, Translation::Packet)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _server = serve_pod(&c)?;
    let service = Service::create(&lab, "web", 10, &[&c])?;
    // A pod whose MTU was raised by hand sends more than fits.
    a.netns.ip("link set eth0 mtu 1500")?;
    c.netns.ip("link set eth0 mtu 1500")?;
    ask_tcp(&a.netns, SocketAddrV4::new(c.address, TARGET), &vec![1; 300_000]).context("directly")?;
    ask_tcp(&a.netns, service.vip, &vec![1; 300_000]).context("through the Service")?;
    Ok(())
}

#[test]
fn trains_of_segments_too_big_for_the_way_out_are_answered_too() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let service = Service::create(&lab, "external", 10, &[])?;
    service.set(&lab, &PORTS, &[Endpoint::ready(OUTSIDE, "")])?;
    lab.set_underlay_mtu(1400)?;
    for to in [SocketAddrV4::new(OUTSIDE, TARGET), service.vip] {
        let client = UdpClient::bind(&a.netns, 0)?;
        setsockopt(client.socket(), sockopt::UdpGsoSegment, &1400)?;
        client.connect(to)?;
        let train = [7; 4 * 1400];
        client.socket().send(&train).with_context(|| format!("to {to}, whose way is not known to be narrow"))?;
        // Nothing else than the error tells the pod.
        eventually(SOON, || {
            ensure!(client.socket().send(&train).is_err(), "to {to}: the pod believes that 1,428 bytes fit");
            Ok(())
        })?;
    }
    Ok(())
}

/// A datagram of one packet, which whoever has to may cut, is answered, once for each of several destinations; the node has left it to its stack.
fn may_be_cut(lab: &Lab, client: &Pod, bytes: usize, to: &[SocketAddrV4]) -> Result<()> {
    let payload: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
    let socket = UdpClient::bind(&client.netns, 46_000)?;
    let mut buffer = vec![0; 65536];
    for (to, id) in to.iter().zip(1..) {
        let before = lab.node("n1").counter(Counter::SlowPath)?;
        let whole = udp((client.address, 46_000), (*to.ip(), to.port()), &payload);
        // Who answers may have to learn first how narrow its own way is.
        eventually(SOON, || {
            send_ipv4(&client.netns, &fragments(&whole, whole.len(), id))?;
            let (len, from) = socket.socket().recv_from(&mut buffer)?;
            ensure!(from == (*to).into(), "answered from {from}");
            ensure!(buffer[..len].ends_with(&payload), "the answer holds other bytes");
            Ok(())
        })
        .with_context(|| format!("{bytes} bytes to {to}"))?;
        ensure!(lab.node("n1").counter(Counter::SlowPath)? > before, "{bytes} bytes to {to} were not too big");
    }
    Ok(())
}

#[test]
fn what_may_be_cut_leaves_in_pieces_where_the_way_out_is_narrow() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let a = lab.pod("n1", "a")?;
    let _outside = serve(lab.outside(), OUTSIDE, "outside")?;
    let service = Service::create(&lab, "external", 10, &[])?;
    service.set(&lab, &PORTS, &[Endpoint::ready(OUTSIDE, "")])?;
    lab.set_underlay_mtu(1300)?;
    may_be_cut(&lab, &a, 1400, &[SocketAddrV4::new(OUTSIDE, TARGET), service.vip])
}

#[test]
fn what_may_be_cut_goes_through_the_tunnel_in_pieces() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _server = serve_pod(&c)?;
    let service = Service::create(&lab, "web", 10, &[&c])?;
    // A pod whose MTU was raised by hand sends more than fits, as far as its veth takes it: a VLAN's tag more than the MTU of the other end.
    a.netns.ip("link set eth0 mtu 1500")?;
    may_be_cut(&lab, &a, 1450 + 4 - 28, &[SocketAddrV4::new(c.address, TARGET), service.vip])
}
