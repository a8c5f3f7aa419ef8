//! What a large cluster costs an agent that reads it from files: on start, and when one endpoint of it changes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Options,
    figure::Figure,
    large::{ALONE, Frontends, SYNTHETIC, cpu_seconds, resident_mebibytes, wait_for_services},
    report::{Goal, Report},
};
use crate::lab::Lab;

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
    report.row("10,000 Services, 100,000 endpoints in files: CPU", Goal::AtMost(2.0), " s", Figure::of(&cpu), detail);
    report.row(
        "... the agent's memory",
        Goal::AtMost(100.0),
        " MiB",
        Figure::of(&resident),
        "resident, without maps".to_owned(),
    );

    let changes = change_endpoints(&lab, if options.quick { 10 } else { 50 })?;
    let detail = format!("{} changes, from the file's rename to the Service's map entry", changes.len());
    report.row("one endpoint changed in that cluster", Goal::AtMost(5.0), " ms", Figure::of(&changes), detail);
    Ok(())
}

/// Milliseconds from a file's rename to the changed map entry, once per Service.
fn change_endpoints(lab: &Lab, changes: u32) -> Result<Vec<f64>> {
    let services = Frontends::of(lab.node("n1"))?;
    let mut milliseconds = Vec::new();
    for number in 0..changes {
        let before = services.get(number)?.context("a Service of the cluster is not in the map")?;
        ensure!(
            before.cluster.count == SYNTHETIC.endpoints,
            "{} endpoints instead of {}",
            before.cluster.count,
            SYNTHETIC.endpoints
        );
        let text = SYNTHETIC.service(number, SYNTHETIC.endpoints - 1);
        let start = Instant::now();
        lab.cluster.put_text(&format!("service-{number}.yaml"), &text)?;
        while services.get(number)? == Some(before) {
            ensure!(start.elapsed() < Duration::from_secs(10), "the change of Service {number} is not in force after 10 s");
            thread::sleep(Duration::from_micros(50));
        }
        milliseconds.push(start.elapsed().as_secs_f64() * 1000.0);
        // Changes of a real cluster don't come in one burst.
        thread::sleep(Duration::from_millis(50));
    }
    Ok(milliseconds)
}
