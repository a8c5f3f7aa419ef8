//! The large cluster that the control plane's goals speak of, the node that is alone with it, and what an agent uses.

use std::{
    fs,
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use shunt::kernel::{pins::PinDir, table::Table};
use shunt_common::{
    maps,
    net::{Ip4, Port, V4, proto},
    service::{Service, ServiceKey},
};

use super::usage;
use crate::{
    node::Node,
    synthetic::Cluster,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire},
};

/// 10,000 Services with 100,000 endpoints on a thousand nodes.
pub(super) const SYNTHETIC: Cluster = Cluster { nodes: 1000, services: 10_000, endpoints: 10 };
pub(super) const ALONE: Topology =
    Topology { nodes: &[NodeSpec::new("n1", Kind::Shunt)], fabric: Fabric::Switch, wire: Wire::Offloaded };
/// Long enough for 65,536 Services with an agent that is not optimised, on a busy machine.
const LOADED_WITHIN: Duration = Duration::from_secs(600);

/// The map in which an agent's frontends are, looked at from outside.
pub(super) struct Frontends(Table<ServiceKey<V4>, Service>);

impl Frontends {
    pub(super) fn of(node: &Node) -> Result<Self> {
        Ok(Self(Table::open(&maps::SERVICES, &PinDir::new(node.pin_dir()).map(&maps::SERVICES))?))
    }

    /// The entry of a Service of [`SYNTHETIC`].
    pub(super) fn get(&self, service: u32) -> Result<Option<Service>> {
        let [a, b, c, d] = Ipv4Addr::from(0x0a60_0001 + service).octets();
        let key = ServiceKey { addr: Ip4::new(a, b, c, d), port: Port::from_host(80), proto: proto::TCP, reserved: 0 };
        Ok(self.0.get(&key)?)
    }
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

/// User and system time of a process (proc_pid_stat(5), fields 14 and 15).
pub(super) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).context("no such field");
    Ok(f64::from(ticks(11)? + ticks(12)?) / usage::ticks_per_second() as f64)
}

/// What of a process is in memory now.
pub(super) fn resident_mebibytes(pid: u32) -> Result<f64> {
    memory(pid, "VmRSS:")
}

/// The most that was in memory.
pub(super) fn peak_mebibytes(pid: u32) -> Result<f64> {
    memory(pid, "VmHWM:")
}

fn memory(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kibibytes: f64 = line.split_whitespace().next().context("no number")?.parse()?;
    Ok(kibibytes / 1024.0)
}
