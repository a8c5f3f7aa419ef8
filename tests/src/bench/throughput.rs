//! TCP streams, both ends on one CPU, as batch processes.

use anyhow::Result;

use super::{
    Options,
    arena::{Arena, Contender},
    pin,
    report::{Better, Goal, Report},
    samples::{Sample, Samples},
};
use crate::traffic::iperf::IperfServer;

pub(super) fn measure(arena: &Arena, options: &Options, report: &mut Report) -> Result<()> {
    let one = |contenders: &[Contender<'_>]| {
        Samples::take(options.long_rounds(options.many_rounds()), contenders, |it| gigabits(it, "1"))
    };
    let same = one(&arena.same_node())?;
    publish(&same, report, "one stream, same node");
    same.row(report, "same node, throughput over veth", "shunt", "veth", Goal::AtLeast(0.95), "Gbit/s");
    same.row(report, "same node, throughput over flannel's way", "shunt", "flannel", Goal::AtLeast(1.0), "Gbit/s");

    let cross = one(&arena.cross_node())?;
    publish(&cross, report, "one stream, cross node");
    cross.row(report, "cross node, throughput over bare", "shunt", "bare", Goal::AtLeast(0.85), "Gbit/s");
    cross.row(report, "cross node, throughput over flannel's way", "shunt", "flannel", Goal::AtLeast(1.15), "Gbit/s");
    cross.row(report, "(flannel's way over bare)", "flannel", "bare", Goal::None, "Gbit/s");
    Ok(())
}

/// Eight streams at once.
pub(super) fn measure_eight(arena: &Arena, options: &Options, report: &mut Report) -> Result<()> {
    for (place, contenders) in [("same node", arena.same_node()), ("cross node", arena.cross_node())] {
        let samples = Samples::take(options.long_rounds(options.rounds()), &contenders, |it| gigabits(it, "8"))?;
        publish(&samples, report, &format!("eight streams, {place}"));
        let name = format!("{place}, eight streams over flannel's way");
        samples.row(report, &name, "shunt", "flannel", Goal::AtLeast(1.0), "Gbit/s");
    }
    Ok(())
}

fn publish(samples: &Samples, report: &mut Report, what: &str) {
    samples.publish(report, &format!("TCP, {what}"), "Gbit/s", Better::More, Some("MB"));
}

/// Some streams to the contender's server.
pub(super) fn gigabits(contender: &Contender<'_>, streams: &str) -> Result<Sample> {
    const SECONDS: u32 = 1;
    let pinned = format!("{0},{0}", pin::cpu());
    let measured = pin::in_batches(|| {
        let server = IperfServer::start(contender.server, contender.server_address)?;
        server.measure(contender.client, contender.asked, SECONDS, &["-A", &pinned, "-P", streams])
    })?;
    let work = measured.bits_per_second * f64::from(SECONDS) / 8e6;
    Ok(Sample { values: [measured.bits_per_second / 1e9], work })
}
