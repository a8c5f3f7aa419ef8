//! A node alone with a large cluster that an API server double tells it of, and what is measured there.
//!
//! The server is the double, in this process, a router away from the node and in TLS; objects are as large as a real server's, and
//! made before the clock runs. The machine's cores are shared by the agent, the server's one thread and the onlooker, who looks a map
//! entry up every few microseconds. What is not the agent's is measured beside it: the time in which a bare client, in the agent's
//! place, has the whole cluster or hears of a change.

use std::{
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    bare_client::BareClient,
    figure::percentile,
    large::{ALONE, Frontends, cpu_seconds, peak_mebibytes, resident_mebibytes, wait_for_services},
};
use crate::{api_server::ApiServer, lab::Lab, node::Node, synthetic::Cluster};

/// Between two changes whose latency is measured.
const PAUSE: Duration = Duration::from_millis(4);
/// Between two looks at the map.
const LOOK: Duration = Duration::from_micros(10);
/// Between two changes of a stream.
const EVERY: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// The node, and the server that tells it.
pub(super) struct Scene {
    pub(super) lab: Lab,
    pub(super) cluster: Cluster,
    server: Arc<ApiServer>,
    kubeconfig: PathBuf,
    /// Resident memory of an agent in a cluster of its node alone, in MiB.
    pub(super) empty: f64,
}

/// What starts cost, a value each round.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// Seconds until all is in force, where nothing was.
    pub(super) cold: Vec<f64>,
    /// Seconds over what an agent before has left.
    pub(super) warm: Vec<f64>,
    /// Seconds in which a bare client reads the same.
    pub(super) bare: Vec<f64>,
    /// CPU seconds of the cold start.
    pub(super) cpu: Vec<f64>,
    /// MiB of resident memory after it, and the most meanwhile.
    pub(super) resident: Vec<f64>,
    pub(super) peak: Vec<f64>,
    /// Bytes of JSON that are the cluster.
    pub(super) size: usize,
}

/// Percentiles of milliseconds from a write to the server on, a value each round.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// Until the map entry differs.
    pub(super) p50: Vec<f64>,
    pub(super) p99: Vec<f64>,
    /// Until a bare client hears of it.
    pub(super) bare_p50: Vec<f64>,
    pub(super) bare_p99: Vec<f64>,
}

/// What a stream of changes cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streamed {
    pub(super) cores: f64,
    pub(super) per_second: f64,
    /// Milliseconds from the last write until it is in force.
    pub(super) behind: f64,
    /// MiB of resident memory by then.
    pub(super) resident: f64,
}

impl Scene {
    /// The server has all of the cluster; no agent runs.
    pub(super) fn new(cluster: Cluster) -> Result<Self> {
        // A look is only as frequent as the timer is exact.
        nix::sys::prctl::set_timerslack(1)?;
        let mut lab = Lab::wired(&ALONE)?;
        let server = ApiServer::of_lab(&mut lab)?;
        let kubeconfig = server.kubeconfig(&lab.dir().join("bare-client"))?;
        lab.start_agents()?;
        let empty = resident_mebibytes(lab.node("n1").agent_pid().context("no agent")?)?;
        lab.node_mut("n1").stop_agent()?;
        cluster.node_objects().try_for_each(|node| server.put(&node))?;
        for number in 0..cluster.services {
            cluster.objects(number, cluster.endpoints).iter().try_for_each(|object| server.put(object))?;
        }
        Ok(Self { lab, cluster, server, kubeconfig, empty })
    }

    pub(super) fn node(&self) -> &Node {
        self.lab.node("n1")
    }

    fn agent(&self) -> Result<u32> {
        self.node().agent_pid().context("no agent")
    }

    /// Seconds from the agent's start until all is in force.
    fn start(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.lab.node_mut("n1").start_agent()?;
        wait_for_services(self.node(), u64::from(self.cluster.services))?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// From nothing in the kernel to everything, and over what an agent before has left. An agent runs when this is done.
    pub(super) fn start_up(&mut self, rounds: usize) -> Result<Starts> {
        let mut starts = Starts::default();
        for round in 0..rounds {
            if round > 0 {
                self.lab.node_mut("n1").stop_agent()?;
            }
            self.node().cleanup()?;
            let begin = Instant::now();
            starts.size = BareClient::of(self.node(), &self.kubeconfig)?.read_all()?;
            starts.bare.push(begin.elapsed().as_secs_f64());
            starts.cold.push(self.start()?);
            starts.cpu.push(cpu_seconds(self.agent()?)?);
            starts.resident.push(resident_mebibytes(self.agent()?)?);
            starts.peak.push(peak_mebibytes(self.agent()?)?);
            self.lab.node_mut("n1").stop_agent()?;
            starts.warm.push(self.start()?);
        }
        Ok(starts)
    }

    /// Changes of a Service each, one at a time. The bare client takes turns with the onlooker, so that it takes no time from the agent.
    pub(super) fn latency(&self, changes: u32, rounds: usize) -> Result<Latencies> {
        let (frontends, mut latencies) = (Frontends::of(self.node())?, Latencies::default());
        let endpoints = self.cluster.endpoints;
        let changes = changes.min(self.cluster.services);
        let spread = (self.cluster.services / changes).clamp(1, 7);
        for round in 0..rounds {
            let slices = |endpoints| {
                (0..changes).map(|number| self.cluster.objects(number * spread, endpoints)[1].clone()).collect::<Vec<_>>()
            };
            let (fewer, all) = (slices(endpoints - 1), slices(endpoints));
            let mut seen = Vec::new();
            for (number, slice) in (0..).zip(&fewer) {
                let service = number * spread;
                let before = frontends.get(service)?.with_context(|| format!("Service {service} is not in the map"))?;
                seen.push(self.timed(slice, || {
                    let begin = Instant::now();
                    while frontends.get(service)? == Some(before) {
                        ensure!(
                            begin.elapsed() < PATIENCE,
                            "the change of Service {service} is not in force after {PATIENCE:?}"
                        );
                        thread::sleep(LOOK);
                    }
                    Ok(Instant::now())
                })?);
            }
            let watch = BareClient::of(self.node(), &self.kubeconfig)?.watch()?;
            let mut heard = Vec::new();
            for slice in &all {
                heard.push(self.timed(slice, || watch.next())?);
            }
            // An event more lets it notice that nobody listens; the next round begins as this one did.
            let last = self.cluster.objects(self.cluster.services - 1, endpoints - round as u32 % 2 - 1);
            watch.end(|| self.server.put(&last[1]).map(drop))?;
            latencies.p50.push(percentile(&seen, 0.5));
            latencies.p99.push(percentile(&seen, 0.99));
            latencies.bare_p50.push(percentile(&heard, 0.5));
            latencies.bare_p99.push(percentile(&heard, 0.99));
        }
        Ok(latencies)
    }

    /// Milliseconds from a write to the server until something has seen it.
    fn timed(&self, slice: &Value, seen: impl FnOnce() -> Result<Instant>) -> Result<f64> {
        let start = Instant::now();
        self.server.put(slice)?;
        let took = seen()? - start;
        thread::sleep(PAUSE);
        Ok(took.as_secs_f64() * 1000.0)
    }

    /// An endpoint comes or goes every millisecond, each time of another Service.
    pub(super) fn stream(&self, lasts: Duration) -> Result<Streamed> {
        let frontends = Frontends::of(self.node())?;
        let services = self.cluster.services.min(2000);
        let variants =
            |endpoints| (0..services).map(|number| self.cluster.objects(number, endpoints)[1].clone()).collect::<Vec<_>>();
        let variants = [variants(self.cluster.endpoints - 1), variants(self.cluster.endpoints)];
        let pid = self.agent()?;
        let (before, start) = (cpu_seconds(pid)?, Instant::now());
        let mut changes = 0u32;
        while start.elapsed() < lasts {
            let round = (changes / services) as usize;
            self.server.put(&variants[round % 2][(changes % services) as usize])?;
            changes += 1;
            thread::sleep((start + EVERY * changes).saturating_duration_since(Instant::now()));
        }
        let took = start.elapsed().as_secs_f64();
        let last = Instant::now();
        let (service, round) = ((changes - 1) % services, (changes - 1) / services);
        let wanted = self.cluster.endpoints - u32::from(round % 2 == 0);
        while frontends.get(service)?.is_none_or(|entry| entry.cluster.count != wanted) {
            ensure!(last.elapsed() < PATIENCE, "the last of {changes} changes is not in force after {PATIENCE:?}");
            thread::sleep(LOOK);
        }
        let behind = last.elapsed().as_secs_f64() * 1000.0;
        let cores = (cpu_seconds(pid)? - before) / took;
        let rate = f64::from(changes) / took;
        ensure!(rate > 950.0, "the server was written to {rate:.0} times a second only: this machine is too busy");
        Ok(Streamed { cores, per_second: rate, behind, resident: resident_mebibytes(pid)? })
    }
}
