//! `shunt-lab bench`: the figures that shunt must reach, each beside its goal.
//!
//! ```text
//!   pod a, pod b - n1 ===cable=== n2 - pod c     shunt
//!   pod a, pod b - f1 ===cable=== f2 - pod c     flannel's way: a bridge and a VXLAN device
//!   pod a -------- m1 ===cable=== m2 - pod c     the same with a collect-metadata VXLAN device
//!   pod a -------- r1 ===cable=== r2 - pod c     plain routes, no tunnel
//!                  b1 ===cable=== b2             the bare underlay
//!                  v1 ===veth==== v2             a direct veth pair
//! ```
//!
//! Absolute figures drift on a shared machine, so contenders take turns within one run and a row is a ratio of medians; its
//! min and max are those of the single rounds. Senders and receivers share one CPU: unpinned runs have two modes. Cables
//! cut packets to the MTU as a wire does ([`crate::topology::Wire::Offloaded`]).

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};

mod arena;
mod bare_client;
mod bpf;
mod connections;
mod control;
mod control_files;
mod driver;
mod established;
mod figure;
mod first_packet;
mod flows;
mod frontends;
mod hammer;
mod http;
mod large;
mod latency;
mod machine;
mod many;
mod packets;
mod pin;
pub mod programs;
mod proxied;
mod report;
mod restart;
mod rival;
mod samples;
mod scale;
mod scene;
mod sizes;
mod takeover;
mod throughput;
mod translation;
mod usage;

use arena::Arena;
use machine::Facts;
use report::Report;
use sizes::Sizes;

use crate::command;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Fewer sizes, fewer and shorter rounds, within 4 minutes: to see that it works
    #[arg(long)]
    quick: bool,
    /// Rounds in which contenders take turns
    #[arg(long)]
    rounds: Option<usize>,
    /// Measure the rivals alone: how steady this machine is
    #[arg(long)]
    rivals_only: bool,
    /// A real kube-proxy, to be run in place of rules that are written as it writes them; one on PATH is taken if left out
    #[arg(long, value_name = "FILE")]
    kube_proxy: Option<PathBuf>,
    /// Write a report with plots into this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    #[arg(help = help_of_words())]
    rows: Vec<String>,
}

impl Options {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { 5 }).max(1)
    }

    /// kube-proxy itself, if there is one.
    fn kube_proxy(&self) -> Option<PathBuf> {
        self.kube_proxy.clone().or_else(|| Some(command::program("kube-proxy".as_ref())).filter(|file| file.is_absolute()))
    }

    /// Rounds of what takes a second or more at each turn.
    fn long_rounds(&self, full: usize) -> usize {
        if self.quick { 1 } else { full }
    }

    /// Rounds of what swings from one to the next: many short ones have a steadier median than few long ones.
    fn many_rounds(&self) -> usize {
        self.rounds() * if self.quick { 1 } else { 3 }
    }
}

/// What rows are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    Data,
    Services,
    Programs,
    Control,
    Scale,
}

impl Group {
    const ALL: [Self; 5] = [Self::Data, Self::Services, Self::Programs, Self::Control, Self::Scale];

    /// As it is asked for.
    fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Services => "services",
            Self::Programs => "programs",
            Self::Control => "control",
            Self::Scale => "scale",
        }
    }

    /// As a heading.
    fn title(self) -> &'static str {
        match self {
            Self::Data => "Pod to pod",
            Self::Services => "Services",
            Self::Programs => "A packet in each program",
            Self::Control => "Change",
            Self::Scale => "Scale",
        }
    }

    /// What a reader of a report has to know.
    fn about(self) -> &'static str {
        match self {
            Self::Data => {
                "`veth` is a direct veth pair, `bare` two hosts on the wire without pods: what no pod network can beat. `routes` are pods \
                 behind bridges and plain routes without a tunnel, `flannel` the same with flannel's VXLAN device, `metadata` with a \
                 collect-metadata one."
            }
            Self::Services => {
                "Through a Service over straight to its backend, and beside what kube-proxy writes for the same cluster: a ClusterIP is asked by \
                 a pod of its backend's node, where its rules weigh most, a NodePort by a host outside. There shunt translates as it does by default: a \
                 pod's TCP to a ClusterIP is given its backend by `connect()`, so that its packets need nothing more; datagrams (round trips, first \
                 datagrams), and all that comes through a NodePort, are translated packet by packet. With 30,000 Services the nftables mode is left out: its \
                 kernel looks for each set among all. In the row of a process of the node a host outside asks another that has neither rules nor programs: \
                 what that reaches bounds any proxy of Services on this machine."
            }
            Self::Programs => {
                "What a program takes for one packet longer than a program that does nothing, by the way that the packet goes. Every run has a system \
                 call before it, so that caches are cooler than in a stream of packets, and the kernel's part after the program is not in it."
            }
            Self::Control => {
                "From a change of the cluster until it is in force, what an agent costs meanwhile, and what its restart and a takeover cost \
                 those who are connected. No rival takes turns with ours here, which was measured alone; n says how often. Memory is what is resident of the \
                 agent's process (VmRSS), without the kernel's memory for eBPF maps, whose sizes `docs/troubleshooting.md` has."
            }
            Self::Scale => {
                "The same questions to ever larger clusters. No rival takes turns with ours here, for labs of this size don't stand together: at each size ours is \
                 measured to its end, and then each mode of kube-proxy's rules, in a lab of its own minutes later; the machine may have changed \
                 meanwhile. n says of how many starts, rounds or changes a figure is: starts, and the percentiles of one round of changes, are single ones, without a \
                 spread, and rivals see fewer changes than ours. Their rules are written by our generator always, and what kube-proxy would spend before is \
                 not in their figures. Memory is what is resident of the agent's process (VmRSS), without the kernel's for eBPF maps (`docs/troubleshooting.md` \
                 has their sizes); that of the rivals' rules is the kernel's altogether and was not measured."
            }
        }
    }
}

/// A measurement of some rows of the table.
struct Measurement {
    group: Group,
    name: &'static str,
    how: How,
}

enum How {
    /// With a lab of its own.
    Alone(fn(&Options, &mut Report) -> Result<()>),
    /// In the lab that all such share.
    InArena(fn(&Arena, &Options, &mut Report) -> Result<()>),
    /// In that of few and many Services, likewise.
    AtSizes(fn(&Sizes, &Options, &mut Report) -> Result<()>),
}

impl Measurement {
    const fn new(group: Group, name: &'static str, how: How) -> Self {
        Self { group, name, how }
    }

    fn answers(&self, word: &str) -> bool {
        self.group.name() == word || self.name.starts_with(word)
    }
}

const MEASUREMENTS: &[Measurement] = &[
    Measurement::new(Group::Data, "latency", How::InArena(latency::measure)),
    Measurement::new(Group::Data, "throughput", How::InArena(throughput::measure)),
    Measurement::new(Group::Data, "streams", How::InArena(throughput::measure_eight)),
    Measurement::new(Group::Data, "packets", How::InArena(packets::measure)),
    Measurement::new(Group::Data, "direct", How::InArena(connections::measure_direct)),
    Measurement::new(Group::Data, "http", How::InArena(http::measure)),
    Measurement::new(Group::Services, "connections", How::Alone(connections::measure)),
    Measurement::new(Group::Services, "firstpacket", How::AtSizes(first_packet::measure)),
    Measurement::new(Group::Services, "clusterip", How::AtSizes(frontends::cluster_ip)),
    Measurement::new(Group::Services, "nodeport", How::AtSizes(frontends::node_port)),
    Measurement::new(Group::Services, "established", How::Alone(established::measure)),
    Measurement::new(Group::Services, "translation", How::Alone(translation::measure)),
    Measurement::new(Group::Services, "driver", How::Alone(driver::measure)),
    Measurement::new(Group::Programs, "programs", How::Alone(programs::measure)),
    Measurement::new(Group::Control, "control-api", How::Alone(control::measure)),
    Measurement::new(Group::Control, "control-files", How::Alone(control_files::measure)),
    Measurement::new(Group::Control, "restart", How::Alone(restart::measure)),
    Measurement::new(Group::Control, "takeover", How::Alone(takeover::measure)),
    Measurement::new(Group::Scale, "scale", How::Alone(scale::measure)),
    Measurement::new(Group::Scale, "flows", How::Alone(flows::measure)),
    Measurement::new(Group::Scale, "many", How::Alone(many::measure)),
];

/// All words that ask for something.
fn words() -> String {
    let names: Vec<_> = MEASUREMENTS.iter().map(|measurement| measurement.name).collect();
    format!("the groups {} and the rows {}", Group::ALL.map(Group::name).join(" "), names.join(" "))
}

fn help_of_words() -> String {
    format!("Groups, rows or the beginnings of them, all if left out: there are {}", words())
}

/// The measurements that some words ask for.
fn chosen(words: &[String]) -> Result<Vec<&'static Measurement>> {
    for word in words {
        let known = MEASUREMENTS.iter().any(|measurement| measurement.answers(word));
        ensure!(known, "no row or group is called {word}; there are {}", self::words());
    }
    let asked = |measurement: &&Measurement| words.is_empty() || words.iter().any(|word| measurement.answers(word));
    Ok(MEASUREMENTS.iter().filter(asked).collect())
}

/// Measures and prints.
///
/// # Errors
/// A row was asked for that doesn't exist, or the report could not be written. A row that falls short or could not be measured is
/// no error: the table says so.
pub fn run(options: &Options) -> Result<ExitCode> {
    let chosen = chosen(&options.rows)?;
    let (facts, mut report) = (Facts::gather(options.kube_proxy().as_deref()), Report::default());
    let (mut arena, mut sizes) = (None, None);
    for Measurement { group, name, how } in chosen {
        eprintln!("{}: measuring {name}", facts.duration());
        report.begin(*group);
        // A lab that stands idle has agents that would take their share of the CPU.
        if !matches!(how, How::InArena(_)) {
            arena = None;
        }
        if !matches!(how, How::AtSizes(_)) {
            sizes = None;
        }
        let measured = match how {
            How::Alone(measure) => measure(options, &mut report),
            How::InArena(measure) => {
                standing(&mut arena, || Arena::build(options)).and_then(|arena| measure(arena, options, &mut report))
            }
            How::AtSizes(measure) => {
                standing(&mut sizes, || Sizes::build(options)).and_then(|sizes| measure(sizes, options, &mut report))
            }
        };
        if let Err(error) = measured {
            report.unmeasured(name, &error);
        }
        // Each time: a run that is ended early has shown what it has shown.
        if let Some(dir) = &options.report {
            report.write(dir, &facts)?;
        }
    }
    drop((arena, sizes));
    report.print();
    if let Some(dir) = &options.report {
        eprintln!("report: {}", dir.join("README.md").display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A lab that is built where none stands.
fn standing<L>(lab: &mut Option<L>, build: impl FnOnce() -> Result<L>) -> Result<&L> {
    let built = match lab.take() {
        Some(standing) => standing,
        None => build()?,
    };
    Ok(lab.insert(built))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_group_or_the_beginning_of_a_row() {
        let names = |words: &[&str]| -> Result<Vec<&str>> {
            let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            Ok(chosen(&words)?.iter().map(|measurement| measurement.name).collect())
        };
        assert_eq!(names(&["control"]).unwrap(), ["control-api", "control-files", "restart", "takeover"]);
        assert_eq!(names(&["pack", "latency"]).unwrap(), ["latency", "packets"]);
        assert_eq!(names(&[]).unwrap().len(), MEASUREMENTS.len());
        let refusal = names(&["latency", "speed"]).unwrap_err().to_string();
        assert!(refusal.starts_with("no row or group is called speed; there are the groups data"), "{refusal}");
    }
}
