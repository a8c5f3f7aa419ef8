//! TCP connections a second from a host outside to a NodePort, with few and with many Services.
//!
//! ```text
//!   client ===cable=== node - pod b      three times: shunt, and flannel with kube-proxy's rules in either mode
//! ```

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    time::Duration,
};

use anyhow::Result;

use super::{
    Options,
    arena::Contender,
    connections::{period, rate_to},
    figure::Figure,
    large::wait_for_services,
    report::{Better, Curve, Goal, Report},
    rival::{MODES, Rival},
    samples::Samples,
};
use crate::{
    cluster::{Endpoint, Port},
    lab::{Lab, eventually},
    service::SOON,
    synthetic::Cluster,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire, node_address},
};

const PAIRS: Topology = Topology {
    nodes: &[
        NodeSpec::new("s", Kind::Shunt),
        NodeSpec::new("c1", Kind::Bare),
        NodeSpec::new("i", Kind::Shunt),
        NodeSpec::new("c2", Kind::Bare),
        NodeSpec::new("n", Kind::Shunt),
        NodeSpec::new("c3", Kind::Bare),
    ],
    fabric: Fabric::Cables,
    wire: Wire::Offloaded,
};
/// With how many Services, and how many times the iptables mode's connections there must be.
const SIZES: [(u32, f64); 2] = [(10, 1.0), (10_000, 8.0)];
const NODE_PORT: u16 = 30_080;
const PORT: u16 = 8080;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let mut lines: Vec<(&'static str, Vec<(f64, Figure)>)> = Vec::new();
    for (size, goal) in SIZES {
        let samples = of_size(size, options)?;
        for (rival, goal) in [("iptables", goal), ("nftables", 1.0)] {
            let name = format!("NodePort connections/s over {rival}, {size} Services");
            samples.row(report, &name, "shunt", rival, Goal::AtLeast(goal), "k/s");
        }
        samples.publish(
            report,
            &format!("TCP connections to a NodePort, {size} Services"),
            "k/s",
            Better::More,
            Some("connection"),
        );
        for name in ["shunt", "iptables", "nftables"] {
            let Some(figure) = samples.figure(name) else { continue };
            match lines.iter_mut().find(|(known, _)| *known == name) {
                Some((_, points)) => points.push((f64::from(size), figure)),
                None => lines.push((name, vec![(f64::from(size), figure)])),
            }
        }
    }
    let title = "TCP connections from outside through a NodePort".to_owned();
    report.curve(Curve { title, size: "Services", unit: "k/s", lines });
    Ok(())
}

fn of_size(size: u32, options: &Options) -> Result<Samples> {
    let mut lab = Lab::wired(&PAIRS)?;
    let rivals: Vec<_> = ["i", "n"]
        .into_iter()
        .zip(MODES)
        .map(|(node, mode)| Rival::set_up(&lab, node, mode, options))
        .collect::<Result<_>>()?;
    let pod = if options.rivals_only {
        None
    } else {
        lab.node_mut("s").start_agent()?;
        lab.node("s").wait_ready()?;
        Some(lab.pod("s", "b")?)
    };
    let backends = pod.iter().map(|pod| ("shunt", pod.node.as_str(), &pod.netns, pod.address));
    let backends =
        backends.chain(rivals.iter().map(|rival| (rival.name, rival.node(), &rival.pods[1].netns, rival.pods[1].address)));
    let (mut contenders, mut served) = (Vec::new(), BTreeMap::new());
    for (node_port, (name, node, server, backend)) in (NODE_PORT..).zip(backends) {
        let node = lab.node(node);
        put_service(&lab, name, &node.name, node_port, backend)?;
        let listener = server.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;
        served.insert(name, (listener, SocketAddrV4::new(node.address(), node_port)));
        // Numbers of nodes begin with 1, and behind each of them is its client.
        let client = &lab.bare[usize::from(node.number) / 2];
        let client_address = node_address(node.number + 1);
        contenders.push(Contender { name, client, client_address, server, server_address: node.address() });
    }
    let asked = contenders.len() as u32;
    Cluster { nodes: 100, services: size - asked, endpoints: 1 }.write_packed(lab.cluster.dir())?;
    let _running: Vec<_> = rivals.iter().map(|rival| rival.start(&lab, &lab.cluster)).collect::<Result<_>>()?;
    if pod.is_some() {
        // A node port is a frontend more.
        wait_for_services(lab.node("s"), u64::from(size + asked))?;
    }
    let ask = |contender: &Contender<'_>, period| {
        let (listener, to) = &served[contender.name];
        rate_to(contender.client, *to, listener, period)
    };
    for contender in &contenders {
        eventually(SOON, || ask(contender, Duration::from_millis(10)))?;
    }
    Samples::take(options.rounds(), &contenders, |contender| ask(contender, period(options)))
}

/// A Service with one backend and a port at every node.
fn put_service(lab: &Lab, name: &str, node: &str, node_port: u16, backend: Ipv4Addr) -> Result<()> {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 0)) + u32::from(node_port));
    let ports = [Port::tcp(PORT, PORT)];
    lab.cluster.put_endpoints(name, &ports, &[Endpoint::ready(backend, node)])?;
    lab.cluster.put_node_port(name, ip, &ports, node_port)
}
