//! A node of the plain kernel, set up as flannel's VXLAN backend does, beside nodes of ours.
//!
//! ```text
//!   fabric --+-- n1 -- pod a         (shunt)
//!            +-- n2 -- pod c         (shunt)
//!            +-- f3 -- pod p         (flannel.1, cni0)
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use shunt_lab::{
    capture::Capture,
    cluster::Endpoint,
    lab::Lab,
    netns::Netns,
    service::{PORTS, Service, TARGET, serve, serve_pod, tcp_answer, udp_answer},
    topology::MIXED,
    traffic::{
        echo::{ask_tcp, ask_udp},
        ping::ping,
    },
};

/// Ping, TCP, UDP, large segments and large datagrams reach a server that sees the client's own address.
fn everything_reaches(from: &Netns, own: Ipv4Addr, to: Ipv4Addr) -> Result<()> {
    let at = SocketAddrV4::new(to, TARGET);
    let works = || -> Result<()> {
        ensure!(ping(from, to, 3, 0.05, 56)?.received == 3, "ping");
        ensure!(ping(from, to, 2, 0.05, 1400)?.received == 2, "large ping");
        ensure!(ping(from, to, 2, 0.05, 3000)?.received == 2, "ping in fragments");
        for answer in [tcp_answer(from, at)?, udp_answer(from, at)?] {
            ensure!(*answer.peer.ip() == own, "it sees {} instead of {own}", answer.peer);
        }
        ask_tcp(from, at, &vec![7; 4 << 20])?;
        ask_udp(from, at, &vec![7; 1400])?;
        ask_udp(from, at, &vec![7; 4000])?;
        Ok(())
    };
    works().with_context(|| format!("{own} to {to}"))
}

#[test]
fn pods_of_both_kinds_of_node_reach_each_other_and_every_checksum_is_right() -> Result<()> {
    let lab = Lab::build(&MIXED)?;
    let (a, p) = (lab.pod("n1", "a")?, lab.plain[0].pod("p", 10)?);
    let _servers = (serve_pod(&a)?, serve(&p.netns, p.address, "p")?);
    let capture = Capture::start(lab.fabric(), "to-f3", "udp port 8472", lab.dir())?;
    everything_reaches(&a.netns, a.address, p.address)?;
    everything_reaches(&p.netns, p.address, a.address)?;
    let seen = capture.finish()?;
    seen.all_right()?;
    ensure!(seen.tunnelled > 1000 && seen.tcp > 1000 && seen.udp > 4 && seen.icmp > 10, "{seen:?}");
    ensure!(seen.longest == 1500, "the longest packet has {} bytes", seen.longest);
    Ok(())
}

#[test]
fn a_service_has_backends_on_both_kinds_of_node() -> Result<()> {
    let lab = Lab::build(&MIXED)?;
    let (a, c, p) = (lab.pod("n1", "a")?, lab.pod("n2", "c")?, lab.plain[0].pod("p", 10)?);
    let _servers = (serve_pod(&c)?, serve(&p.netns, p.address, "p")?);
    let service = Service::create(&lab, "web", 10, &[])?;
    service.set(&lab, &PORTS, &[Endpoint::ready(p.address, "f3")])?;
    for client in [&a.netns, &lab.node("n1").netns] {
        ensure!(tcp_answer(client, service.vip)?.server == "p");
        ensure!(udp_answer(client, service.vip)?.server == "p");
        ask_tcp(client, service.vip, &vec![7; 1 << 20])?;
    }
    service.set_pods(&lab, &[&c])?;
    ensure!(tcp_answer(&a.netns, service.vip)?.server == "c");
    Ok(())
}

#[test]
fn nodes_of_ours_and_plain_pods_reach_each_other() -> Result<()> {
    let lab = Lab::build(&MIXED)?;
    let p = lab.plain[0].pod("p", 10)?;
    let n1 = lab.node("n1");
    let _servers = (serve(&p.netns, p.address, "p")?, serve(&n1.netns, n1.address(), "n1")?);
    ensure!(tcp_answer(&n1.netns, SocketAddrV4::new(p.address, TARGET))?.server == "p");
    ensure!(udp_answer(&n1.netns, SocketAddrV4::new(p.address, TARGET))?.server == "p");
    ensure!(tcp_answer(&p.netns, SocketAddrV4::new(n1.address(), TARGET))?.server == "n1");
    Ok(())
}
