//! How long a program takes for one packet, over a program that does nothing.
//!
//! Every run is a `BPF_PROG_TEST_RUN` of its own with a packet that the kernel has just made, for a repeated run would be fed what the one before
//! left: a translated packet, an encapsulated one, a flow that is no longer new. The kernel's own time of the one run is taken, so that the
//! system call and the packet's making are not in it; what the clock itself costs is in the empty program's time too. The price: a system call
//! lies between two runs, so that caches and branch predictors are cooler than in a stream of packets and figures are higher than there (the row
//! `translation` is of such a stream). Not shown either: what the kernel does with the packet afterwards, and headroom that it lacks (a test's
//! packet has enough). A round's figure is the mean of the middle half of its runs.

use std::{collections::BTreeSet, fs, process::Command, thread};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use shunt::kernel::skb::SkbAccess;
use shunt_common::{config::NodeConfig, event::program};

use super::{
    super::{
        bpf::Program,
        figure::{median, middle_mean},
        pin,
    },
    paths::{self, Path},
};
use crate::{
    command,
    test_run::dataplane::{Dataplane, NODE_IP, Outcome, PEER_IP},
};

/// The MAC of the next hop to the other node.
const NEXT_HOP: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Room for the flows of a batch, two entries each.
const FLOWS: u32 = 65_536;
/// A shortcut holds for a part of a second; a look at it begins anew if that ended in its middle.
const TRIES: usize = 50;

/// What a way costs, in nanoseconds: a figure each round.
#[derive(Debug)]
pub(super) struct Time {
    /// The way, by its program's name and what it is.
    pub(super) name: String,
    /// The program.
    pub(super) full: Vec<f64>,
    /// A program that does nothing, on the same packets.
    pub(super) empty: Vec<f64>,
}

impl Time {
    /// What the program takes longer than an empty one, each round.
    pub(super) fn over(&self) -> Vec<f64> {
        self.full.iter().zip(&self.empty).map(|(full, empty)| full - empty).collect()
    }

    /// The program's time over an empty one's, of medians.
    pub(super) fn ratio(&self) -> f64 {
        median(&self.full) / median(&self.empty)
    }
}

/// Measures every way in rounds of so many runs each.
///
/// # Errors
/// Programs cannot be loaded or run, or a packet didn't go the way that is to be timed.
pub(super) fn measure(rounds: usize, runs: u16) -> Result<Vec<Time>> {
    on_a_link(|underlay| {
        let config = NodeConfig { snat_port_max: *paths::PORTS.end(), ..Dataplane::node(underlay) };
        let mut dataplane = Dataplane::of(&config, &SkbAccess::of_this_kernel()?, FLOWS);
        // After the dataplane, which has chosen a CPU for its test.
        pin::here();
        paths::furnish(&mut dataplane);
        for path in paths::ALL {
            check(&mut dataplane, path).with_context(|| path.name())?;
        }
        let empty = [Program::empty()?, Program::empty_xdp()?];
        let time = |path: &Path| Time { name: path.name(), full: Vec::new(), empty: Vec::new() };
        let mut times: Vec<Time> = paths::ALL.iter().map(time).collect();
        for _ in 0..rounds {
            for (path, time) in paths::ALL.iter().zip(&mut times) {
                let program = Program::of(dataplane.program(program::name(path.program)))?;
                prepare(&mut dataplane, path);
                time.empty.push(batch(&empty[usize::from(is_xdp(path))], path, dataplane.ingress, runs)?);
                time.full.push(batch(&program, path, dataplane.ingress, runs)?);
                dataplane.lose_flows();
            }
        }
        Ok(times)
    })
}

/// The time of so many runs.
fn batch(program: &Program, path: &Path, ingress: u32, runs: u16) -> Result<f64> {
    let run = |number| {
        let frame = (path.packet)(number).bytes();
        if is_xdp(path) { program.run_xdp(&frame, 1) } else { program.run(&frame, ingress, 1) }.map(f64::from)
    };
    Ok(middle_mean(&(0..runs).map(run).collect::<Result<Vec<_>>>()?))
}

fn is_xdp(path: &Path) -> bool {
    path.program == program::FROM_WIRE_XDP
}

/// Brings the node to where the way begins: a flow that is to be known has been heard of, and has its shortcut.
fn prepare(dataplane: &mut Dataplane, path: &Path) {
    for (program, opener) in path.before {
        dataplane.run(program::name(*program), &opener().bytes());
    }
    if (path.packet)(0).bytes() == (path.packet)(1).bytes() {
        for _ in 0..3 {
            outcome(dataplane, path);
        }
    }
}

fn outcome(dataplane: &mut Dataplane, path: &Path) -> Outcome {
    let packet = (path.packet)(0).bytes();
    if is_xdp(path) { dataplane.run_xdp(&packet) } else { dataplane.run(program::name(path.program), &packet) }
}

/// Holds a packet to the way that is to be timed.
fn check(dataplane: &mut Dataplane, path: &Path) -> Result<()> {
    prepare(dataplane, path);
    let usual = outcome(dataplane, path);
    let (moved, expected): (BTreeSet<_>, BTreeSet<_>) = (usual.counted.keys().collect(), path.counted.iter().collect());
    ensure!(moved == expected, "the packet moved the counters {moved:?} instead of {expected:?}");
    dataplane.lose_flows();
    if !path.is_short {
        return Ok(());
    }
    let is_tunnelled = path.counted.contains(&"to_tunnel");
    // Outer headers have a number of their own.
    let sent = |outcome: &Outcome| outcome.packet[if is_tunnelled { 64 } else { 0 }..].to_vec();
    let is_short = (0..TRIES).any(|_| {
        prepare(dataplane, path);
        // A flow that was opened anew may have another source port.
        let known = outcome(dataplane, path);
        dataplane.lose_flows();
        let outcome = outcome(dataplane, path);
        let by_link = !is_tunnelled || outcome.packet[..6] == NEXT_HOP;
        let is_same = sent(&outcome) == sent(&known) && outcome.counted == known.counted;
        by_link && is_same && dataplane.flows().is_empty()
    });
    dataplane.lose_flows();
    ensure!(is_short, "the packet was not served by a shortcut");
    Ok(())
}

/// Calls a function on a thread in a network namespace of its own, with the interface of an underlay on which the other node is known.
fn on_a_link<R: Send>(work: impl FnOnce(u32) -> Result<R> + Send) -> Result<R> {
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        let [a, b, c, d, e, f] = NEXT_HOP;
        for arguments in [
            "link set lo up",
            "link add underlay address 02:00:00:00:00:01 type veth peer name wire",
            "link set wire up",
            &format!("addr add {NODE_IP}/24 dev underlay"),
            "link set underlay up",
            &format!("route add default via {PEER_IP} dev underlay"),
            &format!(
                "neigh replace {PEER_IP} lladdr {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev underlay nud permanent"
            ),
        ] {
            command::run(Command::new(command::program("ip".as_ref())).args(arguments.split(' ')))?;
        }
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot let the namespace forward")?;
        work(nix::net::if_::if_nametoindex("underlay")?)
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}
