//! `shunt-lab bench`: the figures that shunt must reach, each beside its goal.
//!
//! ```text
//!   pod a, pod b - n1 ===cable=== n2 - pod c     shunt
//!   pod a -------- f1 ===cable=== f2 - pod b     flannel's way
//!                  b1 ===cable=== b2             the bare underlay
//!                  v1 ===veth==== v2             a direct veth pair
//! ```
//!
//! Absolute figures drift on a shared machine, so contenders take turns within one run and a row is a ratio of medians; its
//! min and max are those of the single rounds. Senders and receivers share one CPU: unpinned runs have two modes. Cables
//! cut packets to the MTU as a wire does ([`crate::topology::Wire::Offloaded`]).

use std::process::ExitCode;

use anyhow::{Result, ensure};

mod arena;
mod bare_client;
mod bpf;
mod connections;
mod control;
mod control_files;
mod large;
mod latency;
mod packets;
mod pin;
mod report;
mod restart;
mod takeover;
mod throughput;
mod translation;

use report::Report;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Fewer and shorter rounds: to see that it works
    #[arg(long)]
    quick: bool,
    /// Rounds in which contenders take turns
    #[arg(long)]
    rounds: Option<usize>,
    /// Measure the rivals alone: how steady this machine is
    #[arg(long)]
    rivals_only: bool,
    /// Names of rows, or the beginnings of them; all if left out
    rows: Vec<String>,
}

impl Options {
    fn wants(&self, group: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| group.starts_with(row.as_str()))
    }

    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 7 }).max(1)
    }

    /// Rounds of what swings from one to the next: many short ones have a steadier median than few long ones.
    fn many_rounds(&self) -> usize {
        self.rounds() * if self.quick { 1 } else { 3 }
    }
}

/// A measurement of some rows of the table.
type Measure = fn(&Options, &mut Report) -> Result<()>;

const GROUPS: &[(&str, Measure)] = &[
    ("latency", latency::measure),
    ("throughput", throughput::measure),
    ("packets", packets::measure),
    ("connections", connections::measure),
    ("translation", translation::measure),
    ("control", control::measure),
    ("control-files", control_files::measure),
    ("restart", restart::measure),
    ("takeover", takeover::measure),
];

/// Measures and prints.
///
/// # Errors
/// A row could not be measured, or was asked for and doesn't exist. A row that falls short is no error.
pub fn run(options: &Options) -> Result<ExitCode> {
    let groups: Vec<_> = GROUPS.iter().filter(|(name, _)| options.wants(name)).collect();
    let names: Vec<_> = GROUPS.iter().map(|(name, _)| *name).collect();
    ensure!(!groups.is_empty(), "no such row; there are: {}", names.join(" "));
    let mut report = Report::default();
    for (name, measure) in groups {
        eprintln!("measuring: {name}");
        if let Err(error) = measure(options, &mut report) {
            report.unmeasured(name, &error);
        }
    }
    report.print();
    Ok(ExitCode::SUCCESS)
}
