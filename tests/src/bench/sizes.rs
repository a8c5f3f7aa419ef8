//! Nodes with few and with many Services, all standing at the same time, so that what the machine does meanwhile is not taken for a slope.
//!
//! ```text
//!   outside ===cable=== node: pod a - pod b      for each size three times: shunt, and flannel with kube-proxy's rules in either mode
//! ```
//!
//! Every node is the only one of its cluster, in which one Service leads to pod b. Its name is in the middle of all: where kube-proxy
//! writes its rules is chance. Ours give a backend by `connect()` where they can, as they do by default.
//!
//! Beside them is a node without any Service, which a host outside asks for a process of its own.

use std::{net::Ipv4Addr, thread};

use anyhow::{Result, anyhow};

use super::{
    Options,
    arena::{Contender, End},
    connections,
    figure::Figure,
    http,
    large::wait_for_services,
    latency,
    report::{Better, Curve, Lines},
    rival::{MODES, Rival},
    samples::Samples,
};
use crate::{
    cluster::{self, Endpoint, Port},
    kube_proxy::RealProxy,
    lab::Lab,
    node::Node,
    pod::Pod,
    synthetic::Cluster,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire, node_address},
    traffic::iperf,
    translation::Translation,
};

/// One size: nodes and what their contenders are called, ours and one for each of [`MODES`] or the first of them.
#[derive(Debug)]
pub(super) struct Size {
    pub(super) services: u32,
    nodes: &'static [&'static str],
    pub(super) names: &'static [&'static str],
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

const fn outside(name: &'static str) -> NodeSpec {
    NodeSpec::new(name, Kind::Bare)
}

/// The node without Services is the first.
const NODES: [NodeSpec; 24] = [
    outside("p"),
    outside("p-x"),
    node("s1"),
    outside("s1-x"),
    node("i1"),
    outside("i1-x"),
    node("n1"),
    outside("n1-x"),
    node("s2"),
    outside("s2-x"),
    node("i2"),
    outside("i2-x"),
    node("n2"),
    outside("n2-x"),
    node("s3"),
    outside("s3-x"),
    node("i3"),
    outside("i3-x"),
    node("n3"),
    outside("n3-x"),
    node("s4"),
    outside("s4-x"),
    node("i4"),
    outside("i4-x"),
];
const ALL: Topology = Topology { nodes: &NODES, fabric: Fabric::Cables, wire: Wire::Offloaded };
const FEW: Topology = Topology { nodes: NODES.first_chunk::<14>().unwrap(), ..ALL };

/// Of the Service that is asked, each with the same number at pod b, at the ClusterIP and at the node.
const PORTS: [Port; 4] = [
    Port::udp(latency::PORT, latency::PORT),
    Port::tcp(http::PORT, http::PORT),
    Port::tcp(connections::PORT, connections::PORT),
    Port::tcp(iperf::PORT, iperf::PORT),
];
/// Outside of what the synthetic cluster uses.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 10);

/// How a client comes to the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frontend {
    /// Pod a asks its virtual IP.
    ClusterIp,
    /// The host outside asks the node.
    NodePort,
}

impl Frontend {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
        }
    }
}

/// What the contender on no Service's way is called.
pub(super) const WITHOUT_SERVICES: &str = "a process";

/// Which of the hosts that are no nodes is at the other end of a numbered node's cable: every cable has one, the first has two.
fn outside_of(number: u8) -> usize {
    usize::from(number) / 2 + 1
}

/// The standing nodes.
pub(super) struct Sizes {
    /// Ended before the lab is removed.
    _running: Vec<Option<RealProxy>>,
    lab: Lab,
    /// From the least to the largest.
    sides: Vec<Side>,
}

/// The nodes of one size.
struct Side {
    size: &'static Size,
    /// None if rivals are alone.
    ours: Option<[Pod; 2]>,
    rivals: Vec<Rival>,
}

impl Sizes {
    pub(super) fn build(options: &Options) -> Result<Self> {
        let (sizes, topology) = if options.quick { (&SIZES[..2], &FEW) } else { (&SIZES[..], &ALL) };
        let mut lab = Lab::wired_with(topology, Translation::Connect)?;
        let (mut sides, mut clusters) = (Vec::new(), Vec::new());
        for size in sizes {
            let nodes = size.nodes[1..].iter().zip(MODES);
            let rivals: Vec<_> =
                nodes.map(|(node, (_, mode))| Rival::set_up(&lab, node, mode, options)).collect::<Result<_>>()?;
            let of_rivals = rivals.iter().map(|rival| cluster_of(&lab, lab.node(rival.node()), size, rival.pods[1].address));
            clusters.push(of_rivals.collect::<Result<Vec<_>>>()?);
            let ours = if options.rivals_only { None } else { Some(start(&mut lab, size)?) };
            sides.push(Side { size, ours, rivals });
        }
        let running = start_rivals(&lab, &sides, &clusters)?;
        for side in sides.iter().filter(|side| side.ours.is_some()) {
            // Each of the ports is one at the virtual IP and one at the node.
            let frontends = side.size.services - 1 + 2 * PORTS.len() as u32;
            let node = lab.node(side.size.nodes[0]);
            wait_for_services(node, u64::from(frontends))?;
            Translation::Connect.check(node)?;
        }
        sides.sort_by_key(|side| side.size.services);
        Ok(Self { _running: running, lab, sides })
    }

    /// From the least to the largest.
    pub(super) fn sizes(&self) -> impl Iterator<Item = &'static Size> + Clone {
        self.sides.iter().map(|side| side.size)
    }

    /// All that stand, each as it is asked through a frontend.
    pub(super) fn contenders(&self, frontend: Frontend) -> Vec<Contender<'_>> {
        let mut contenders = Vec::new();
        for Side { size, ours, rivals, .. } in &self.sides {
            let ours = ours.iter().map(|[a, b]| (0, (&a.netns, a.address), (&b.netns, b.address)));
            let theirs = (1..).zip(rivals).map(|(index, rival)| {
                let [a, b] = &rival.pods;
                (index, (&a.netns, a.address), (&b.netns, b.address))
            });
            for (index, client, server) in ours.chain(theirs) {
                let node = self.lab.node(size.nodes[index]);
                let (client, asked) = match frontend {
                    Frontend::ClusterIp => (client, VIP),
                    Frontend::NodePort => (self.outside(node), node.address()),
                };
                contenders.push(Contender { asked, ..Contender::new(size.names[index], client, server) });
            }
        }
        contenders
    }

    /// A process of a node without any Service, asked by the host outside: nothing is translated on the way.
    pub(super) fn without_services(&self) -> Contender<'_> {
        let [node, outside] = [0, 1].map(|index| &self.lab.bare[index]);
        Contender::new(WITHOUT_SERVICES, (outside, node_address(2)), (node, node_address(1)))
    }

    /// The host at the other end of a node's cable. Numbers begin with 1, and the host's follows the node's.
    fn outside(&self, node: &Node) -> End<'_> {
        (&self.lab.bare[outside_of(node.number)], node_address(node.number + 1))
    }

    /// What was measured over the sizes, with a line for each way; and the CPU time that a piece of work took, if it was counted.
    pub(super) fn curve(
        &self,
        samples: &Samples,
        title: String,
        unit: &'static str,
        better: Better,
        work: Option<&'static str>,
    ) -> Curve {
        let (lines, cpu) = lines(self.sizes(), samples);
        Curve { cpu: work.map(|work| (work, cpu)), ..Curve::over_services(title, unit, better, lines) }
    }
}

/// Figures by sizes, and CPU times at them.
fn lines(sizes: impl Iterator<Item = &'static Size> + Clone, samples: &Samples) -> (Lines<Figure>, Lines<f64>) {
    let (mut lines, mut cpu) = (Vec::new(), Vec::new());
    for (index, line) in ["shunt", MODES[0].0, MODES[1].0].into_iter().enumerate() {
        let named = || sizes.clone().filter_map(|size| Some((f64::from(size.services), *size.names.get(index)?)));
        let points: Vec<_> = named().filter_map(|(services, name)| Some((services, samples.figure(name)?))).collect();
        if !points.is_empty() {
            lines.push((line, points));
            cpu.push((line, named().filter_map(|(services, name)| Some((services, samples.cpu(name)?))).collect()));
        }
    }
    (lines, cpu)
}

/// A node of ours with its pods, started before all of its cluster is there.
fn start(lab: &mut Lab, size: &Size) -> Result<[Pod; 2]> {
    let name = size.nodes[0];
    // It has to have a cluster with its node in it, which gets its backend only once there is one.
    let cluster = empty_cluster(lab, lab.node(name))?;
    lab.node_mut(name).start_agent_on(Some(cluster.dir()))?;
    lab.node(name).wait_ready()?;
    let pods = [lab.pod(name, "a")?, lab.pod(name, "b")?];
    fill(&cluster, lab.node(name), size, pods[1].address)?;
    Ok(pods)
}

/// Puts all rules in force, at the same time: a large cluster's take long.
fn start_rivals(lab: &Lab, sides: &[Side], clusters: &[Vec<cluster::Cluster>]) -> Result<Vec<Option<RealProxy>>> {
    thread::scope(|scope| {
        let mut starts = Vec::new();
        for (side, clusters) in sides.iter().zip(clusters) {
            let of_side = side.rivals.iter().zip(clusters);
            starts.extend(of_side.map(|(rival, cluster)| scope.spawn(move || rival.start(lab, cluster))));
        }
        starts.into_iter().map(|start| start.join().map_err(|_| anyhow!("writing rules panicked"))?).collect()
    })
}

/// The cluster of a node, with nothing else.
fn empty_cluster(lab: &Lab, node: &Node) -> Result<cluster::Cluster> {
    let cluster = cluster::Cluster::new(&lab.dir().join(format!("cluster-{}", node.name)))?;
    cluster.put_node(&node.name, node.address(), node.pod_range(), None)?;
    Ok(cluster)
}

fn cluster_of(lab: &Lab, node: &Node, size: &Size, backend: Ipv4Addr) -> Result<cluster::Cluster> {
    let cluster = empty_cluster(lab, node)?;
    fill(&cluster, node, size, backend)?;
    Ok(cluster)
}

/// The Service that is asked, and those that nobody asks.
fn fill(cluster: &cluster::Cluster, node: &Node, size: &Size, backend: Ipv4Addr) -> Result<()> {
    let others = size.services - 1;
    let name = name_in_the_middle(others);
    cluster.put_endpoints(&name, &PORTS, &[Endpoint::ready(backend, &node.name)])?;
    cluster.put_same_ports(&name, VIP, &PORTS)?;
    Ok(Cluster { nodes: 100, services: others, endpoints: 1 }.write_packed(cluster.dir())?)
}

/// A name that is in the middle of those of a synthetic cluster's Services.
fn name_in_the_middle(services: u32) -> String {
    let mut numbers: Vec<_> = (0..services).map(|number| number.to_string()).collect();
    numbers.sort();
    format!("service-{}-asked", numbers[numbers.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_can_be_node_ports_and_sizes_fit_their_nodes() {
        assert!(PORTS.iter().all(|port| port.port == port.target && (30_000..=32_767).contains(&port.port)));
        let named: Vec<_> = SIZES.iter().flat_map(|size| size.nodes).collect();
        let [without, rest @ ..] = NODES.as_chunks::<2>().0 else { panic!("no nodes") };
        assert!(without.iter().all(|end| end.kind == Kind::Bare));
        let wired: Vec<_> = rest.iter().map(|pair| (&pair[0].name, pair[1].kind)).collect();
        assert_eq!(named.iter().map(|name| (*name, Kind::Bare)).collect::<Vec<_>>(), wired);
        assert!(SIZES.iter().all(|size| size.nodes.len() == size.names.len()));
    }

    #[test]
    fn a_node_is_asked_by_the_host_at_its_own_cable() {
        let bare: Vec<_> = NODES.iter().filter(|node| node.kind == Kind::Bare).map(|node| node.name).collect();
        for (number, node) in (1..).zip(&NODES).filter(|(_, node)| node.kind == Kind::Shunt) {
            assert_eq!(bare[outside_of(number)], format!("{}-x", node.name));
        }
    }

    #[test]
    fn a_line_has_the_sizes_at_which_its_way_was_measured() {
        let samples = Samples::made_up(&[
            ("shunt (10)", &[3.0]),
            ("shunt (30,000)", &[2.0]),
            ("iptables (30,000)", &[1.0]),
            ("somebody else", &[9.0]),
        ]);
        let (lines, cpu) = lines(SIZES.iter(), &samples);
        let medians: Vec<_> = lines
            .iter()
            .map(|(name, points)| (*name, points.iter().map(|(size, figure)| (*size, figure.median)).collect::<Vec<_>>()))
            .collect();
        assert_eq!(medians, [("shunt", vec![(10.0, 3.0), (30_000.0, 2.0)]), ("iptables", vec![(30_000.0, 1.0)])]);
        assert_eq!(cpu, [("shunt", vec![(10.0, 1000.0), (30_000.0, 1000.0)]), ("iptables", vec![(30_000.0, 1000.0)])]);
    }

    #[test]
    fn half_of_the_services_come_before_the_one_that_is_asked() {
        let asked = name_in_the_middle(9_999);
        let before = (0..9_999).filter(|number| format!("service-{number}") < asked).count();
        assert_eq!(before, 5_000);
    }
}
