//! Datagrams of 64 B from outside to a node port whose backend is on another node: sent on by the asked node at XDP, and by another one at TC.
//!
//! ```text
//!   outside -- router --+-- n1 (XDP)
//!                       +-- n2 -- pod      every datagram goes to it by n1 or by n3
//!                       +-- n3 (TC)
//! ```
//!
//! A veth is no NIC: what it brings an XDP program is an skb already, of which it makes a frame, and the other end makes an skb of it again.
//! Both nodes' ports of the switch merge packets, which XDP needs of a veth's other end and TC does not.

use std::{fs, net::Ipv4Addr, time::Duration};

use anyhow::{Result, ensure};
use shunt_common::verdict::Counter;

use super::{
    Options,
    arena::Contender,
    packets::{self, SMALL},
    report::{Better, Goal, Report},
    samples::Samples,
};
use crate::{
    cluster::{Endpoint, Port},
    lab::{Lab, eventually},
    node::Node,
    service::SOON,
    topology::{Fabric, Kind, NodeSpec, OUTSIDE, Topology, Wire},
};

const LAB: Topology = Topology {
    nodes: &[NodeSpec::new("n1", Kind::Shunt), NodeSpec::new("n2", Kind::Shunt), NodeSpec::new("n3", Kind::Shunt)],
    fabric: Fabric::Switch,
    wire: Wire::Finished,
};

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let mut lab = Lab::wired(&LAB)?;
    for (node, hook) in lab.nodes.iter().zip(["xdp", "tc", "tc"]) {
        fs::write(node.config_file(), format!("tunnelDecap: {hook}\n"))?;
    }
    for port in ["to-n1", "to-n3"] {
        lab.fabric().run("ethtool", &format!("-K {port} gro on"))?;
    }
    lab.start_agents()?;
    let backend = lab.pod("n2", "c")?;
    let ports = [Port::udp(packets::PORT, packets::PORT)];
    lab.cluster.put_same_ports("web", Ipv4Addr::new(10, 100, 0, 10), &ports)?;
    lab.cluster.put_endpoints("web", &ports, &[Endpoint::ready(backend.address, &backend.node)])?;

    let (at_xdp, at_tc) = (lab.node("n1"), lab.node("n3"));
    let server = (&backend.netns, backend.address);
    let through =
        |name, node: &Node| Contender { asked: node.address(), ..Contender::new(name, (lab.outside(), OUTSIDE), server) };
    let contenders = [through("XDP", at_xdp), through("TC", at_tc)];
    for contender in &contenders {
        eventually(SOON, || packets::kilopackets(contender, SMALL, Duration::from_millis(10)))?;
    }
    let period = Duration::from_millis(if options.quick { 150 } else { 400 });
    let sent = |node: &Node| Ok::<_, anyhow::Error>((node.counter(Counter::ToTunnel)?, node.counter(Counter::XdpForwarded)?));
    let before = sent(at_xdp)?;
    let samples = Samples::take(options.rounds(), &contenders, |contender| packets::kilopackets(contender, SMALL, period))?;
    let after = sent(at_xdp)?;
    let (all, by_xdp) = (after.0 - before.0, after.1 - before.1);
    ensure!(by_xdp * 100 > all * 99, "XDP has sent {by_xdp} of {all} packets only");
    ensure!(sent(at_tc)?.1 == 0, "n3 has sent packets by XDP");

    samples.publish(report, "NodePort, established flow, UDP packets of 64 B", "k/s", Better::More, Some("packet"));
    let name = "NodePort, 64 B packets/s at XDP over TC (on a veth, which is no NIC)";
    samples.row(report, name, "XDP", "TC", Goal::None, "k/s");
    Ok(())
}
