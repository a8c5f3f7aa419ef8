//! What a large cluster costs the agent: on start, and when one endpoint of it changes.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use shunt::kernel::{pins::PinDir, table::Table};
use shunt_common::{
    maps,
    net::{Ip4, Port, V4, proto},
    service::{Service, ServiceKey},
};

use super::{
    Options,
    report::{Figure, Goal, Report},
};
use crate::{
    lab::Lab,
    node::Node,
    synthetic::Cluster,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire},
};

/// The cluster that the goals speak of: 10,000 Services with 100,000 endpoints, a file a Service.
pub(super) const SYNTHETIC: Cluster = Cluster { nodes: 1000, services: 10_000, endpoints: 10 };
const LOADED_WITHIN: Duration = Duration::from_secs(120);
const ALONE: Topology =
    Topology { nodes: &[NodeSpec { name: "n1", kind: Kind::Shunt }], fabric: Fabric::Switch, wire: Wire::Offloaded };

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let mut lab = Lab::wired(&ALONE)?;
    SYNTHETIC.write(lab.cluster.dir())?;
    let (mut cpu, mut resident, mut wall) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = if options.quick { 1 } else { 3 };
    for round in 0..rounds {
        if round > 0 {
            lab.node_mut("n1").stop_agent()?;
            lab.node("n1").cleanup()?;
        }
        let start = Instant::now();
        lab.node_mut("n1").start_agent()?;
        wait_for_services(lab.node("n1"), u64::from(SYNTHETIC.services))?;
        wall.push(start.elapsed().as_secs_f64());
        let pid = lab.node("n1").agent_pid().context("no agent")?;
        cpu.push(cpu_seconds(pid)?);
        resident.push(resident_mebibytes(pid)?);
    }
    let detail = format!("in force after {:.1} s", Figure::of(&wall).median);
    report.row("10,000 Services, 100,000 endpoints: CPU", Goal::AtMost(2.0), " s", Figure::of(&cpu), detail);
    report.row("... the agent's memory", Goal::AtMost(100.0), " MiB", Figure::of(&resident), "kube-proxy: 316 MiB".to_owned());

    let changes = change_endpoints(&lab, if options.quick { 10 } else { 50 })?;
    let detail = format!("{} changes, from the file's rename to the Service's map entry", changes.len());
    report.row("one endpoint changed in that cluster", Goal::AtMost(5.0), " ms", Figure::of(&changes), detail);
    Ok(())
}

/// Waits until the agent has so many frontends in force.
pub(super) fn wait_for_services(node: &Node, services: u64) -> Result<()> {
    let start = Instant::now();
    loop {
        let status = node.status();
        match &status {
            Ok(status) if status.counts.services == services && status.reasons.is_empty() => return Ok(()),
            _ if start.elapsed() < LOADED_WITHIN => thread::sleep(Duration::from_millis(50)),
            Ok(status) => {
                bail!("{} of {services} Services after {LOADED_WITHIN:?}: {:?}", status.counts.services, status.reasons)
            }
            Err(error) => bail!("no status after {LOADED_WITHIN:?}: {error:#}; the log ends:\n{}", node.log_tail()),
        }
    }
}

/// Milliseconds from a file's rename to the changed map entry, once per Service.
fn change_endpoints(lab: &Lab, changes: u32) -> Result<Vec<f64>> {
    let pins = PinDir::new(lab.node("n1").pin_dir());
    let services: Table<ServiceKey<V4>, Service> = Table::open(&maps::SERVICES, &pins.map(&maps::SERVICES))?;
    let mut milliseconds = Vec::new();
    for number in 0..changes {
        let [a, b, c, d] = Ipv4Addr::from(0x0a60_0001 + number).octets();
        let key = ServiceKey { addr: Ip4::new(a, b, c, d), port: Port::from_host(80), proto: proto::TCP, reserved: 0 };
        let before = services.get(&key)?.context("a Service of the cluster is not in the map")?;
        ensure!(before.count == SYNTHETIC.endpoints, "{} endpoints instead of {}", before.count, SYNTHETIC.endpoints);
        let text = SYNTHETIC.service(number, SYNTHETIC.endpoints - 1);
        let start = Instant::now();
        lab.cluster.put_text(&format!("service-{number}.yaml"), &text)?;
        while services.get(&key)? == Some(before) {
            ensure!(start.elapsed() < Duration::from_secs(10), "the change of Service {number} is not in force after 10 s");
            thread::sleep(Duration::from_micros(50));
        }
        milliseconds.push(start.elapsed().as_secs_f64() * 1000.0);
        // Changes of a real cluster don't come in one burst.
        thread::sleep(Duration::from_millis(50));
    }
    Ok(milliseconds)
}

/// User and system time of a process (proc_pid_stat(5), fields 14 and 15).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).context("no such field");
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(f64::from(ticks(11)? + ticks(12)?) / per_second as f64)
}

fn resident_mebibytes(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kibibytes: f64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kibibytes / 1024.0)
}
