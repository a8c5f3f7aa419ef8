//! As many Services and backends as a node has to bear: that they load, and that packets cost what they cost with few.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use shunt_common::verdict::Counter;

use super::{
    Options,
    bpf::Program,
    figure::{Figure, median, middle_mean},
    large::{ALONE, cpu_seconds, resident_mebibytes, wait_for_services},
    pin,
    report::{Goal, Report},
    translation::{KnownFlow, from_pod, runs},
};
use crate::{
    lab::Lab,
    pod::Pod,
    synthetic::Cluster,
    test_run::packet::{SYN, tcp},
    translation::Translation,
};

const FEW: Cluster = Cluster { nodes: 1000, services: 16, endpoints: 4 };
/// Each Service has one port: 65,536 of them, and 262,144 backends.
const MANY: Cluster = Cluster { services: 65_536, ..FEW };

/// A lab with a cluster in force.
struct Site {
    lab: Lab,
    cluster: Cluster,
    pods: [Pod; 2],
    opener: u16,
}

impl Site {
    fn build() -> Result<Self> {
        let lab = Lab::build_with(&ALONE, Translation::Packet)?;
        let pods = [lab.pod("n1", "a")?, lab.pod("n1", "b")?];
        Ok(Self { lab, cluster: FEW, pods, opener: 0 })
    }

    /// Seconds from the first file until all of the cluster is in force.
    fn load(&self) -> Result<f64> {
        let start = Instant::now();
        self.cluster.write_packed(self.lab.cluster.dir())?;
        wait_for_services(self.lab.node("n1"), u64::from(self.cluster.services))?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn known_flow(&self) -> Result<KnownFlow<'_>> {
        let [client, backend] = &self.pods;
        KnownFlow::establish(&self.lab, client, backend)
    }

    /// Nanoseconds that opening flows to random Services takes longer than an empty program.
    fn open_flows(&mut self, count: u16, empty: &Program) -> Result<f64> {
        let node = self.lab.node("n1");
        let [client, _] = &self.pods;
        let (program, ifindex) = from_pod(node, client)?;
        let services = self.cluster.services;
        let opened = node.counter(Counter::ServiceNewFlow)?;
        let time = node.netns.inside(|| {
            pin::here();
            let (mut ours, mut nothing) = (Vec::new(), Vec::new());
            for _ in 0..count {
                self.opener = self.opener.wrapping_add(1);
                // A step that has no factor in common with the number of Services leads to all of them in no order that caches know.
                let service = u32::from(self.opener).wrapping_mul(40_503) % services;
                let vip = Cluster::virtual_ip(service);
                let port = 10_000 + self.opener % 50_000;
                let frame = tcp(&client.address.to_string(), port, &vip.to_string(), 80, SYN).bytes();
                ours.push(f64::from(program.run(&frame, ifindex, 1)?));
                nothing.push(f64::from(empty.run(&frame, ifindex, 1)?));
            }
            anyhow::Ok(middle_mean(&ours) - middle_mean(&nothing))
        })?;
        let opened = node.counter(Counter::ServiceNewFlow)? - opened;
        ensure!(opened >= u64::from(count) * 9 / 10, "only {opened} of {count} packets opened a flow");
        Ok(time)
    }
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let [mut few, mut many] = [Site::build()?, Site::build()?];
    many.cluster = MANY;
    few.load()?;
    let loaded = many.load()?;
    let pid = many.lab.node("n1").agent_pid().context("no agent")?;
    let detail = format!("CPU {:.1} s, the agent's memory {:.0} MiB", cpu_seconds(pid)?, resident_mebibytes(pid)?);
    let name =
        format!("{} Services, {} endpoints in files: written and in force", MANY.services, MANY.services * MANY.endpoints);
    report.row(&name, Goal::None, " s", Figure::of(&[loaded]), detail);

    let empty = Program::empty()?;
    let mut openings = [Vec::new(), Vec::new()];
    let count = if options.quick { 1000 } else { 4000 };
    for round in 0..=options.rounds() {
        for (site, values) in [&mut few, &mut many].into_iter().zip(&mut openings) {
            let time = site.open_flows(count, &empty)?;
            if round > 0 {
                values.push(time);
            }
        }
    }
    let (of_few, of_many) = (few.known_flow()?, many.known_flow()?);
    let mut packets = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds() {
        for (known, values) in [&of_few, &of_many].into_iter().zip(&mut packets) {
            let (full, empty) = known.round(runs(options))?;
            values.push(full - empty);
        }
    }
    // To open a flow, memory of a random Service is waited for, which a processor's caches have of few Services, not of many.
    for (what, [few, many], goal) in
        [("a known flow's packet", packets, Goal::AtMost(1.1)), ("a flow opened to any Service", openings, Goal::None)]
    {
        let detail = format!("{:.0} ns, with {} Services {:.0} ns", median(&many), FEW.services, median(&few));
        let name = format!("... {what}, over few Services");
        report.row(&name, goal, "", Figure::ratio(&many, &few), detail);
    }
    Ok(())
}
