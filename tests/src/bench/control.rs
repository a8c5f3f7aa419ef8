//! What a large cluster costs an agent that follows an API server: on start, for each change, and under a stream of changes.
//!
//! The server is the double, in this process, a router away from the node and in TLS; objects are as large as a real server's, and
//! made before the clock runs. The machine's cores are shared by the agent, the server's one thread and the onlooker, who looks a map
//! entry up every few microseconds. What is not the agent's stands beside its figures: the time in which a bare client, in the agent's
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
    Options,
    bare_client::BareClient,
    figure::{Figure, percentile},
    large::{ALONE, Frontends, SYNTHETIC, cpu_seconds, peak_mebibytes, resident_mebibytes, wait_for_services},
    report::{Goal, Report},
};
use crate::{api_server::ApiServer, lab::Lab, node::Node};

/// Between two changes whose latency is measured.
const PAUSE: Duration = Duration::from_millis(4);
/// Between two looks at the map.
const LOOK: Duration = Duration::from_micros(10);
/// Between two changes of a stream.
const EVERY: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// A node alone in the large cluster, and the server that tells it.
struct Scene {
    lab: Lab,
    server: Arc<ApiServer>,
    kubeconfig: PathBuf,
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let rounds = if options.quick { 1 } else { 3 };
    // A look is only as frequent as the timer is exact.
    nix::sys::prctl::set_timerslack(1)?;
    let mut lab = Lab::wired(&ALONE)?;
    let server = ApiServer::of_lab(&mut lab)?;
    let kubeconfig = server.kubeconfig(&lab.dir().join("bare-client"))?;
    lab.start_agents()?;
    let empty = resident_mebibytes(lab.node("n1").agent_pid().context("no agent")?)?;
    lab.node_mut("n1").stop_agent()?;
    SYNTHETIC.node_objects().try_for_each(|node| server.put(&node))?;
    for number in 0..SYNTHETIC.services {
        SYNTHETIC.objects(number, SYNTHETIC.endpoints).iter().try_for_each(|object| server.put(object))?;
    }
    let mut scene = Scene { lab, server, kubeconfig };
    scene.start_up(rounds, empty, report)?;
    scene.latency(if options.quick { 50 } else { 500 }, rounds, report)?;
    scene.stream(Duration::from_secs(if options.quick { 3 } else { 20 }), report)
}

impl Scene {
    fn node(&self) -> &Node {
        self.lab.node("n1")
    }

    fn agent(&self) -> Result<u32> {
        self.node().agent_pid().context("no agent")
    }

    /// Seconds from the agent's start until all is in force.
    fn start(&mut self) -> Result<f64> {
        let start = Instant::now();
        self.lab.node_mut("n1").start_agent()?;
        wait_for_services(self.node(), u64::from(SYNTHETIC.services))?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// From nothing in the kernel to everything, and over what an agent before has left. An agent runs when this is done.
    fn start_up(&mut self, rounds: usize, empty: f64, report: &mut Report) -> Result<()> {
        let (mut cold, mut warm, mut bare) = (Vec::new(), Vec::new(), Vec::new());
        let (mut cpu, mut resident, mut peak) = (Vec::new(), Vec::new(), Vec::new());
        let mut size = 0;
        for round in 0..rounds {
            if round > 0 {
                self.lab.node_mut("n1").stop_agent()?;
            }
            self.node().cleanup()?;
            let begin = Instant::now();
            size = BareClient::of(self.node(), &self.kubeconfig)?.read_all()?;
            bare.push(begin.elapsed().as_secs_f64());
            cold.push(self.start()?);
            cpu.push(cpu_seconds(self.agent()?)?);
            resident.push(resident_mebibytes(self.agent()?)?);
            peak.push(peak_mebibytes(self.agent()?)?);
            self.lab.node_mut("n1").stop_agent()?;
            warm.push(self.start()?);
        }
        let median = |values: &[f64]| Figure::of(values).median;
        let detail = format!(
            "{} MB of JSON, which a bare client reads in {:.2} s; {:.2} s of CPU; restarted over its own maps {:.2} s",
            size / 1_000_000,
            median(&bare),
            median(&cpu),
            median(&warm)
        );
        report.row("API, 10,000 Services, 100,000 endpoints: programmed", Goal::AtMost(3.0), " s", Figure::of(&cold), detail);
        let detail = format!("{empty:.0} MiB in a cluster of one node; at most {:.0} MiB meanwhile", median(&peak));
        report.row("... the agent's memory then", Goal::AtMost(100.0), " MiB", Figure::of(&resident), detail);
        Ok(())
    }

    /// A change at a time. The bare client takes turns with the onlooker, so that it takes no time from the agent.
    fn latency(&self, changes: u32, rounds: usize, report: &mut Report) -> Result<()> {
        let frontends = Frontends::of(self.node())?;
        let (mut halves, mut tails, mut bare_halves, mut bare_tails) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let slices =
                |endpoints| (0..changes).map(|number| SYNTHETIC.objects(number * 7, endpoints)[1].clone()).collect::<Vec<_>>();
            let (fewer, all) = (slices(SYNTHETIC.endpoints - 1), slices(SYNTHETIC.endpoints));
            let mut seen = Vec::new();
            for (number, slice) in (0..).zip(&fewer) {
                let service = number * 7;
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
            let last = SYNTHETIC.objects(SYNTHETIC.services - 1, SYNTHETIC.endpoints - round as u32 % 2 - 1);
            thread::scope(|scope| {
                let end = scope.spawn(|| watch.end());
                self.server.put(&last[1])?;
                end.join().map_err(|_| anyhow::anyhow!("the bare client panicked"))?
            })?;
            for (values, half, tail) in [(&seen, &mut halves, &mut tails), (&heard, &mut bare_halves, &mut bare_tails)] {
                half.push(percentile(values, 0.5));
                tail.push(percentile(values, 0.99));
            }
        }
        let median = |values: &[f64]| Figure::of(values).median;
        let detail = format!(
            "{changes} changes a round, from the write to the server until the map entry differs; a bare client hears in {:.2} ms",
            median(&bare_halves)
        );
        report.row("API event to map written, p50", Goal::AtMost(1.0), " ms", Figure::of(&halves), detail);
        let detail = format!("a bare client hears in {:.2} ms", median(&bare_tails));
        report.row("... p99", Goal::AtMost(5.0), " ms", Figure::of(&tails), detail);
        Ok(())
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
    fn stream(&self, lasts: Duration, report: &mut Report) -> Result<()> {
        let frontends = Frontends::of(self.node())?;
        let services = 2000;
        let variants =
            |endpoints| (0..services).map(|number| SYNTHETIC.objects(number, endpoints)[1].clone()).collect::<Vec<_>>();
        let variants = [variants(SYNTHETIC.endpoints - 1), variants(SYNTHETIC.endpoints)];
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
        let wanted = SYNTHETIC.endpoints - u32::from(round % 2 == 0);
        while frontends.get(service)?.is_none_or(|entry| entry.cluster.count != wanted) {
            ensure!(last.elapsed() < PATIENCE, "the last of {changes} changes is not in force after {PATIENCE:?}");
            thread::sleep(LOOK);
        }
        let behind = last.elapsed().as_secs_f64() * 1000.0;
        let cores = (cpu_seconds(pid)? - before) / took;
        let rate = f64::from(changes) / took;
        ensure!(rate > 950.0, "the server was written to {rate:.0} times a second only: this machine is too busy");
        let detail = format!(
            "{rate:.0} a second for {took:.0} s, the last in force {behind:.1} ms after it was written; {:.0} MiB by then",
            resident_mebibytes(pid)?
        );
        report.row("1,000 endpoint changes a second: CPU", Goal::AtMost(0.5), " cores", Figure::of(&[cores]), detail);
        Ok(())
    }
}
