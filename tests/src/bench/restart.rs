//! The agent is killed and started again under load: what is lost, and how long programs of both generations mix.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddrV4,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use shunt::kernel::pins::PinDir;

use super::{
    Options,
    bpf::program_of_link,
    figure::Figure,
    report::{Goal, Report},
};
use crate::{
    lab::Lab,
    service::{Service, TARGET, serve_pod},
    topology::PAIR,
    traffic::flood::Flood,
};

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let mut lab = Lab::build(&PAIR)?;
    let (a, b, c) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?);
    let _servers = (serve_pod(&b)?, serve_pod(&c)?);
    let service = Service::create(&lab, "web", 10, &[&b, &c])?;
    let targets = [SocketAddrV4::new(b.address, TARGET), SocketAddrV4::new(c.address, TARGET), service.vip];

    let (mut lost, mut sent, mut replaced, mut links) = (Vec::new(), 0, Vec::new(), 0);
    for _ in 0..options.long_rounds(options.rounds()) {
        let every = Duration::from_micros(200);
        let floods: Vec<_> = targets.iter().map(|to| Flood::start(&a.netns, *to, every)).collect::<Result<_>>()?;
        thread::sleep(Duration::from_millis(200));
        lab.node_mut("n1").kill_agent()?;
        thread::sleep(Duration::from_millis(200));
        let (span, count) = replacement(&mut lab)?;
        replaced.push(span.as_secs_f64() * 1000.0);
        links = count;
        thread::sleep(Duration::from_millis(200));
        let mut gone = 0;
        for tally in Flood::stop_all(floods)? {
            gone += tally.lost();
            sent += tally.sent;
        }
        lost.push(gone as f64);
    }
    let detail = format!("{} restarts, {sent} datagrams to a pod here, a pod there and a Service", lost.len());
    report.row("agent killed and restarted under load", Goal::AtMost(0.0), " lost", Figure::of(&lost), detail);
    let detail = format!("from the first of {links} programs to the last");
    report.row("... its programs replaced within", Goal::AtMost(50.0), " ms", Figure::of(&replaced), detail);
    Ok(())
}

/// Starts the agent and watches the pinned links change from the old programs to the new ones: within what time, and how many changed.
fn replacement(lab: &mut Lab) -> Result<(Duration, usize)> {
    let links = PinDir::new(lab.node("n1").pin_dir()).links();
    let pins: Vec<PathBuf> = fs::read_dir(&links)?.flatten().map(|entry| entry.path()).collect();
    let old: BTreeMap<&PathBuf, u32> = pins.iter().filter_map(|pin| Some((pin, program_of_link(pin).ok()?))).collect();
    let ready = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let (mut first, mut last, mut changed) = (None, None, 0);
            // The first replacement came after the look before the one that saw it: what is told is at most too long.
            let mut previous = Instant::now();
            while !ready.load(Ordering::Relaxed) {
                let look = Instant::now();
                let now = old.iter().filter(|(pin, program)| program_of_link(pin).is_ok_and(|id| id != **program)).count();
                if now > changed {
                    first = first.or(Some(previous));
                    last = Some(Instant::now());
                    changed = now;
                }
                previous = look;
                thread::sleep(Duration::from_micros(200));
            }
            Some((last? - first?, changed))
        });
        let started = lab.node_mut("n1").start_agent().and_then(|()| lab.node("n1").wait_ready());
        ready.store(true, Ordering::Relaxed);
        let span = watch.join().map_err(|_| anyhow!("the watcher panicked"))?;
        started?;
        span.context("no program was replaced")
    })
}
