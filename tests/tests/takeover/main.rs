//! A node that runs flannel and kube-proxy becomes ours while its pods run, in a cluster where another node is ours and a third stays flannel's.
//!
//! ```text
//!   outside -- router --+-- n1 -- pods a, b    flannel and kube-proxy, then shunt
//!                       +-- n2 -- pod c        shunt
//!                       +-- f3 -- pod p        flannel
//! ```

mod adopted;
mod refusals;
mod rollback;
mod survival;

use std::net::SocketAddrV4;

use anyhow::{Context, Result, ensure};
use shunt_lab::{
    cluster::Endpoint,
    flannel::{FlannelNode, FlannelPod, NETWORK, rules},
    kube_proxy::Mode,
    lab::{Lab, eventually},
    netns::Netns,
    plain::PlainPod,
    pod::{Call, Pod, answer},
    service::{PORT, PORTS, TARGET, serve, tcp_answer, udp_answer},
    topology::{MIXED, OUTSIDE, node_address, pod_range},
    traffic::{
        echo::{Server, TcpClient, UdpClient},
        flood::Flood,
        steady::Steady,
    },
};

const VIP: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 96, 0, 10);

struct Scene {
    lab: Lab,
    flannel: FlannelNode,
    a: FlannelPod,
    b: FlannelPod,
    c: Pod,
    p: PlainPod,
    _servers: Vec<[Server; 2]>,
}

/// The cluster before: a Service with pods of all three nodes behind it.
fn scene(mode: Mode) -> Result<Scene> {
    let mut lab = Lab::wired(&MIXED)?;
    lab.node_mut("n2").start_agent()?;
    let flannel = FlannelNode::set_up(&lab, "n1")?;
    let n1 = lab.node("n1");
    let (a, b) = (flannel.pod(n1, "a", 10)?, flannel.pod(n1, "b", 11)?);
    lab.node("n2").wait_ready()?;
    let c = lab.pod("n2", "c")?;
    let p = lab.plain[0].pod("p", 10)?;
    lab.cluster.put_service("web", VIP, &PORTS)?;
    let endpoints = [Endpoint::ready(b.address, "n1"), Endpoint::ready(c.address, "n2"), Endpoint::ready(p.address, "f3")];
    lab.cluster.put_endpoints("web", &PORTS, &endpoints)?;
    flannel.proxy(&lab, mode)?;
    let outside = lab.outside();
    let servers = vec![
        serve(&a.netns, a.address, "a")?,
        serve(&b.netns, b.address, "b")?,
        serve(&c.netns, c.address, "c")?,
        serve(&p.netns, p.address, "p")?,
        serve(&n1.netns, n1.address(), "n1")?,
        serve(outside, OUTSIDE, "outside")?,
    ];
    Ok(Scene { lab, flannel, a, b, c, p, _servers: servers })
}

impl Scene {
    /// Who asks whom, by name: pods, nodes and the outside in every direction that there is.
    fn ways(&self) -> Vec<(String, &Netns, SocketAddrV4)> {
        let n1 = &self.lab.node("n1").netns;
        let vip = SocketAddrV4::new(VIP, PORT);
        let at = |address| SocketAddrV4::new(address, TARGET);
        let (a, b, c, p) = (at(self.a.address), at(self.b.address), at(self.c.address), at(self.p.address));
        let node = at(self.lab.node("n1").address());
        let outside = at(OUTSIDE);
        [
            ("a to b", &self.a.netns, b),
            ("a to c", &self.a.netns, c),
            ("a to p", &self.a.netns, p),
            ("c to a", &self.c.netns, a),
            ("p to a", &self.p.netns, a),
            ("a to its node", &self.a.netns, node),
            ("p to the node", &self.p.netns, node),
            ("the node to a", n1, a),
            ("the node to p", n1, p),
            ("the node to c", n1, c),
            ("a to the Service", &self.a.netns, vip),
            ("b to the Service", &self.b.netns, vip),
            ("the node to the Service", n1, vip),
            ("a to the outside", &self.a.netns, outside),
        ]
        .into_iter()
        .map(|(name, netns, to)| (name.to_owned(), netns, to))
        .collect()
    }

    fn connections(&self, each: usize) -> Result<Vec<(String, TcpClient)>> {
        let mut open = Vec::new();
        for (name, from, to) in self.ways() {
            for _ in 0..each {
                let client = TcpClient::connect(from, to).with_context(|| name.clone())?;
                open.push((format!("{name} ({})", client.server), client));
            }
        }
        Ok(open)
    }

    fn everything_works(&self) -> Result<()> {
        for (name, from, to) in self.ways() {
            tcp_answer(from, to).with_context(|| format!("{name}, TCP"))?;
            udp_answer(from, to).with_context(|| format!("{name}, UDP"))?;
        }
        Ok(())
    }
}

/// What an operator is told of the takeover.
fn notes(scene: &Scene) -> Result<String> {
    Ok(scene.lab.node("n1").status()?.notes.join("\n"))
}
