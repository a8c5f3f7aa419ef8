//! Pods reach pods, nodes and the outside, and are seen as who they are.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b
//!                       +-- n2 -- pod c
//! ```

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use shunt_common::verdict::Counter;
use shunt_lab::{
    capture::Capture,
    lab::Lab,
    netns::Netns,
    service::{TARGET, serve, serve_pod, tcp_answer, udp_answer},
    topology::{OUTSIDE, PAIR},
    traffic::{
        echo::{UdpClient, ask_tcp, ask_udp},
        ping::ping,
    },
};

fn at(address: std::net::Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(address, TARGET)
}

/// TCP, UDP and ping reach a server, which sees the client's own address.
fn reaches_unchanged(from: &Netns, own: std::net::Ipv4Addr, to: std::net::Ipv4Addr) -> Result<()> {
    let pinged = ping(from, to, 3, 0.05, 56)?;
    ensure!(pinged.received == 3, "{} to {to}: {pinged:?}", from.name());
    for answer in [tcp_answer(from, at(to))?, udp_answer(from, at(to))?] {
        ensure!(*answer.peer.ip() == own, "{to} sees {} instead of {own}", answer.peer);
    }
    Ok(())
}

#[test]
fn pods_of_one_node_reach_each_other_without_nat() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _servers = (serve_pod(&a)?, serve_pod(&b)?);
    let before = lab.node("n1").counter(Counter::ToLocalPod)?;
    reaches_unchanged(&a.netns, a.address, b.address)?;
    reaches_unchanged(&b.netns, b.address, a.address)?;
    ensure!(lab.node("n1").counter(Counter::ToLocalPod)? > before, "delivered by our programs, not by the host's stack");
    ask_tcp(&a.netns, at(b.address), &vec![5; 8 << 20])?;
    Ok(())
}

/// End to end:
/// - `Should be able to send traffic between Pods without SNAT`
/// - `should function for intra-pod communication: http`
/// - `should function for intra-pod communication: udp`
#[test]
fn pods_of_two_nodes_reach_each_other_without_nat_and_every_checksum_is_right() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&a)?, serve_pod(&c)?);
    let capture = Capture::start(lab.fabric(), "to-n1", "udp port 8472", lab.dir())?;
    reaches_unchanged(&a.netns, a.address, c.address)?;
    reaches_unchanged(&c.netns, c.address, a.address)?;
    // Segments of 64 KB in both directions, and the largest ping that fits the tunnel.
    ask_tcp(&a.netns, at(c.address), &vec![5; 8 << 20])?;
    ensure!(ping(&a.netns, c.address, 2, 0.05, 1450 - 28)?.received == 2);
    let seen = capture.finish()?;
    seen.all_right()?;
    ensure!(seen.tunnelled == seen.frames && seen.tcp > 1000 && seen.icmp >= 16, "{seen:?}");
    ensure!(seen.longest == 1500, "the longest packet has {} bytes", seen.longest);
    for node in ["n1", "n2"] {
        let node = lab.node(node);
        ensure!(node.counter(Counter::ToTunnel)? > 0 && node.counter(Counter::FromTunnel)? > 0);
    }
    Ok(())
}

#[test]
fn a_datagram_larger_than_the_tunnel_crosses_in_fragments() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _server = serve_pod(&c)?;
    for size in [1500, 4000, 30_000] {
        ask_udp(&a.netns, at(c.address), &vec![3; size])?;
    }
    Ok(())
}

/// End to end:
/// - `should function for node-pod communication: http`
/// - `should function for node-pod communication: udp`
#[test]
fn nodes_and_pods_reach_each_other_without_nat() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _pods = (serve_pod(&a)?, serve_pod(&c)?);
    let _nodes = (serve(&n1.netns, n1.address(), "n1")?, serve(&n2.netns, n2.address(), "n2")?);
    reaches_unchanged(&n1.netns, n1.address(), a.address)?;
    reaches_unchanged(&a.netns, a.address, n1.address())?;
    reaches_unchanged(&n1.netns, n1.address(), c.address)?;
    reaches_unchanged(&c.netns, c.address, n1.address())?;
    reaches_unchanged(&a.netns, a.address, n2.address())?;
    ask_tcp(&n1.netns, at(c.address), &vec![5; 2 << 20])?;
    ask_tcp(&c.netns, at(n1.address()), &vec![5; 2 << 20])?;
    Ok(())
}

#[test]
fn the_outside_sees_the_address_of_the_node() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _outside = serve(lab.outside(), OUTSIDE, "outside")?;
    for (pod, node) in [(&a, "n1"), (&c, "n2")] {
        let node = lab.node(node).address();
        for answer in [tcp_answer(&pod.netns, at(OUTSIDE))?, udp_answer(&pod.netns, at(OUTSIDE))?] {
            ensure!(*answer.peer.ip() == node, "{OUTSIDE} sees {}", answer.peer);
        }
        ensure!(ping(&pod.netns, OUTSIDE, 3, 0.05, 56)?.received == 3);
        ask_tcp(&pod.netns, at(OUTSIDE), &vec![9; 4 << 20])?;
    }
    Ok(())
}

#[test]
fn two_pods_with_one_source_port_both_reach_the_outside() -> Result<()> {
    use shunt_lab::traffic::echo::TcpClient;
    let lab = Lab::build(&PAIR)?;
    let (a, b) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _outside = serve(lab.outside(), OUTSIDE, "outside")?;
    let mut one = TcpClient::connect_from(&a.netns, 40_000, at(OUTSIDE))?;
    let mut other = TcpClient::connect_from(&b.netns, 40_000, at(OUTSIDE))?;
    ensure!(one.peer != other.peer, "both are seen as {}", one.peer);
    one.exchange(b"from a")?;
    other.exchange(b"from b")?;
    Ok(())
}

#[test]
fn dscp_and_ecn_cross_the_tunnel_inside_and_outside() -> Result<()> {
    const EXPEDITED_ECT0: u8 = 0xba;
    let lab = Lab::build(&PAIR)?;
    let (a, c) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?);
    let _server = serve_pod(&c)?;
    let capture = Capture::start(lab.fabric(), "to-n1", "udp port 8472", lab.dir())?;
    let client = UdpClient::bind(&a.netns, 0)?;
    setsockopt(client.socket(), sockopt::Ipv4Tos, &i32::from(EXPEDITED_ECT0))?;
    client.ask(at(c.address), b"expedite this")?;
    let seen = capture.finish()?;
    seen.all_right()?;
    ensure!(seen.tos.contains(&(EXPEDITED_ECT0, EXPEDITED_ECT0)), "inside and outside: {:?}", seen.tos);
    Ok(())
}
