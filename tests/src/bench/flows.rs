//! What a million live flows cost: a packet of any of them in the program that it meets, and the agent that looks for flows that are over.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use shunt::kernel::{pins::PinDir, skb::SkbAccess, sweeper, table::Table};
use shunt_common::{
    conntrack::{CtEntry, CtKey, kind, seen},
    flow::Tuple,
    maps,
    net::{Ip4, Port, V4, proto},
    timeout,
    verdict::Counter,
};

use super::{
    Options,
    bpf::{Program, ProgramArray, Variation},
    figure::{Figure, median},
    large::{ALONE, cpu_seconds},
    pin,
    report::{Goal, Report},
    translation,
};
use crate::{
    lab::Lab,
    node::Node,
    test_run::{
        dataplane::{Dataplane, OTHER_POD, POD},
        packet::{ACK, SYN, ip, tcp},
    },
    traffic::http,
};

/// Flows of a crowd: those of some client ports to some virtual IPs.
#[derive(Clone, Copy)]
struct Crowd {
    vips: u8,
    ports: u16,
}

const FEW: Crowd = Crowd { vips: 32, ports: 32 };
const MANY: Crowd = Crowd { vips: 32, ports: 32_768 };
const FIRST_VIP: [u8; 4] = [10, 96, 0, 64];
const FIRST_PORT: u16 = 32_768;
/// Of the Services; each has its backend at a port of its own, so that no two flows collide.
const PORT: u16 = 80;
const FIRST_TARGET: u16 = 8080;
/// Where an agent answers if it is not told otherwise.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9466);
/// No operation (RFC 791, 3.1): a packet with options has no shortcut.
const OPTIONS: [u8; 4] = [1; 4];

impl Crowd {
    fn flows(self) -> u32 {
        u32::from(self.vips) * u32::from(self.ports)
    }

    fn room(self) -> u32 {
        // Two entries each, and a few for the flow that shows how they look.
        self.flows() * 2 + 1024
    }

    /// Each flow as its client and as its backend has it.
    fn ends(self) -> impl Iterator<Item = (Tuple<V4>, Tuple<V4>)> {
        (0..self.vips).flat_map(move |vip| {
            (0..self.ports).map(move |port| {
                let port = Port::from_host(FIRST_PORT + port);
                let original = Tuple {
                    src: ip(POD).into(),
                    dst: vip_of(vip),
                    sport: port,
                    dport: Port::from_host(PORT),
                    proto: proto::TCP,
                };
                let dport = Port::from_host(FIRST_TARGET + u16::from(vip));
                (original, Tuple { dst: ip(OTHER_POD).into(), dport, ..original })
            })
        })
    }

    /// What differs between packets of its flows.
    fn variations(self, ports_at: usize) -> [Variation; 2] {
        let [high, low] = (self.ports - 1).to_be_bytes();
        // At different places of their words, so that each address has each port.
        [Variation { at: 30, bits: [0, 0, 0, self.vips - 1] }, Variation { at: ports_at, bits: [high, low, 0, 0] }]
    }
}

fn vip_of(number: u8) -> Ip4 {
    let [a, b, c, d] = FIRST_VIP;
    Ip4::new(a, b, c, d + number)
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    packets(options, report)?;
    sweep(options, report)
}

/// A dataplane that tracks a crowd, and programs that send it a packet of a random one of them.
struct Tracking {
    dataplane: Dataplane,
    /// As [`WAYS`].
    ways: Vec<Way>,
    _programs: ProgramArray,
}

/// A packet, our program that gets one of random flows like it each time, and an empty program likewise.
struct Way {
    frame: Vec<u8>,
    ours: Program,
    empty: Program,
}

/// What is measured: whether all that are tracked speak or few of them, and whether shortcuts may serve.
///
/// With few that speak, the table's size alone is measured. With all of them at random every look-up waits for memory (a bucket, an entry of two or three
/// cache lines, their pages), while all that is known of 1,024 flows is in a processor's caches.
const WAYS: [(&str, bool, bool, Goal); 3] = [
    ("few of 1,048,576 flows speak: look-up over 1,024 flows'", false, false, Goal::AtMost(1.3)),
    ("any of 1,048,576 flows speaks: look-up over 1,024 flows'", true, false, Goal::AtMost(1.3)),
    ("... with shortcuts, which only few flows have", true, true, Goal::None),
];

impl Tracking {
    fn of(crowd: Crowd) -> Result<Self> {
        let mut dataplane = Dataplane::of(&Dataplane::node(1), &SkbAccess::of_this_kernel()?, crowd.room());
        pin::here();
        let [original, reply] = model(&mut dataplane)?;
        dataplane.track(crowd.ends().flat_map(|(from, to)| {
            let [first, second] = CtEntry::pair(&from, &to, original.backend, original.generation, original.last_seen);
            let like = |(key, entry): (CtKey<V4>, CtEntry<V4>), model: &CtEntry<V4>| {
                (key, CtEntry { hop: model.hop, seen: seen::ANY, ..entry })
            };
            [like(first, &original), like(second, &reply)]
        }));
        let program = Program::of(dataplane.program("from_pod"))?;
        let programs = ProgramArray::of(&[&program, &Program::empty()?])?;
        let way = |(_, all_speak, has_shortcut, _): &(_, bool, bool, _)| -> Result<_> {
            let [a, b, c, d] = FIRST_VIP;
            let options = if *has_shortcut { &[] } else { &OPTIONS[..] };
            let packet = tcp(POD, FIRST_PORT, &format!("{a}.{b}.{c}.{d}"), PORT, ACK).options(options);
            let speaking = if *all_speak { crowd } else { FEW };
            let (frame, variations) = (packet.bytes(), speaking.variations(34 + options.len()));
            let restoring = |index| Program::restoring(&frame, &variations, &programs, index);
            let (ours, empty) = (restoring(0)?, restoring(1)?);
            Ok(Way { frame, ours, empty })
        };
        let ways = WAYS.iter().map(way).collect::<Result<_>>()?;
        Ok(Self { dataplane, ways, _programs: programs })
    }

    /// Nanoseconds that our program takes longer than an empty one, by each way.
    fn round(&self, repeat: u32) -> Result<[f64; WAYS.len()]> {
        let mut over = [0.0; WAYS.len()];
        for (Way { frame, ours, empty }, over) in self.ways.iter().zip(&mut over) {
            let run = |program: &Program| program.run(frame, self.dataplane.ingress, repeat).map(f64::from);
            let count = || [Counter::ToLocalPod, Counter::ServiceNewFlow].map(|counter| self.dataplane.counted(counter));
            let before = count();
            *over = run(ours)? - run(empty)?;
            let [delivered, opened] = count();
            ensure!(
                delivered - before[0] == u64::from(repeat) && opened == before[1],
                "{} of {repeat} packets were delivered, {} opened a flow: they are not of those that are tracked",
                delivered - before[0],
                opened - before[1]
            );
        }
        Ok(over)
    }
}

/// The entries of a flow of ours as the program has them once packets were seen in it.
fn model(dataplane: &mut Dataplane) -> Result<[CtEntry<V4>; 2]> {
    const VIP: &str = "10.96.0.32";
    dataplane.service(VIP, PORT, proto::TCP, &[(OTHER_POD, FIRST_TARGET - 1)]);
    for flags in [SYN, ACK, ACK] {
        dataplane.run("from_pod", &tcp(POD, FIRST_PORT, VIP, PORT, flags).bytes());
    }
    let flows = dataplane.flows();
    let half = |half| flows.iter().map(|(_, entry)| *entry).find(|entry| entry.kind == half).context("the flow is not tracked");
    Ok([half(kind::ORIGINAL)?, half(kind::REPLY)?])
}

fn packets(options: &Options, report: &mut Report) -> Result<()> {
    let [few, many] = [Tracking::of(FEW)?, Tracking::of(MANY)?];
    let mut rounds = Vec::new();
    // The first of them warms what a round leaves warm.
    for round in 0..=options.rounds() {
        let sample = [few.round(translation::runs(options))?, many.round(translation::runs(options))?];
        if round > 0 {
            rounds.push(sample);
        }
    }
    for (way, (name, _, _, goal)) in WAYS.into_iter().enumerate() {
        let [few, many] = [0, 1].map(|crowd| rounds.iter().map(|round| round[crowd][way]).collect::<Vec<f64>>());
        let detail = format!("{:.0} ns, with {} flows {:.0} ns", median(&many), FEW.flows(), median(&few));
        report.row(name, goal, "", Figure::ratio(&many, &few), detail);
    }
    Ok(())
}

/// The share of a core that an agent takes while its node tracks a million flows that are silent but alive.
fn sweep(options: &Options, report: &mut Report) -> Result<()> {
    let mut lab = Lab::wired(&ALONE)?;
    fs::write(lab.node("n1").config_file(), format!("conntrackMax: {}\n", MANY.room() / 2))?;
    lab.start_agents()?;
    let node = lab.node("n1");
    let pid = node.agent_pid().context("no agent")?;
    let share = |until: &dyn Fn() -> Result<()>| -> Result<f64> {
        let (before, start) = (cpu_seconds(pid)?, Instant::now());
        until()?;
        Ok((cpu_seconds(pid)? - before) / start.elapsed().as_secs_f64() * 100.0)
    };
    let idle = share(&|| {
        thread::sleep(Duration::from_secs(if options.quick { 5 } else { 20 }));
        Ok(())
    })?;
    let flows: Table<CtKey<V4>, CtEntry<V4>> =
        Table::open(&maps::CONNTRACK, &PinDir::new(node.pin_dir()).map(&maps::CONNTRACK))?;
    let (keys, entries): (Vec<_>, Vec<_>) = {
        // Older than what may be forgotten soonest: a round has to look at what a flow is.
        let seen = sweeper::now()?.wrapping_sub(timeout::CLOSED + 2);
        let pairs = MANY.ends().flat_map(|(from, to)| CtEntry::pair(&from, &to, 1, 1, seen));
        pairs.map(|(key, entry)| (key, CtEntry { seen: seen::ANY, ..entry })).unzip()
    };
    flows.put_all(&keys, &entries, |index| format!("flow {index}")).map_err(|(_, error)| error)?;
    // Whole rounds with the rest after each, half a minute together.
    let rounds = if options.quick { 1 } else { 3 };
    await_round(node)?;
    let busy = share(&|| (0..rounds).try_for_each(|_| await_round(node)))?;
    ensure!(flows.get(&keys[0])?.is_some(), "live flows were removed");
    let detail = format!("{busy:.2} % of a core over {rounds} rounds, {idle:.2} % without flows");
    report.row("sweep of a million flows", Goal::AtMost(2.0), " %", Figure::of(&[busy - idle]), detail);
    Ok(())
}

/// Waits for the end of a round of the agent's sweep.
fn await_round(node: &Node) -> Result<()> {
    const ROUNDS: &str = "shunt_conntrack_sweep_duration_seconds_count ";
    let rounds = || -> Result<f64> {
        let text = http::get(&node.netns, METRICS, "/metrics", "")?.body;
        let line = text.lines().find_map(|line| line.strip_prefix(ROUNDS)).context("the metrics don't count rounds")?;
        Ok(line.trim().parse()?)
    };
    let (before, start) = (rounds()?, Instant::now());
    while rounds()? == before {
        ensure!(start.elapsed() < Duration::from_secs(300), "no round of the sweep within five minutes");
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
