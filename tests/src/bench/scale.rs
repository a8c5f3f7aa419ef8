//! From ten Services to 30,000 with 270,000 endpoints on 5,000 nodes: what a start and a change cost, and when a client sees the change.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Options,
    figure::{Figure, percentile, shown},
    hammer::{self, Greeter},
    proxied::Proxied,
    report::{Better, Curve, Goal, Report},
    rival::MODES,
    scene::Scene,
};
use crate::{
    cluster::{Endpoint, Port},
    kube_proxy::Mode,
    pod::Pod,
    service::TARGET,
    synthetic::Cluster,
};

const SIZES: [Cluster; 4] = [
    Cluster { nodes: 10, services: 10, endpoints: 10 },
    Cluster { nodes: 1000, services: 1000, endpoints: 10 },
    Cluster { nodes: 1000, services: 10_000, endpoints: 10 },
    Cluster { nodes: 5000, services: 30_000, endpoints: 9 },
];
/// The Service that is changed under a client's eyes: outside of what the synthetic clusters use.
pub(super) const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 100, 0, 20), 80);

/// Its name.
pub(super) const CHANGING: &str = "changing";

/// Between two changes of the largest cluster: so many of them meet everything that the agent does now and then, twice a minute.
const SPREAD: Duration = Duration::from_millis(120);
const SPREAD_CHANGES: usize = 300;

/// Why a start may take longer than a rival's.
const REASON_OF_STARTS: &str = "ours is a process from its start on, which loads and attaches all programs, hears the cluster from an API server and \
                                writes it; theirs is iptables-restore or nft alone, without the kube-proxy that would have to start and hear the \
                                cluster before";

/// Points of a curve: a size and a figure.
type Points = Vec<(f64, Figure)>;

/// What is measured at every size.
#[derive(Default)]
struct Lines {
    cold: Points,
    cpu: Points,
    resident: Points,
    p50: Points,
    p99: Points,
    effect: Points,
    /// kube-proxy's modes.
    rival_cold: [Points; 2],
    rival_effect: [Points; 2],
}

/// From a change to its effect, in milliseconds.
struct Effects {
    figure: Figure,
    p99: f64,
    changes: usize,
    /// Seconds in which the changes were made.
    lasted: f64,
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let mut lines = Lines::default();
    // The ends of the scale say most.
    let sizes = if options.quick { [SIZES[0], SIZES[3]].to_vec() } else { SIZES.to_vec() };
    for cluster in sizes {
        eprintln!("    {} Services with {} endpoints each on {} nodes", cluster.services, cluster.endpoints, cluster.nodes);
        let is_largest = cluster == SIZES[3];
        let ours = if options.rivals_only { None } else { Some(ours(options, cluster, &mut lines)?) };
        // Its 800,000 rules take a minute to write.
        let theirs = if options.quick && is_largest { None } else { Some(rivals(options, cluster, &mut lines)?) };
        if let Some(ours) = ours.filter(|_| is_largest) {
            let goal = Goal::AtMost(10.0);
            let theirs = theirs
                .into_iter()
                .flatten()
                .zip(MODES)
                .map(|(figure, (name, _))| format!("; {name} {} ms by {} changes", shown(figure.median), figure.count));
            let their: String = theirs.collect();
            let Effects { figure, p99, changes, lasted } = ours;
            let detail = format!(
                "from the write to the server until every new connection of a client goes to the new backend; {changes} changes in \
                 {lasted:.0} s, 99 of 100 within {} ms{their}",
                shown(p99)
            );
            report.row("30,000 Services, 270,000 endpoints: change to effect", goal, " ms", figure, detail);
        }
    }
    let mut curve = |title: &str, unit, lines: Vec<(&'static str, Points)>, reason| {
        let lines = lines.into_iter().filter(|(_, points)| !points.is_empty()).collect();
        report.curve(Curve { reason, ..Curve::over_services(title.to_owned(), unit, Better::Less, lines) });
    };
    let Lines { cold, cpu, resident, p50, p99, effect, rival_cold, rival_effect } = lines;
    let beside = |own: Vec<(&'static str, Points)>, rivals: [Points; 2]| {
        let rivals = MODES.into_iter().zip(rivals).map(|((name, _), points)| (name, points));
        own.into_iter().chain(rivals).collect()
    };
    curve("From a change to its effect for a client", "ms", beside(vec![("shunt", effect)], rival_effect), None);
    curve("API event to map written", "ms", vec![("shunt, p50", p50), ("shunt, p99", p99)], None);
    let starts = beside(vec![("shunt", cold), ("shunt, CPU", cpu)], rival_cold);
    curve("Start until all is in force", "s", starts, Some(REASON_OF_STARTS));
    curve("Memory of the agent", "MiB", vec![("shunt", resident)], None);
    Ok(())
}

/// Our figures for a cluster; that of change to effect is returned.
fn ours(options: &Options, cluster: Cluster, lines: &mut Lines) -> Result<Effects> {
    let size = f64::from(cluster.services);
    let mut scene = Scene::new(cluster)?;
    let starts = scene.start_up(1)?;
    let latencies = scene.latency(if options.quick { 50 } else { 200 }, 1)?;
    let begin = Instant::now();
    let effects = match (options.quick, cluster == SIZES[3]) {
        (true, _) => effects(&scene, 5, Duration::ZERO)?,
        (false, false) => effects(&scene, 21, Duration::ZERO)?,
        (false, true) => effects(&scene, SPREAD_CHANGES, SPREAD)?,
    };
    let lasted = begin.elapsed().as_secs_f64();
    for (points, values) in [
        (&mut lines.cold, &starts.cold),
        (&mut lines.cpu, &starts.cpu),
        (&mut lines.resident, &starts.resident),
        (&mut lines.p50, &latencies.p50),
        (&mut lines.p99, &latencies.p99),
        (&mut lines.effect, &effects),
    ] {
        points.push((size, Figure::of(values)));
    }
    Ok(Effects { figure: Figure::of(&effects), p99: percentile(&effects, 0.99), changes: effects.len(), lasted })
}

/// Likewise of the rules that kube-proxy writes, in both modes; in the iptables mode alone for the largest cluster, whose sets and chains take
/// the nftables mode's kernel minutes.
fn rivals(options: &Options, cluster: Cluster, lines: &mut Lines) -> Result<Vec<Figure>> {
    let size = f64::from(cluster.services);
    let mut figures = Vec::new();
    for ((_, mode), (cold, effect)) in MODES.into_iter().zip(lines.rival_cold.iter_mut().zip(&mut lines.rival_effect)) {
        if mode == Mode::Nftables && cluster == SIZES[3] {
            continue;
        }
        let proxied = Proxied::new(&cluster, mode, options)?;
        cold.push((size, Figure::of(&[proxied.start()?])));
        let effects = Figure::of(&proxied.effects(if options.quick { 3 } else { 5 })?);
        effect.push((size, effects));
        figures.push(effects);
    }
    Ok(figures)
}

/// Milliseconds from a change of a Service's one endpoint until a client that hammers it sees nothing else, once per change, with a pause
/// before each.
fn effects(scene: &Scene, changes: usize, pause: Duration) -> Result<Vec<f64>> {
    let lab = &scene.lab;
    let [client, one, other] = [lab.pod("n1", "client")?, lab.pod("n1", "one")?, lab.pod("n1", "other")?];
    let greeter = |pod: &Pod| Greeter::start(&pod.netns, pod.address, &pod.name);
    let _servers = (greeter(&one)?, greeter(&other)?);
    let ports = [Port::tcp(VIP.port(), TARGET)];
    lab.cluster.put_service(CHANGING, *VIP.ip(), &ports)?;
    let serve_by = |pod: &Pod| lab.cluster.put_endpoints(CHANGING, &ports, &[Endpoint::ready(pod.address, &pod.node)]);
    let change_to = |pod: &Pod| {
        hammer::seen(&client.netns, VIP, &pod.name, || serve_by(pod)).with_context(|| format!("change to {}", pod.name))
    };
    change_to(&one)?;
    let backends = [&other, &one].into_iter().cycle();
    let change = |pod| {
        thread::sleep(pause);
        change_to(pod)
    };
    backends.take(changes).map(change).collect()
}
