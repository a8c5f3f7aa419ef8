//! What `tunnelDecap: xdp` does for clients outside: all that TC does, with less of the kernel.
//!
//! ```text
//!   outside -- router --+-- n1 -- pod a            n1 is asked
//!                       +-- n2 -- pods c, d        and these answer through it
//! ```
//!
//! A driver's XDP is that of veth here. What it sends, the other end takes while it has an XDP program too, or merges packets.

mod neighbours;
mod substitute;

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use shunt::socket::protocol::XdpStatus;
use shunt_common::verdict::{Counter, DropReason};
use shunt_lab::{
    capture::Capture,
    cluster::Endpoint,
    foreign::{Foreign, Hook},
    lab::{Lab, eventually},
    netns::Netns,
    service::{PORT, PORTS, SOON, serve, serve_pod, tcp_answer, udp_answer},
    topology::{PAIR, Topology, Wire},
    traffic::echo::{TcpClient, UdpClient},
};

const NODE_PORT: u16 = 30_080;
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const LOAD_BALANCER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const EXTERNAL_IP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
/// No frame of the lab is as long as that.
const NO_LENGTH: u16 = 9000;

/// What makes the switch's ports ready for what the nodes send by XDP.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// XDP programs of their own.
    Programs,
    /// GRO.
    Merging,
    /// Nothing.
    Not,
}

/// A lab whose nodes work at a hook, and the switch's programs.
fn lab(hook: &str, ready: Ready, wire: Wire) -> Result<(Lab, Vec<Foreign>)> {
    let mut lab = Lab::wired(&Topology { wire, ..PAIR })?;
    let mut programs = Vec::new();
    for port in ["to-n1", "to-n2"] {
        match ready {
            Ready::Programs => programs.push(Foreign::attach(lab.fabric(), port, Hook::Xdp, NO_LENGTH)?),
            Ready::Merging => drop(lab.fabric().run("ethtool", &format!("-K {port} gro on"))?),
            Ready::Not => {}
        }
    }
    for node in &lab.nodes {
        fs::write(node.config_file(), format!("tunnelDecap: {hook}\n"))?;
    }
    lab.start_agents()?;
    for node in &lab.nodes {
        node.wait_ready()?;
    }
    let around = lab.surroundings.as_ref().context("a router")?;
    around.route("198.51.100.0/24", lab.node("n1").address())?;
    let ports: Vec<_> = PORTS.iter().map(|port| port.at_nodes(NODE_PORT)).collect();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP], "externalIPs": [EXTERNAL_IP],
            "selector": { "app": "web" }, "ports": ports,
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": LOAD_BALANCER }] } },
    });
    lab.cluster.put("service-web.yaml", &[service])?;
    Ok((lab, programs))
}

/// Gives the Service one backend; in force at n1 when this returns.
fn lead_to(lab: &Lab, address: Ipv4Addr, node: &str) -> Result<()> {
    lab.cluster.put_endpoints("web", &PORTS, &[Endpoint::ready(address, node)])?;
    eventually(SOON, || {
        let rows = lab.node("n1").kernel()?.services()?;
        let led: Vec<_> = rows.iter().filter(|row| row.outside.iter().any(|row| row.backend.addr == address.into())).collect();
        // TCP and UDP at each of the four frontends.
        ensure!(led.len() == 8, "{} frontends of n1 lead to {address}", led.len());
        Ok(())
    })
}

fn frontends(lab: &Lab) -> [(&'static str, SocketAddrV4); 3] {
    [
        ("NodePort", SocketAddrV4::new(lab.node("n1").address(), NODE_PORT)),
        ("load balancer's IP", SocketAddrV4::new(LOAD_BALANCER, PORT)),
        ("externalIP", SocketAddrV4::new(EXTERNAL_IP, PORT)),
    ]
}

/// What a client gets: who answers, and whom that saw.
type Answers = BTreeMap<String, (String, Ipv4Addr)>;

/// A client at a frontend with packets enough, of many sizes, for all kinds of them to be met: connections that begin and end, bulk in both
/// directions, datagrams up to what the tunnel carries.
fn ask(answers: &mut Answers, who: &str, client: &Netns, to: SocketAddrV4) -> Result<()> {
    let (tcp, udp) = (tcp_answer(client, to)?, udp_answer(client, to)?);
    answers.insert(format!("{who}, TCP"), (tcp.server, *tcp.peer.ip()));
    answers.insert(format!("{who}, UDP"), (udp.server, *udp.peer.ip()));
    let mut connection = TcpClient::connect(client, to)?;
    for len in [1, 2, 1000, 1_000_000] {
        connection.exchange(&vec![len as u8; len])?;
    }
    let datagrams = UdpClient::bind(client, 0)?;
    for len in [1, 2, 3, 999, 1000, 1380] {
        let answer = datagrams.ask(to, &vec![len as u8; len])?;
        let seen = answers.insert(format!("{who}, {len} bytes"), (answer.server, *answer.peer.ip()));
        ensure!(seen.is_none());
    }
    Ok(())
}

/// All that a lab answers, with every frame of the wire verified on both sides of n1, and how many packets n1's XDP has sent.
fn outcome(lab: &Lab) -> Result<(Answers, u64)> {
    let (c, d) = (lab.pod("n2", "c")?, lab.pod("n2", "d")?);
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    let _servers = (serve_pod(&c)?, serve(&n2.netns, n2.address(), "n2")?);
    let captures = ["to-n1", "to-n2", "to-router"].map(|port| Capture::start(lab.fabric(), port, "ip", lab.dir()));
    let mut answers = Answers::new();
    for (backend, address) in [("a pod", c.address), ("a node", n2.address())] {
        lead_to(lab, address, "n2")?;
        for (kind, to) in frontends(lab) {
            ask(&mut answers, &format!("outside at the {kind} of {backend}"), lab.outside(), to)?;
        }
        let (_, to) = frontends(lab)[0];
        ask(&mut answers, &format!("a pod elsewhere at the NodePort of {backend}"), &d.netns, to)?;
    }
    for capture in captures {
        let seen = capture?.finish()?;
        seen.all_right()?;
        ensure!(seen.tcp > 1000 && seen.udp > 40, "too little was seen: {seen:?}");
    }
    ensure!(n1.status()?.problems.is_empty() && n1.status()?.reasons.is_empty());
    Ok((answers, n1.counter(Counter::XdpForwarded)?))
}

#[test]
fn node_ports_at_xdp_are_those_at_tc() -> Result<()> {
    let (tc, _ready) = lab("tc", Ready::Programs, Wire::Finished)?;
    let (expected, by_xdp) = outcome(&tc)?;
    ensure!(by_xdp == 0 && tc.node("n1").status()?.xdp.is_none());
    drop(tc);
    let (lab, _ready) = lab("xdp", Ready::Programs, Wire::Finished)?;
    ensure!(lab.node("n1").status()?.xdp == Some(XdpStatus::Forwards), "{:?}", lab.node("n1").status()?.xdp);
    let (answers, by_xdp) = outcome(&lab)?;
    ensure!(answers == expected, "at XDP {answers:?}, at TC {expected:?}");
    let n1 = lab.node("n1");
    let all = n1.counter(Counter::ToOutside)? + n1.counter(Counter::ToTunnel)?;
    ensure!(by_xdp * 10 > all * 9, "XDP has carried {by_xdp} of {all} packets");
    for &reason in DropReason::ALL {
        ensure!(n1.drops(reason)? == 0, "dropped: {}", reason.name());
    }
    Ok(())
}

#[test]
fn what_the_wire_does_not_take_from_xdp_goes_by_tc() -> Result<()> {
    let (lab, _) = lab("xdp", Ready::Not, Wire::Finished)?;
    let status = lab.node("n1").status()?;
    let Some(XdpStatus::Pops(reason)) = &status.xdp else { anyhow::bail!("{:?}", status.xdp) };
    ensure!(reason.contains("eth0 is a veth device whose other end takes nothing from XDP"), "{reason}");
    let (_, by_xdp) = outcome(&lab)?;
    ensure!(by_xdp == 0, "{by_xdp} packets");
    Ok(())
}

/// How many packets n1's XDP has sent, once a client outside has asked every frontend of a pod elsewhere.
fn sent_by_xdp(lab: &Lab) -> Result<u64> {
    let c = lab.pod("n2", "c")?;
    let _servers = serve_pod(&c)?;
    lead_to(lab, c.address, "n2")?;
    for (kind, to) in frontends(lab) {
        ask(&mut Answers::new(), kind, lab.outside(), to)?;
    }
    let n1 = lab.node("n1");
    ensure!(n1.status()?.xdp == Some(XdpStatus::Forwards));
    n1.counter(Counter::XdpForwarded)
}

#[test]
fn a_port_of_the_switch_that_only_merges_packets_takes_what_xdp_sends() -> Result<()> {
    let (lab, _) = lab("xdp", Ready::Merging, Wire::Finished)?;
    let by_xdp = sent_by_xdp(&lab)?;
    ensure!(by_xdp > 1000, "XDP has sent {by_xdp} packets only");
    Ok(())
}

#[test]
fn what_comes_with_unfinished_checksums_goes_by_tc() -> Result<()> {
    let (lab, _ready) = lab("xdp", Ready::Programs, Wire::Offloaded)?;
    let by_xdp = sent_by_xdp(&lab)?;
    ensure!(by_xdp == 0, "{by_xdp} packets whose checksums are left to a device have been sent to one that finishes none");
    Ok(())
}

#[test]
fn a_connection_outlives_its_agent_and_a_change_of_hooks() -> Result<()> {
    let (mut lab, _ready) = lab("xdp", Ready::Programs, Wire::Finished)?;
    let c = lab.pod("n2", "c")?;
    let _servers = serve_pod(&c)?;
    lead_to(&lab, c.address, "n2")?;
    let (_, to) = frontends(&lab)[0];
    let mut connection = TcpClient::connect(lab.outside(), to)?;
    let mut by_xdp = 0;
    for hook in ["xdp", "tc", "xdp"] {
        connection.exchange(&vec![7; 300_000]).with_context(|| format!("before {hook}"))?;
        fs::write(lab.node("n1").config_file(), format!("tunnelDecap: {hook}\n"))?;
        lab.node_mut("n1").kill_agent()?;
        connection.touch()?;
        lab.node_mut("n1").start_agent()?;
        lab.node("n1").wait_ready()?;
        let before = lab.node("n1").counter(Counter::XdpForwarded)?;
        connection.exchange(&vec![7; 300_000]).with_context(|| format!("with {hook}"))?;
        let after = lab.node("n1").counter(Counter::XdpForwarded)?;
        ensure!((after > before) == (hook == "xdp"), "{} packets by XDP with {hook}", after - before);
        by_xdp = after;
    }
    ensure!(by_xdp > 100);
    tcp_answer(lab.outside(), SocketAddrV4::new(lab.node("n1").address(), NODE_PORT))?;
    ensure!(connection.server == "c");
    Ok(())
}
