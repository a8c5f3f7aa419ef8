//! One TCP stream, both ends on one CPU.

use anyhow::Result;

use super::{
    Options,
    arena::{Arena, Contender, Samples},
    pin,
    report::{Goal, Report},
};
use crate::traffic::iperf::IperfServer;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let arena = Arena::build(options)?;
    let seconds = 1;
    let same = Samples::take(options.many_rounds(), &arena.same_node(), |contender| gigabits(contender, seconds))?;
    same.row(report, "same node, throughput over veth", "shunt", "veth", Goal::AtLeast(0.95), "Gbit/s");
    let cross = Samples::take(options.many_rounds(), &arena.cross_node(), |contender| gigabits(contender, seconds))?;
    cross.row(report, "cross node, throughput over bare", "shunt", "bare", Goal::AtLeast(0.85), "Gbit/s");
    cross.row(report, "cross node, throughput over flannel's way", "shunt", "flannel", Goal::AtLeast(1.15), "Gbit/s");
    cross.row(report, "(flannel's way over bare)", "flannel", "bare", Goal::None, "Gbit/s");
    Ok(())
}

fn gigabits(contender: &Contender<'_>, seconds: u32) -> Result<f64> {
    let server = IperfServer::start(contender.server, contender.server_address)?;
    let pinned = format!("{0},{0}", pin::cpu());
    let measured = server.measure(contender.client, contender.server_address, seconds, &["-A", &pinned])?;
    Ok(measured.bits_per_second / 1e9)
}
