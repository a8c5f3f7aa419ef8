//! A next hop that gets another MAC and tells nobody, while all that programs send there goes past the kernel's neighbours.
//!
//! ```text
//!   outside -- router --+-- n1           n1 sends c's node port's datagrams to n2, and the answers to the router
//!                       +-- n2 -- pod c
//! ```
//!
//! Datagrams go one way at a time: who has a new MAC and something to say would ask for n1's, and n1 would hear of it.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use shunt_common::verdict::Counter;
use shunt_lab::{
    lab::{Lab, eventually},
    netns::Netns,
    node::Node,
    service::{SOON, TARGET},
    topology::{ROUTER, Wire},
    traffic::echo::UdpClient,
    underlay::UPLINK,
};

use crate::{NODE_PORT, Ready, lab, lead_to};

/// Who receives listens that long for a datagram.
const MOMENT: Duration = Duration::from_millis(500);

/// One direction of a UDP flow.
struct Way<'a> {
    from: &'a UdpClient,
    to: SocketAddr,
    receiver: &'a UdpClient,
}

impl Way<'_> {
    /// Sends a datagram; an error if none arrives.
    fn try_once(&self) -> Result<()> {
        self.from.socket().send_to(b"no answer, please", self.to)?;
        self.receiver.socket().recv_from(&mut [0; 64]).context("nothing has arrived").map(drop)
    }
}

/// Gives a host of the underlay another MAC. What is still sent to the old one is taken to another port of the switch, where it is nobody's.
fn change_mac_silently(lab: &Lab, host: &Netns, mac: &str, other_port: &str) -> Result<()> {
    let old = host.mac(UPLINK)?;
    lab.fabric().run("bridge", &format!("fdb replace {old} dev {other_port} master static"))?;
    host.ip(&format!("link set {UPLINK} address {mac}")).map(drop)
}

/// Has a node's kernel doubt neighbours that it comes to know after a second, not after half a minute, and ask as soon as it is given a packet.
fn doubt_soon(node: &Node) -> Result<()> {
    for (key, value) in [
        ("base_reachable_time_ms", "1000"),
        ("delay_first_probe_time", "0"),
        ("ucast_solicit", "1"),
        ("retrans_time_ms", "200"),
    ] {
        node.netns.sysctl(&format!("ipv4/neigh/{UPLINK}/{key}"), value)?;
    }
    Ok(())
}

/// Uses a way until XDP has sent some more of its packets, or where it is not to, for a while.
fn is_carried(way: &Way<'_>, n1: &Node, hook: &str) -> Result<()> {
    let before = n1.counter(Counter::XdpForwarded)?;
    if hook == "xdp" {
        return eventually(SOON, || {
            way.try_once()?;
            ensure!(n1.counter(Counter::XdpForwarded)? > before + 10, "XDP sends nothing");
            Ok(())
        });
    }
    (0..10).try_for_each(|_| way.try_once())?;
    ensure!(before == 0 && n1.counter(Counter::XdpForwarded)? == 0, "XDP sends packets");
    Ok(())
}

/// Changes the MACs of n1's next hops, one after the other, under a flow that goes there.
fn new_macs_are_noticed(hook: &str) -> Result<()> {
    let (lab, _ready) = lab(hook, Ready::Programs, Wire::Finished)?;
    let (n1, n2) = (lab.node("n1"), lab.node("n2"));
    doubt_soon(n1)?;
    let c = lab.pod("n2", "c")?;
    lead_to(&lab, c.address, "n2")?;
    let router = &lab.surroundings.as_ref().context("a router")?.router;
    let (client, server) = (UdpClient::bind(lab.outside(), 0)?, UdpClient::bind(&c.netns, TARGET)?);
    for socket in [&client, &server].map(UdpClient::socket) {
        socket.set_read_timeout(Some(MOMENT))?;
    }
    let asks = Way { from: &client, to: SocketAddrV4::new(n1.address(), NODE_PORT).into(), receiver: &server };
    client.socket().send_to(b"who am I?", asks.to)?;
    let (_, seen) = server.socket().recv_from(&mut [0; 64]).context("no question")?;
    let answers = Way { from: &server, to: seen, receiver: &client };
    for _ in 0..4 {
        asks.try_once()?;
        answers.try_once()?;
    }
    let next_hops = [
        (&asks, &n2.netns, n2.address(), "02:00:00:00:77:02", "to-router"),
        (&answers, router, ROUTER, "02:00:00:00:77:01", "to-n1"),
    ];
    // At TC the tunnel's packets go by the kernel's entry several times a second.
    for (way, host, address, mac, other_port) in next_hops.into_iter().skip(usize::from(hook == "tc")) {
        let entry = || n1.netns.ip(&format!("neigh show {address} dev {UPLINK}"));
        is_carried(way, n1, hook)?;
        // From then on the kernel asks only if it is given a packet.
        eventually(SOON, || {
            way.try_once()?;
            ensure!(entry()?.contains("STALE"), "{}", entry()?);
            Ok(())
        })?;
        change_mac_silently(&lab, host, mac, other_port)?;
        eventually(SOON, || way.try_once())?;
        ensure!(entry()?.contains(mac), "what arrives came by {}", entry()?);
        is_carried(way, n1, hook)?;
    }
    Ok(())
}

#[test]
fn xdp_follows_a_next_hop_whose_mac_changes_silently() -> Result<()> {
    new_macs_are_noticed("xdp")
}

#[test]
fn tc_follows_a_next_hop_whose_mac_changes_silently() -> Result<()> {
    new_macs_are_noticed("tc")
}
