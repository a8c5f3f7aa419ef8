//! ClusterIP Services as clients see them, from pods and from processes of nodes.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b
//!                       +-- n2 -- pod c
//! ```

use std::{collections::BTreeSet, net::SocketAddrV4};

use anyhow::{Result, ensure};
use shunt_common::verdict::DropReason;
use shunt_lab::{
    both_translations,
    cluster::Endpoint,
    lab::{Lab, eventually},
    service::{PORT, PORTS, SOON, Service, TARGET, refused, serve, serve_pod, tcp_answer, udp_answer},
    topology::{OUTSIDE, PAIR},
    traffic::echo::{TcpClient, UdpClient, ask_tcp, ask_udp},
    translation::Translation,
};

both_translations!(
    every_backend_serves_pods_which_keep_their_address,
    processes_of_nodes_are_served_too,
    a_pod_reaches_itself_through_its_service,
    a_node_reaches_its_own_process_through_a_service,
    backends_on_the_host_network_serve_pods_and_nodes,
    a_backend_outside_of_the_cluster_serves_pods,
    without_endpoints_clients_are_refused_at_once,
    an_undefined_port_is_refused_and_never_leaves_the_node,
    one_client_port_through_two_virtual_ips_to_one_backend_is_two_connections,
    one_client_port_to_a_backend_directly_and_through_its_service_is_two_connections,
    a_client_port_used_for_a_service_is_free_for_direct_connections_afterwards,
    two_clients_of_the_node_with_one_port_are_told_apart,
);

/// End to end:
/// - `should be able to handle large requests: http`
fn every_backend_serves_pods_which_keep_their_address(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    let service = Service::create(&lab, "web", 10, &[&b, &c])?;
    let (mut tcp, mut udp) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..40 {
        let (one, other) = (tcp_answer(&a.netns, service.vip)?, udp_answer(&a.netns, service.vip)?);
        ensure!(*one.peer.ip() == a.address && *other.peer.ip() == a.address, "{one:?} {other:?}");
        tcp.insert(one.server);
        udp.insert(other.server);
    }
    let all = BTreeSet::from(["b".to_owned(), "c".to_owned()]);
    ensure!(tcp == all && udp == all, "TCP {tcp:?}, UDP {udp:?}");
    for _ in 0..4 {
        ask_tcp(&a.netns, service.vip, &vec![1; 4 << 20])?;
    }
    Ok(())
}

fn processes_of_nodes_are_served_too(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let (b, c) = (lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    let service = Service::create(&lab, "web", 10, &[&b, &c])?;
    for node in &lab.nodes {
        let (mut tcp, mut udp) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..40 {
            let (one, other) = (tcp_answer(&node.netns, service.vip)?, udp_answer(&node.netns, service.vip)?);
            ensure!(*one.peer.ip() == node.address() && *other.peer.ip() == node.address(), "{one:?} {other:?}");
            tcp.insert(one.server);
            udp.insert(other.server);
        }
        ensure!(tcp.len() == 2 && udp.len() == 2, "from {}: TCP {tcp:?}, UDP {udp:?}", node.name);
        ask_tcp(&node.netns, service.vip, &vec![1; 2 << 20])?;
    }
    Ok(())
}

/// End to end:
/// - `should allow pods to hairpin back to themselves through services`
fn a_pod_reaches_itself_through_its_service(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let a = lab.pod("n1", "a")?;
    let _server = serve_pod(&a)?;
    let service = Service::create(&lab, "self", 10, &[&a])?;
    ensure!(tcp_answer(&a.netns, service.vip)?.server == "a");
    ensure!(udp_answer(&a.netns, service.vip)?.server == "a");
    ask_tcp(&a.netns, service.vip, &vec![1; 1 << 20])?;
    Ok(())
}

fn a_node_reaches_its_own_process_through_a_service(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let n1 = lab.node("n1");
    let _server = serve(&n1.netns, n1.address(), "n1")?;
    let service = Service::create(&lab, "host", 10, &[])?;
    service.set(&lab, &PORTS, &[Endpoint::ready(n1.address(), "n1")])?;
    ensure!(tcp_answer(&n1.netns, service.vip)?.server == "n1");
    ensure!(udp_answer(&n1.netns, service.vip)?.server == "n1");
    Ok(())
}

fn backends_on_the_host_network_serve_pods_and_nodes(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let a = lab.pod("n1", "a")?;
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    let _servers = (serve(&n1.netns, n1.address(), "n1")?, serve(&n2.netns, n2.address(), "n2")?);
    let service = Service::create(&lab, "host", 10, &[])?;
    for backend in [n1, n2] {
        service.set(&lab, &PORTS, &[Endpoint::ready(backend.address(), &backend.name)])?;
        for client in [&a.netns, &n1.netns, &n2.netns] {
            let check = || -> Result<()> {
                ensure!(tcp_answer(client, service.vip)?.server == backend.name);
                ensure!(udp_answer(client, service.vip)?.server == backend.name);
                Ok(())
            };
            check().map_err(|error| error.context(format!("{} through the Service to {}", client.name(), backend.name)))?;
        }
    }
    Ok(())
}

fn a_backend_outside_of_the_cluster_serves_pods(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let a = lab.pod("n1", "a")?;
    let _server = serve(lab.outside(), OUTSIDE, "outside")?;
    let service = Service::create(&lab, "external", 10, &[])?;
    service.set(&lab, &PORTS, &[Endpoint::ready(OUTSIDE, "")])?;
    let answer = tcp_answer(&a.netns, service.vip)?;
    ensure!(*answer.peer.ip() == lab.node("n1").address(), "the outside sees {}", answer.peer);
    udp_answer(&a.netns, service.vip)?;
    Ok(())
}

/// End to end:
/// - `should be rejected when no endpoints exist`
fn without_endpoints_clients_are_refused_at_once(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let a = lab.pod("n1", "a")?;
    let n1 = lab.node("n1");
    let service = Service::create(&lab, "empty", 10, &[])?;
    for client in [&a.netns, &n1.netns] {
        let before = n1.drops(DropReason::NoEndpoints)?;
        refused(client, service.vip)?;
        // One packet of TCP and one of UDP: had the first refusal been missed, there would be a second try.
        let refusals = n1.drops(DropReason::NoEndpoints)? - before;
        ensure!(refusals == 2, "{} needed {refusals} packets to see two refusals", client.name());
    }
    Ok(())
}

fn an_undefined_port_is_refused_and_never_leaves_the_node(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    let undefined = SocketAddrV4::new(*service.vip.ip(), PORT + 1);
    let before = lab.node("n1").drops(DropReason::ServicePortUndefined)?;
    refused(&a.netns, undefined)?;
    refused(&lab.node("n1").netns, undefined)?;
    ensure!(lab.node("n1").drops(DropReason::ServicePortUndefined)? >= before + 4);
    Ok(())
}

fn one_client_port_through_two_virtual_ips_to_one_backend_is_two_connections(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    for (index, backend) in [(10, &b), (20, &c)] {
        let one = Service::create(&lab, &format!("one{index}"), index, &[backend])?;
        let other = Service::create(&lab, &format!("other{index}"), index + 1, &[backend])?;
        let port = 40_000 + u16::from(index);
        let mut first = TcpClient::connect_from(&a.netns, port, one.vip)?;
        let mut second = TcpClient::connect_from(&a.netns, port, other.vip)?;
        first.exchange(b"first")?;
        second.exchange(b"second")?;
        first.exchange(b"first again")?;
        let udp = UdpClient::bind(&a.netns, port)?;
        udp.ask(one.vip, b"first")?;
        udp.ask(other.vip, b"second")?;
        udp.ask(one.vip, b"first again")?;
    }
    Ok(())
}

fn one_client_port_to_a_backend_directly_and_through_its_service_is_two_connections(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    for (index, backend) in [(10, &b), (20, &c)] {
        let service = Service::create(&lab, &format!("web{index}"), index, &[backend])?;
        let direct = SocketAddrV4::new(backend.address, TARGET);
        let port = 41_000 + u16::from(index);
        let mut through = TcpClient::connect_from(&a.netns, port, service.vip)?;
        let mut straight = TcpClient::connect_from(&a.netns, port, direct)?;
        through.exchange(b"through")?;
        straight.exchange(b"straight")?;
        through.exchange(b"through again")?;
        let udp = UdpClient::bind(&a.netns, port)?;
        udp.ask(service.vip, b"through")?;
        udp.ask(direct, b"straight")?;
        udp.ask(service.vip, b"through again")?;
    }
    Ok(())
}

fn a_client_port_used_for_a_service_is_free_for_direct_connections_afterwards(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&b)?;
    let service = Service::create(&lab, "web", 10, &[&b])?;
    let direct = SocketAddrV4::new(b.address, TARGET);
    for port in 42_000..42_020 {
        TcpClient::connect_from(&a.netns, port, service.vip)?.exchange(b"through")?;
        let mut straight = eventually(SOON, || Ok(TcpClient::connect_from(&a.netns, port, direct)?))?;
        straight.exchange(b"straight")?;
    }
    Ok(())
}

fn two_clients_of_the_node_with_one_port_are_told_apart(translation: Translation) -> Result<()> {
    let lab = Lab::build_with(&PAIR, translation)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let n1 = lab.node("n1");
    let _server = serve_pod(&c)?;
    let service = Service::create(&lab, "web", 10, &[&c])?;
    let mut pod = TcpClient::connect_from(&a.netns, 43_000, service.vip)?;
    let mut host = TcpClient::connect_from(&n1.netns, 43_000, service.vip)?;
    pod.exchange(b"pod")?;
    host.exchange(b"host")?;
    pod.exchange(b"pod again")?;
    ask_udp(&n1.netns, service.vip, b"and UDP")?;
    Ok(())
}
