//! What the first packet of a flow waits for on its way through a Service, with few and with many Services: a datagram until its
//! answer is there, and a connection until it stands.
//!
//! ```text
//!   node: pod a - pod b      for each size three times: shunt, and flannel with kube-proxy's rules in either mode
//! ```
//!
//! All sizes stand at the same time and take turns, so that what the machine does meanwhile is not taken for a slope. One thread is client and
//! server. The Service that is asked is in the middle of the rules: where kube-proxy writes it is chance.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

use super::{
    Options,
    arena::Contender,
    figure::percentile,
    large::wait_for_services,
    pin,
    report::{Curve, Goal, Report},
    rival::{MODES, Rival},
    samples::{Sample, Samples},
};
use crate::{
    cluster::{self, Endpoint, Port},
    kube_proxy::RealProxy,
    lab::{Lab, eventually},
    node::Node,
    pod::Pod,
    service::SOON,
    synthetic::Cluster,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire},
};

/// One size: nodes and what their contenders are called.
struct Size {
    services: u32,
    /// Ours, and one for each of [`MODES`] or the first of them.
    nodes: &'static [&'static str],
    names: &'static [&'static str],
}

/// A quick run takes the first two. The nftables mode's kernel takes minutes for 30,000 Services, as long as it takes all others together: each
/// of its sets is looked for among all.
const SIZES: [Size; 4] = [
    Size { services: 10, nodes: &["s1", "i1", "n1"], names: &["shunt (10)", "iptables (10)", "nftables (10)"] },
    Size { services: 10_000, nodes: &["s2", "i2", "n2"], names: &["shunt (10,000)", "iptables (10,000)", "nftables (10,000)"] },
    Size { services: 1_000, nodes: &["s3", "i3", "n3"], names: &["shunt (1,000)", "iptables (1,000)", "nftables (1,000)"] },
    Size { services: 30_000, nodes: &["s4", "i4"], names: &["shunt (30,000)", "iptables (30,000)"] },
];

const fn node(name: &'static str) -> NodeSpec {
    NodeSpec::new(name, Kind::Shunt)
}

const NODES: [NodeSpec; 12] = [
    node("s1"),
    node("i1"),
    node("n1"),
    node("s2"),
    node("i2"),
    node("n2"),
    node("s3"),
    node("i3"),
    node("n3"),
    node("s4"),
    node("i4"),
    // Nobody's: the other end of the last cable.
    node("n4"),
];
const FEW: Topology = Topology { nodes: NODES.first_chunk::<6>().unwrap(), fabric: Fabric::Cables, wire: Wire::Offloaded };
const ALL: Topology = Topology { nodes: &NODES, ..FEW };

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(1);
/// What is measured: the name of a row's beginning, and the title of a curve.
const MEASURED: [(&str, &str); 2] = [
    ("first datagram's answer", "A new flow's first datagram through a ClusterIP until its answer is there, same node"),
    ("TCP connect", "A TCP connection through a ClusterIP until it stands, same node"),
];

/// A contender's ends, with what its client asks.
struct Scene<'a> {
    contender: Contender<'a>,
    datagrams: UdpSocket,
    connections: TcpListener,
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let (sizes, topology) = if options.quick { (&SIZES[..2], &FEW) } else { (&SIZES[..], &ALL) };
    let mut lab = Lab::wired(topology)?;
    let (mut pods, mut rivals, mut clusters) = (Vec::new(), Vec::new(), Vec::new());
    for size in sizes {
        let rivals_of_size: Vec<_> = size.nodes[1..]
            .iter()
            .zip(MODES)
            .map(|(node, mode)| Rival::set_up(&lab, node, mode, options))
            .collect::<Result<_>>()?;
        let cluster = cluster_of(&lab, size)?;
        if !options.rivals_only {
            let node = size.nodes[0];
            lab.node_mut(node).start_agent_on(Some(cluster.dir()))?;
            lab.node(node).wait_ready()?;
            pods.push([lab.pod(node, "a")?, lab.pod(node, "b")?]);
            put_backend(&cluster, size, 0, lab.node(node), pods[pods.len() - 1][1].address)?;
        }
        for (index, rival) in (1..).zip(&rivals_of_size) {
            put_backend(&cluster, size, index, lab.node(rival.node()), rival.pods[1].address)?;
        }
        fill(&cluster, size)?;
        clusters.push(cluster);
        rivals.push(rivals_of_size);
    }
    let _running = start_all(&lab, &rivals, &clusters)?;
    for size in sizes.iter().filter(|_| !options.rivals_only) {
        // One with TCP and UDP for each contender, and the others.
        wait_for_services(lab.node(size.nodes[0]), u64::from(size.services) + size.nodes.len() as u64)?;
    }

    let mut scenes = Vec::new();
    for (index, size) in sizes.iter().enumerate() {
        let ours = pods.get(index).map(|[a, b]: &[Pod; 2]| (0, &a.netns, a.address, &b.netns));
        let theirs = (1..).zip(&rivals[index]).map(|(index, rival)| {
            let [a, b] = &rival.pods;
            (index, &a.netns, a.address, &b.netns)
        });
        for (index, client, client_address, server) in ours.into_iter().chain(theirs) {
            let contender = Contender { name: size.names[index], client, client_address, server, server_address: vip(index) };
            scenes.push(Scene::open(contender)?);
        }
    }
    for scene in &scenes {
        eventually(SOON, || scene.sample(1)).with_context(|| format!("{} doesn't answer", scene.contender.name))?;
    }
    let contenders: Vec<_> = scenes.iter().map(|scene| scene.contender).collect();
    let tries = if options.quick { 100 } else { 300 };
    let samples = Samples::take_several(options.many_rounds(), &contenders, |contender| {
        let scene = scenes.iter().find(|scene| scene.contender.name == contender.name).context("it has no scene")?;
        scene.sample(tries)
    })?;
    for (samples, (what, title)) in samples.iter().zip(MEASURED) {
        publish(report, samples, sizes, what, title);
    }
    Ok(())
}

/// Puts all rules in force, at the same time: a large cluster's take long.
fn start_all(lab: &Lab, rivals: &[Vec<Rival>], clusters: &[cluster::Cluster]) -> Result<Vec<Option<RealProxy>>> {
    thread::scope(|scope| {
        let mut starts = Vec::new();
        for (rivals, cluster) in rivals.iter().zip(clusters) {
            starts.extend(rivals.iter().map(|rival| scope.spawn(move || rival.start(lab, cluster))));
        }
        starts.into_iter().map(|start| start.join().map_err(|_| anyhow!("writing rules panicked"))?).collect()
    })
}

fn publish(report: &mut Report, samples: &Samples, sizes: &[Size], what: &str, title: &str) {
    let mut by_size: Vec<_> = sizes.iter().collect();
    by_size.sort_by_key(|size| size.services);
    let (least, others) = (by_size[0], &by_size[1..]);
    for size in others {
        let name = format!("{what}, {} Services over {}", size.services, least.services);
        samples.row(report, &name, size.names[0], least.names[0], Goal::AtMost(1.10), "us");
    }
    for (index, (rival, _)) in (1..).zip(MODES) {
        for size in &by_size {
            let name = format!("{what} over {rival}, {} Services", size.services);
            let Some(theirs) = size.names.get(index) else { continue };
            samples.row(report, &name, size.names[0], theirs, Goal::AtMost(1.0), "us");
        }
    }
    let lines = ["shunt", MODES[0].0, MODES[1].0].into_iter().enumerate().map(|(index, line)| {
        let points =
            by_size.iter().filter_map(|size| Some((f64::from(size.services), samples.figure(size.names.get(index)?)?)));
        (line, points.collect())
    });
    report.curve(Curve { title: title.to_owned(), size: "Services", unit: "us", lines: lines.collect() });
}

/// The cluster of one size, with its nodes and nothing else.
fn cluster_of(lab: &Lab, size: &Size) -> Result<cluster::Cluster> {
    let cluster = cluster::Cluster::new(&lab.dir().join(format!("cluster-{}", size.services)))?;
    for node in size.nodes.iter().map(|name| lab.node(name)) {
        cluster.put_node(&node.name, node.address(), node.pod_range(), None)?;
    }
    Ok(cluster)
}

/// All Services that nobody asks.
fn fill(cluster: &cluster::Cluster, size: &Size) -> Result<()> {
    let synthetic = Cluster { nodes: 100, services: size.services - size.nodes.len() as u32, endpoints: 1 };
    Ok(synthetic.write_packed(cluster.dir())?)
}

/// The Service that a contender asks, whose name is in the middle of all.
fn put_backend(cluster: &cluster::Cluster, size: &Size, index: usize, node: &Node, backend: Ipv4Addr) -> Result<()> {
    let mut names: Vec<_> = (0..size.services - size.nodes.len() as u32).map(|number| number.to_string()).collect();
    names.sort();
    let name = format!("service-{}-asked-{index}", names[names.len() / 2]);
    let ports = [Port::tcp(PORT, PORT), Port::udp(PORT, PORT)];
    cluster.put_endpoints(&name, &ports, &[Endpoint::ready(backend, &node.name)])?;
    cluster.put_service(&name, vip(index), &ports)
}

/// Outside of what the synthetic cluster uses.
fn vip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 100, 0, 10 + index as u8)
}

impl<'a> Scene<'a> {
    fn open(contender: Contender<'a>) -> Result<Self> {
        let at = (Ipv4Addr::UNSPECIFIED, PORT);
        let (datagrams, connections) = contender.server.inside(|| (UdpSocket::bind(at), TcpListener::bind(at)));
        let datagrams = datagrams?;
        datagrams.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { contender, datagrams, connections: connections? })
    }

    /// Medians over some tries, in microseconds: of a datagram's answer, and of a connection.
    fn sample(&self, tries: usize) -> Result<Sample<2>> {
        let to = SocketAddrV4::new(self.contender.server_address, PORT);
        let (answers, connects) = self.contender.client.inside(|| -> Result<_> {
            pin::here();
            let answers: Vec<f64> = (0..tries).map(|_| self.ask(to)).collect::<io::Result<_>>().context("a datagram")?;
            let connects: Vec<f64> = (0..tries).map(|_| self.connect(to)).collect::<io::Result<_>>().context("a connection")?;
            Ok((answers, connects))
        })?;
        Ok(Sample { values: [percentile(&answers, 0.5), percentile(&connects, 0.5)], work: f64::NAN })
    }

    fn ask(&self, to: SocketAddrV4) -> io::Result<f64> {
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.connect(to)?;
        let mut buffer = [0; 64];
        let start = Instant::now();
        client.send(&[1; 32])?;
        let (len, peer) = self.datagrams.recv_from(&mut buffer)?;
        self.datagrams.send_to(&buffer[..len], peer)?;
        client.recv(&mut buffer)?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    fn connect(&self, to: SocketAddrV4) -> io::Result<f64> {
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // Reset at the end, so that no port is left waiting.
        setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        let start = Instant::now();
        connect(client.as_raw_fd(), &SockaddrIn::from(to))?;
        let took = start.elapsed();
        let server = self.connections.accept()?;
        drop(client);
        drop(server);
        Ok(took.as_secs_f64() * 1e6)
    }
}
