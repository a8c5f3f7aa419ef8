//! A node of flannel and kube-proxy with 50 pods is taken over under load: how long it takes, and which connections are lost.
//!
//! ```text
//!   n1 -- 50 pods     flannel and kube-proxy, then shunt      n2 -- pod c     shunt      f3 -- pod p     flannel
//! ```

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Options,
    figure::Figure,
    report::{Goal, Report},
};
use crate::{
    cluster::Endpoint,
    flannel::{FlannelNode, FlannelPod},
    kube_proxy::Mode,
    lab::Lab,
    service::{PORT, PORTS, TARGET, serve},
    topology::MIXED,
    traffic::{
        echo::{Server, TcpClient},
        flood::Flood,
        steady::Steady,
    },
};

const PODS: u8 = 50;
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let rounds = options.long_rounds(options.rounds().min(3));
    let (mut took, mut lost, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    let (mut connections, mut datagrams) = (0, 0);
    for _ in 0..rounds {
        let round = round()?;
        took.push(round.took.as_secs_f64());
        lost.push(round.lost as f64);
        gone.push(round.datagrams_lost as f64);
        connections += round.connections;
        datagrams += round.datagrams;
    }
    let detail = format!("{PODS} pods, from the start of the agent until its record says that all is in force");
    report.row("takeover of a node of flannel and kube-proxy", Goal::AtMost(1.0), " s", Figure::of(&took), detail);
    let detail = format!("of {connections} of pods to pods, Services and other nodes, in {rounds} takeovers");
    report.row("... TCP connections lost", Goal::AtMost(0.0), "", Figure::of(&lost), detail);
    let detail = format!("of {datagrams} sent meanwhile");
    report.row("... datagrams lost", Goal::AtMost(0.0), "", Figure::of(&gone), detail);
    Ok(())
}

struct Round {
    took: Duration,
    connections: usize,
    lost: usize,
    datagrams: u64,
    datagrams_lost: u64,
}

fn round() -> Result<Round> {
    let mut lab = Lab::wired(&MIXED)?;
    lab.node_mut("n2").start_agent()?;
    let flannel = FlannelNode::set_up(&lab, "n1")?;
    let n1 = lab.node("n1");
    let pods: Vec<FlannelPod> =
        (0..PODS).map(|index| flannel.pod(n1, &format!("p{index}"), 10 + index)).collect::<Result<_>>()?;
    lab.node("n2").wait_ready()?;
    let (c, p) = (lab.pod("n2", "c")?, lab.plain[0].pod("p", 10)?);
    let ends: Vec<_> = [(&pods[0].netns, pods[0].address), (&c.netns, c.address), (&p.netns, p.address)].into();
    let _servers: Vec<[Server; 2]> =
        ends.iter().map(|(netns, address)| serve(netns, *address, "server")).collect::<Result<_>>()?;
    let vip = SocketAddrV4::new(VIP, PORT);
    let endpoints: Vec<_> = ends.iter().map(|(_, address)| SocketAddrV4::new(*address, TARGET)).collect();
    lab.cluster.put_service("web", VIP, &PORTS)?;
    let nodes = ["n1", "n2", "f3"];
    let ready: Vec<_> = ends.iter().zip(nodes).map(|((_, address), node)| Endpoint::ready(*address, node)).collect();
    lab.cluster.put_endpoints("web", &PORTS, &ready)?;
    flannel.proxy(&lab, Mode::Iptables)?;

    let mut open = Vec::new();
    let mut floods = Vec::new();
    for pod in &pods {
        for to in endpoints.iter().copied().chain([vip, vip]) {
            let client = TcpClient::connect(&pod.netns, to).with_context(|| format!("{} to {to}", pod.name))?;
            open.push((format!("{} to {to}", pod.name), client));
        }
        floods.push(Flood::start(&pod.netns, vip, Duration::from_millis(20))?);
    }
    let connections = open.len();
    let steady = Steady::start(open, Duration::from_millis(5))?;
    let record = lab.node("n1").state_dir().join("takeover.json");
    let start = Instant::now();
    lab.node_mut("n1").start_takeover()?;
    while !std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"stage\":\"done\"")) {
        anyhow::ensure!(start.elapsed() < Duration::from_secs(60), "not taken over:\n{}", lab.node("n1").log_tail());
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = start.elapsed();
    lab.node("n1").wait_ready()?;
    let outcome = steady.stop()?;
    let (mut datagrams, mut datagrams_lost) = (0, 0);
    for tally in Flood::stop_all(floods)? {
        datagrams += tally.sent;
        datagrams_lost += tally.lost();
    }
    for lost in &outcome.lost {
        eprintln!("lost: {lost}");
    }
    Ok(Round { took, connections, lost: outcome.lost.len(), datagrams, datagrams_lost })
}
