//! What comes through a ClusterIP from a pod of the same node, and through a NodePort from outside, with few and with many Services: beside
//! the rules that kube-proxy writes.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{
    Options, connections, http, latency,
    report::{Better, Goal, Report},
    rival::MODES,
    samples::Samples,
    sizes::{Frontend, Sizes, WITHOUT_SERVICES},
    throughput,
};
use crate::{lab::eventually, service::SOON};

/// Something measured, as rows and a curve are called.
struct Measured<'a> {
    samples: &'a Samples,
    row: String,
    title: String,
    unit: &'static str,
    better: Better,
    /// What CPU time is counted for.
    work: Option<&'static str>,
}

/// Eight streams of a second take longest of all, and swing little.
const ROUNDS_OF_STREAMS: usize = 3;

pub(super) fn cluster_ip(sizes: &Sizes, options: &Options, report: &mut Report) -> Result<()> {
    measure(sizes, Frontend::ClusterIp, options, report)
}

pub(super) fn node_port(sizes: &Sizes, options: &Options, report: &mut Report) -> Result<()> {
    measure(sizes, Frontend::NodePort, options, report)
}

fn measure(sizes: &Sizes, frontend: Frontend, options: &Options, report: &mut Report) -> Result<()> {
    let contenders = sizes.contenders(frontend);
    for contender in &contenders {
        eventually(SOON, || connections::kiloconnections(contender, Duration::from_millis(10)))
            .with_context(|| format!("{} doesn't answer", contender.name))?;
    }
    let period = Duration::from_millis(if options.quick { 150 } else { 300 });
    // The last percentile is of the slowest fifteen.
    let trips = if options.quick { 2_000 } else { 15_000 };
    let rounds = options.rounds();
    let mut connecting = contenders.clone();
    if frontend == Frontend::NodePort {
        connecting.push(sizes.without_services());
    }
    let connections = Samples::take(rounds, &connecting, |it| connections::kiloconnections(it, period))?;
    let round_trips = Samples::take_several(rounds, &contenders, |it| latency::percentiles(it, trips))?;
    let kept = Samples::take(rounds, &contenders, |it| http::kilorequests(it, true, period))?;
    let each = Samples::take(rounds, &contenders, |it| http::kilorequests(it, false, period))?;
    let rounds = options.long_rounds(rounds.min(ROUNDS_OF_STREAMS));
    let streams = Samples::take(rounds, &contenders, |it| throughput::gigabits(it, "8"))?;

    let work = |samples, row: &str, title: &str, unit, work| Measured {
        samples,
        row: row.to_owned(),
        title: title.to_owned(),
        unit,
        better: Better::More,
        work: Some(work),
    };
    let mut measured = vec![work(&connections, "connections/s", "TCP connections", "k/s", "connection")];
    measured.extend(round_trips.iter().zip(latency::PERCENTILES).map(|(samples, (percentile, _))| Measured {
        samples,
        row: format!("{percentile} latency"),
        title: format!("round trip, {percentile}"),
        unit: "us",
        better: Better::Less,
        work: None,
    }));
    measured.push(work(&kept, "HTTP requests/s (kept)", "HTTP, kept connections", "k/s", "request"));
    measured.push(work(&each, "HTTP requests/s (one each)", "HTTP, a connection each", "k/s", "request"));
    measured.push(work(&streams, "throughput", "TCP, eight streams", "Gbit/s", "MB"));
    for measured in measured {
        publish(report, sizes, frontend, measured);
    }
    bound(report, &connections);
    Ok(())
}

/// What no proxy of Services can go beyond on this machine; nothing where that was not measured.
fn bound(report: &mut Report, connections: &Samples) {
    let name = "(a process of the node without any Service, over iptables through a NodePort, 10,000 Services)";
    connections.row(report, name, WITHOUT_SERVICES, "iptables (10,000)", Goal::None, "k/s");
}

fn publish(report: &mut Report, sizes: &Sizes, frontend: Frontend, measured: Measured<'_>) {
    let Measured { samples, row, title, unit, better, work } = measured;
    for (index, (rival, _)) in (1..).zip(MODES) {
        for size in sizes.sizes() {
            let Some(theirs) = size.names.get(index) else { continue };
            let Some(goal) = goal(frontend, &row, rival, size.services, better) else { continue };
            let name = format!("{} {row} over {rival}, {} Services", frontend.name(), size.services);
            samples.row(report, &name, size.names[0], theirs, goal, unit);
        }
    }
    let title = format!("{}: {title}", frontend.name());
    report.curve(sizes.curve(samples, title, unit, better, work));
}

/// Never slower than kube-proxy's iptables mode; and many times as many connections through a NodePort where that goes through 10,000 rules.
/// Its nftables mode has rows of connections alone: the curves show the rest.
fn goal(frontend: Frontend, row: &str, rival: &str, services: u32, better: Better) -> Option<Goal> {
    match (frontend, row, rival, services) {
        (Frontend::NodePort, "connections/s", "iptables", 10_000) => Some(Goal::AtLeast(8.0)),
        (_, "connections/s", _, _) | (_, _, "iptables", _) => Some(match better {
            Better::More => Goal::AtLeast(1.0),
            Better::Less => Goal::AtMost(1.0),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_beside_the_iptables_mode_has_a_goal_and_one_of_them_a_higher_one() {
        let limit = |frontend, row, rival, services, better| match goal(frontend, row, rival, services, better) {
            Some(Goal::AtLeast(limit)) => Some((">=", limit)),
            Some(Goal::AtMost(limit)) => Some(("<=", limit)),
            _ => None,
        };
        let (port, ip) = (Frontend::NodePort, Frontend::ClusterIp);
        assert_eq!(limit(port, "connections/s", "iptables", 10_000, Better::More), Some((">=", 8.0)));
        assert_eq!(limit(port, "connections/s", "nftables", 10_000, Better::More), Some((">=", 1.0)));
        assert_eq!(limit(ip, "connections/s", "iptables", 10_000, Better::More), Some((">=", 1.0)));
        assert_eq!(limit(ip, "p99 latency", "iptables", 10, Better::Less), Some(("<=", 1.0)));
        assert_eq!(limit(ip, "p99 latency", "nftables", 10, Better::Less), None);
    }
}
