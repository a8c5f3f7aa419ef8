//! The two that are compared: nodes of ours, and nodes of flannel and kube-proxy with the same pods, addresses and Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv4Addr,
    path::Path,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use shunt_common::config::link_local;
use shunt_lab::{
    flannel::FlannelNode,
    kube_proxy::{Mode, RealProxy},
    lab::{Lab, eventually},
    netns::Netns,
    service::{SOON, serve},
    topology::{PAIR, pod_range},
    traffic::{echo::Server, probe},
    translation::Translation,
};

use crate::cells::{Cell, Kind, Place, fixed_address, services};

/// Whom a server saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// An address of this place's own; a node has several.
    Of(Place),
    /// The gateway that pods of ours have, or what processes of a node see in its place.
    LinkLocal,
    /// Nobody's that we know.
    Stranger(Ipv4Addr),
}

/// What came of asking once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reply {
    Answered(Place, Source),
    Refused,
    Silent,
    Failed(String),
}

/// What came of asking several times.
pub(crate) type Outcome = BTreeSet<Reply>;

/// A lab with its pods and servers.
pub(crate) struct Side {
    lab: Lab,
    pods: BTreeMap<Place, (Netns, Ipv4Addr)>,
    _servers: Vec<[Server; 2]>,
    _proxies: Vec<RealProxy>,
}

const PODS: [Place; 4] = [Place::A, Place::B, Place::C, Place::D];

impl Side {
    /// Nodes of ours, with every Service in force.
    pub(crate) fn ours(translation: Translation) -> Result<Self> {
        let lab = Lab::build_with(&PAIR, translation)?;
        let mut pods = BTreeMap::new();
        for place in PODS {
            let pod = lab.pod(node_of(place), place.name())?;
            pods.insert(place, (pod.netns, pod.address));
        }
        let side = Self::serving(lab, pods)?;
        let wanted = services().len() * Kind::PER_NODE * 2;
        for node in &side.lab.nodes {
            eventually(SOON, || {
                let held = node.kernel()?.services()?.len();
                ensure!(held == wanted, "{} has {held} of {wanted} frontends", node.name);
                Ok(())
            })?;
        }
        Ok(side)
    }

    /// Nodes of flannel and kube-proxy, whose pods have the addresses of another side's; with rules as kube-proxy writes them, or with kube-proxy.
    pub(crate) fn theirs(ours: &Self, mode: Mode, program: Option<&Path>) -> Result<Self> {
        let lab = Lab::wired(&PAIR)?;
        let flannel = [FlannelNode::set_up(&lab, "n1")?, FlannelNode::set_up(&lab, "n2")?];
        flannel[0].add_peer(&lab.node("n1").netns, 2, &flannel[1].vtep_mac)?;
        flannel[1].add_peer(&lab.node("n2").netns, 1, &flannel[0].vtep_mac)?;
        let mut pods = BTreeMap::new();
        for place in PODS {
            let node = node_of(place);
            let flannel = flannel.iter().find(|flannel| flannel.name == node).context("its node")?;
            let [.., index] = ours.address(place).octets();
            let pod = flannel.pod(lab.node(node), place.name(), index)?;
            ensure!(pod.address == ours.address(place), "{} has {}", place.name(), pod.address);
            pods.insert(place, (pod.netns, pod.address));
        }
        let mut side = Self::serving(lab, pods)?;
        for flannel in flannel {
            match program {
                Some(program) => {
                    let node = side.lab.node(&flannel.name);
                    side._proxies.push(RealProxy::start(program, node, &side.lab.cluster, mode)?);
                }
                None => flannel.proxy(&side.lab, mode)?,
            }
        }
        Ok(side)
    }

    /// Starts the servers and writes the Services.
    fn serving(lab: Lab, pods: BTreeMap<Place, (Netns, Ipv4Addr)>) -> Result<Self> {
        let mut side = Self { lab, pods, _servers: Vec::new(), _proxies: Vec::new() };
        for place in Place::SERVERS {
            side._servers.push(serve(side.netns(place), side.address(place), place.name())?);
        }
        let Self { lab, .. } = &side;
        for node in &lab.nodes {
            // A kernel refuses a client once a second, after the first few times. This one asks for many Services at once.
            node.netns.sysctl("ipv4/icmp_ratelimit", "0")?;
        }
        let around = lab.surroundings.as_ref().context("a router")?;
        for range in ["10.96.1.0/24", "198.51.100.0/23"] {
            around.route(range, lab.node("n1").address())?;
        }
        lab.cluster.label_node("n1", "topology.kubernetes.io/zone", "z1")?;
        lab.cluster.label_node("n2", "topology.kubernetes.io/zone", "z2")?;
        let objects: Vec<_> = services().iter().flat_map(|service| service.objects(|place| side.address(place))).collect();
        lab.cluster.put("truth-table.yaml", &objects)?;
        Ok(side)
    }

    fn netns(&self, place: Place) -> &Netns {
        match place {
            Place::N1 | Place::N2 => &self.lab.node(place.name()).netns,
            Place::Outside => self.lab.outside(),
            _ => &self.pods[&place].0,
        }
    }

    fn address(&self, place: Place) -> Ipv4Addr {
        fixed_address(place).unwrap_or_else(|| self.pods[&place].1)
    }

    /// Asks what every cell asks, from all places at once; outcomes in the cells' order.
    pub(crate) fn ask(&self, cells: &[Cell], insistently: bool) -> Result<Vec<Outcome>> {
        let outcomes = thread::scope(|scope| {
            let askers = Place::ALL.map(|place| {
                scope.spawn(move || {
                    let (places, questions): (Vec<_>, Vec<_>) = cells
                        .iter()
                        .enumerate()
                        .filter(|(_, cell)| cell.from == place)
                        .map(|(index, cell)| (index, cell.question(insistently)))
                        .unzip();
                    let outcomes = probe::ask_all(self.netns(place), &questions);
                    places.into_iter().zip(outcomes).collect::<Vec<_>>()
                })
            });
            let outcomes = askers.into_iter().map(|asker| asker.join().map_err(|_| anyhow!("an asker panicked")));
            outcomes.collect::<Result<Vec<_>>>()
        })?;
        let by_cell: BTreeMap<usize, BTreeSet<probe::Reply>> = outcomes.into_iter().flatten().collect();
        Ok(by_cell.into_values().map(|replies| replies.into_iter().map(|reply| self.understand(reply)).collect()).collect())
    }

    /// What nodes of ours have dropped, and why.
    pub(crate) fn drops(&self) -> Result<String> {
        let mut all = String::new();
        for node in &self.lab.nodes {
            for (reason, count) in node.kernel()?.drops()?.into_iter().filter(|(_, count)| *count > 0) {
                // A String takes whatever is written to it.
                let _ = writeln!(all, "{}: {count} {reason:?}", node.name);
            }
        }
        Ok(all)
    }

    fn understand(&self, reply: probe::Reply) -> Reply {
        match reply {
            probe::Reply::Refused => Reply::Refused,
            probe::Reply::Silent => Reply::Silent,
            probe::Reply::Failed(why) => Reply::Failed(why),
            probe::Reply::Answered { server, source } => {
                match Place::SERVERS.into_iter().find(|place| place.name() == server) {
                    Some(place) => Reply::Answered(place, self.owner(source)),
                    None => Reply::Failed(format!("{server} answered")),
                }
            }
        }
    }

    fn owner(&self, address: Ipv4Addr) -> Source {
        let bridge = |number| {
            let [a, b, c, first] = pod_range(number).0.octets();
            [Ipv4Addr::new(a, b, c, first), Ipv4Addr::new(a, b, c, first + 1)]
        };
        let is_ours = [link_local::GATEWAY, link_local::HAIRPIN].into_iter().any(|it| address == Ipv4Addr::from(it));
        match Place::ALL.into_iter().find(|place| self.address(*place) == address) {
            Some(place) => Source::Of(place),
            None if is_ours => Source::LinkLocal,
            // A node masquerades with the address of the device that leads on: cni0 and flannel.1 have one each.
            None if bridge(1).contains(&address) => Source::Of(Place::N1),
            None if bridge(2).contains(&address) => Source::Of(Place::N2),
            None => Source::Stranger(address),
        }
    }
}

fn node_of(pod: Place) -> &'static str {
    pod.node().map(Place::name).unwrap_or_default()
}
