//! Direct server return (`nodePort: dsr`): what a client outside asks of one node, a backend's node answers by itself.
//!
//! ```text
//!   outside -- router --+-- n1 -- pod b       n1 is asked
//!                       +-- n2 -- pods c, d   and these answer
//! ```

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context, Result, ensure};
use shunt_common::{net::proto, verdict::Counter};
use shunt_lab::{
    capture::Capture,
    cluster::Endpoint,
    lab::{Lab, eventually},
    pod::Pod,
    service::{PORTS, SOON, refused, serve_pod, tcp_answer, udp_answer},
    topology::{OUTSIDE, PAIR, ROUTER_OUTSIDE, VXLAN_PORT},
    traffic::{
        echo::{TcpClient, UdpClient},
        packet::{fragments, send_ipv4, udp},
    },
    underlay::UPLINK,
};

const NODE_PORT: u16 = 30_080;

/// A lab whose nodes pop the tunnel at a hook.
fn lab(decap: &str) -> Result<Lab> {
    let mut lab = Lab::wired(&PAIR)?;
    for node in &lab.nodes {
        fs::write(node.config_file(), format!("nodePort: dsr\ntunnelDecap: {decap}\n"))?;
        lab.cluster.annotate_node(&node.name, &node.vtep_mac(), true)?;
    }
    lab.start_agents()?;
    lab.cluster.put_node_port("web", Ipv4Addr::new(10, 96, 0, 10), &PORTS, NODE_PORT)?;
    Ok(lab)
}

/// Gives the Service one backend; in force at n1 when this returns.
fn lead_to(lab: &Lab, pod: &Pod) -> Result<()> {
    lab.cluster.put_endpoints("web", &PORTS, &[Endpoint::ready(pod.address, &pod.node)])?;
    eventually(SOON, || {
        let rows = lab.node("n1").kernel()?.services()?;
        for number in [proto::TCP, proto::UDP] {
            let row = rows.iter().find(|row| (row.key.port.to_host(), row.key.proto) == (NODE_PORT, number));
            let held: Vec<_> = row.context("no node port")?.outside.iter().map(|row| row.backend.addr).collect();
            ensure!(held == [pod.address.into()], "n1 leads to {held:?}");
        }
        Ok(())
    })
}

/// What is asked.
fn target(lab: &Lab) -> SocketAddrV4 {
    SocketAddrV4::new(lab.node("n1").address(), NODE_PORT)
}

/// TCP and UDP from the outside: who answers, and whom it saw.
fn ask(lab: &Lab) -> Result<(String, Ipv4Addr)> {
    let (tcp, udp) = (tcp_answer(lab.outside(), target(lab))?, udp_answer(lab.outside(), target(lab))?);
    ensure!((&tcp.server, tcp.peer.ip()) == (&udp.server, udp.peer.ip()), "{tcp:?} and {udp:?}");
    Ok((tcp.server, *tcp.peer.ip()))
}

/// The answers that a node puts on the wire, as the switch sees them come from its MAC.
fn answers_of(lab: &Lab, node: &str) -> Result<Capture> {
    let mac = lab.node(node).netns.mac(UPLINK)?;
    let filter = format!("ether src {mac} and src host {} and dst host {OUTSIDE}", lab.node("n1").address());
    Capture::start(lab.fabric(), &format!("to-{node}"), &filter, lab.dir())
}

#[test]
fn answers_go_past_the_node_that_was_asked_and_the_backend_sees_the_client() -> Result<()> {
    for decap in ["tc", "xdp"] {
        let lab = lab(decap)?;
        let (n1, c) = (lab.node("n1"), lab.pod("n2", "c")?);
        let _server = serve_pod(&c)?;
        lead_to(&lab, &c)?;
        let (past, straight) = (answers_of(&lab, "n1")?, answers_of(&lab, "n2")?);
        // In a directory of its own, for a capture's file has the port's name.
        let dir = lab.dir().join("tunnel");
        fs::create_dir(&dir)?;
        let tunnel = Capture::start(lab.fabric(), "to-n1", &format!("udp port {VXLAN_PORT}"), &dir)?;

        ensure!(ask(&lab)? == ("c".to_owned(), OUTSIDE));
        let mut client = TcpClient::connect(lab.outside(), target(&lab))?;
        ensure!(client.peer == SocketAddrV4::new(OUTSIDE, client.local_port()?), "seen as {}", client.peer);
        client.exchange(&vec![7; 2 << 20])?;
        drop(client);
        let datagrams = UdpClient::bind(lab.outside(), 46_000)?;
        for _ in 0..3 {
            let answer = datagrams.ask(target(&lab), &[7; 1000])?;
            ensure!(answer.peer == SocketAddrV4::new(OUTSIDE, 46_000), "seen as {}", answer.peer);
        }
        let payload: Vec<u8> = (0..2000u32).map(|n| n as u8).collect();
        let whole = udp((OUTSIDE, 46_000), (*target(&lab).ip(), NODE_PORT), &payload);
        send_ipv4(lab.outside(), &fragments(&whole, 1200, 7))?;
        let mut buffer = vec![0; 65536];
        let (len, from) = datagrams.socket().recv_from(&mut buffer).context("a datagram in fragments")?;
        ensure!(from == target(&lab).into() && buffer[..len].ends_with(&payload), "{len} bytes from {from}");

        let (past, straight, tunnel) = (past.finish()?, straight.finish()?, tunnel.finish()?);
        straight.all_right()?;
        tunnel.all_right()?;
        ensure!(past.frames == 0, "{} answers left n1", past.frames);
        ensure!(straight.tcp > 1000 && straight.udp == 4, "of n2's: {straight:?}");
        ensure!(tunnel.tunnelled > 1000, "through the tunnel: {tunnel:?}");
        for counter in [Counter::ToOutside, Counter::SnatNewFlow, Counter::FromTunnel] {
            ensure!(n1.counter(counter)? == 0, "n1 has counted {}", counter.name());
        }
        ensure!(n1.status()?.problems.is_empty());
    }
    Ok(())
}

#[test]
fn a_backend_here_and_one_whose_node_cannot_are_served_too() -> Result<()> {
    let lab = lab("tc")?;
    let (b, c) = (lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    lead_to(&lab, &b)?;
    ensure!(ask(&lab)? == ("b".to_owned(), OUTSIDE));
    lead_to(&lab, &c)?;
    ensure!(ask(&lab)? == ("c".to_owned(), OUTSIDE));
    // As the Node is once flanneld has started there again.
    let n2 = lab.node("n2");
    lab.cluster.annotate_node(&n2.name, &n2.vtep_mac(), false)?;
    let past = answers_of(&lab, "n1")?;
    eventually(SOON, || {
        let found = ask(&lab)?;
        ensure!(found == ("c".to_owned(), lab.node("n1").address()), "{found:?}");
        Ok(())
    })?;
    ensure!(past.finish()?.frames > 0, "no answers by way of n1, where there must be some");
    lab.cluster.annotate_node(&n2.name, &n2.vtep_mac(), true)?;
    eventually(SOON, || {
        let found = ask(&lab)?;
        ensure!(found == ("c".to_owned(), OUTSIDE), "{found:?}");
        Ok(())
    })
}

#[test]
fn flows_outlive_agents_and_datagrams_follow_the_endpoints() -> Result<()> {
    let mut lab = lab("tc")?;
    let (c, d) = (lab.pod("n2", "c")?, lab.pod("n2", "d")?);
    let _servers = (serve_pod(&c)?, serve_pod(&d)?);
    lead_to(&lab, &c)?;
    let mut stream = TcpClient::connect(lab.outside(), target(&lab))?;
    let datagrams = UdpClient::bind(lab.outside(), 46_000)?;
    ensure!(datagrams.ask(target(&lab), b"first")?.server == "c");
    for node in ["n1", "n2"] {
        lab.node_mut(node).kill_agent()?;
        stream.touch()?;
        ensure!(datagrams.ask(target(&lab), b"meanwhile")?.server == "c");
        lab.node_mut(node).start_agent()?;
        lab.node(node).wait_ready()?;
        stream.touch()?;
    }
    lead_to(&lab, &d)?;
    ensure!(datagrams.ask(target(&lab), b"moved")?.server == "d");
    stream.touch().context("a connection stays with its backend")?;
    ensure!(stream.server == "c" && ask(&lab)? == ("d".to_owned(), OUTSIDE));
    Ok(())
}

#[test]
fn refusals_and_narrow_ways_are_heard_of() -> Result<()> {
    let lab = lab("tc")?;
    let (c, d) = (lab.pod("n2", "c")?, lab.pod("n2", "d")?);
    let _server = serve_pod(&c)?;
    lead_to(&lab, &d)?;
    refused(lab.outside(), target(&lab)).context("a pod without a server")?;
    lead_to(&lab, &c)?;
    // The router tells the address that answers came from, which is n1's, of a pod that is on n2.
    let around = lab.surroundings.as_ref().context("no router")?;
    around.router.ip("link set outside mtu 1200")?;
    around.outside.ip(&format!("route replace 192.0.2.0/24 via {ROUTER_OUTSIDE} mtu lock 1200 advmss 1460"))?;
    TcpClient::connect(lab.outside(), target(&lab))?.exchange(&vec![1; 500_000])?;
    // And n1 the client of the tunnel's.
    around.router.ip("link set outside mtu 1500")?;
    around.outside.ip(&format!("route replace 192.0.2.0/24 via {ROUTER_OUTSIDE}"))?;
    let datagrams = UdpClient::bind(lab.outside(), 0)?;
    datagrams.connect(target(&lab))?;
    eventually(SOON, || {
        ensure!(datagrams.ask(target(&lab), &[7; 1460])?.server == "c");
        Ok(())
    })
}
