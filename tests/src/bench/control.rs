//! What a large cluster costs an agent that follows an API server: on start, for each change, and under a stream of changes.

use std::time::Duration;

use anyhow::Result;

use super::{
    Options,
    figure::{Figure, median},
    large::SYNTHETIC,
    report::{Goal, Report},
    scene::{Latencies, Scene, Starts, Streamed},
};

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let rounds = if options.quick { 1 } else { 3 };
    let mut scene = Scene::new(SYNTHETIC)?;
    let starts = scene.start_up(rounds)?;
    start_rows(&starts, scene.empty, report);
    let changes = if options.quick { 50 } else { 500 };
    latency_rows(&scene.latency(changes, rounds)?, changes, report);
    let lasts = Duration::from_secs(if options.quick { 3 } else { 20 });
    stream_row(&scene.stream(lasts)?, lasts, report);
    Ok(())
}

fn start_rows(starts: &Starts, empty: f64, report: &mut Report) {
    let detail = format!(
        "{} MB of JSON, which a bare client reads in {:.2} s; {:.2} s of CPU; restarted over its own maps {:.2} s",
        starts.size / 1_000_000,
        median(&starts.bare),
        median(&starts.cpu),
        median(&starts.warm)
    );
    report.row(
        "API, 10,000 Services, 100,000 endpoints: programmed",
        Goal::AtMost(3.0),
        " s",
        Figure::of(&starts.cold),
        detail,
    );
    let detail = format!("{empty:.0} MiB in a cluster of one node; at most {:.0} MiB meanwhile", median(&starts.peak));
    report.row("... the agent's memory then", Goal::AtMost(100.0), " MiB", Figure::of(&starts.resident), detail);
}

fn latency_rows(latencies: &Latencies, changes: u32, report: &mut Report) {
    let detail = format!(
        "{changes} changes a round, from the write to the server until the map entry differs; a bare client hears in {:.2} ms",
        median(&latencies.bare_p50)
    );
    report.row("API event to map written, p50", Goal::AtMost(1.0), " ms", Figure::of(&latencies.p50), detail);
    let detail = format!("a bare client hears in {:.2} ms", median(&latencies.bare_p99));
    report.row("... p99", Goal::AtMost(5.0), " ms", Figure::of(&latencies.p99), detail);
}

fn stream_row(streamed: &Streamed, lasts: Duration, report: &mut Report) {
    let detail = format!(
        "{:.0} a second for {} s, the last in force {:.1} ms after it was written; {:.0} MiB by then",
        streamed.per_second,
        lasts.as_secs(),
        streamed.behind,
        streamed.resident
    );
    report.row("1,000 endpoint changes a second: CPU", Goal::AtMost(0.5), " cores", Figure::of(&[streamed.cores]), detail);
}
