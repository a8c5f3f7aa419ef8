//! What translating a packet of a known Service flow costs, over an empty program on the same packet.
//!
//! Runs repeat within the kernel, so that nothing but the program is timed and caches are warm. A repeat would be fed the translated
//! packet of the one before: a few instructions in front make it anew, for the empty program too.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use shunt::kernel::pins::PinDir;
use shunt_common::verdict::Counter;

use super::{
    Options,
    bpf::{Program, ProgramArray, program_of_link},
    figure::{Figure, median},
    pin,
    report::{Goal, Report},
};
use crate::{
    lab::Lab,
    node::Node,
    pod::Pod,
    service::{PORT, PORTS, Service, serve_pod},
    topology::PAIR,
    traffic::echo::{Server, TcpClient},
    translation::Translation,
};

const CLIENT_PORT: u16 = 47_000;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let lab = Lab::build_with(&PAIR, Translation::Packet)?;
    let (client, backend) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let known = KnownFlow::establish(&lab, &client, &backend)?;
    let rounds: Vec<_> = (0..options.rounds()).map(|_| known.round(runs(options))).collect::<Result<_>>()?;
    let (full, nothing): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
    let differences: Vec<f64> = rounds.iter().map(|(full, nothing)| full - nothing).collect();
    let detail = format!("from_pod {:.0} ns, empty {:.0} ns", median(&full), median(&nothing));
    report.row("DNAT on a known flow, over an empty program", Goal::AtMost(35.0), " ns", Figure::of(&differences), detail);
    Ok(())
}

/// Runs of a round.
pub(super) fn runs(options: &Options) -> u32 {
    if options.quick { 100_000 } else { 1_000_000 }
}

/// A connection through a Service from one pod of n1 to another, and the program that its packets meet first.
pub(super) struct KnownFlow<'a> {
    node: &'a Node,
    ifindex: u32,
    frame: Vec<u8>,
    ours: Program,
    empty: Program,
    _programs: ProgramArray,
    _server: [Server; 2],
    _connection: TcpClient,
}

impl<'a> KnownFlow<'a> {
    pub(super) fn establish(lab: &'a Lab, client: &Pod, backend: &Pod) -> Result<Self> {
        let server = serve_pod(backend)?;
        // Outside of what a synthetic cluster uses.
        let service = Service { name: "web".to_owned(), vip: SocketAddrV4::new(Ipv4Addr::new(10, 100, 0, 10), PORT) };
        lab.cluster.put_service(&service.name, *service.vip.ip(), &PORTS)?;
        service.set_pods(lab, &[backend])?;
        let mut connection = TcpClient::connect_from(&client.netns, CLIENT_PORT, service.vip)?;
        connection.exchange(b"established")?;
        let node = lab.node("n1");
        let (program, ifindex) = from_pod(node, client)?;
        let frame = segment(client.address, service.vip);
        let programs = ProgramArray::of(&[&program, &Program::empty()?])?;
        let [ours, empty] = [Program::restoring(&frame, &[], &programs, 0)?, Program::restoring(&frame, &[], &programs, 1)?];
        Ok(Self { node, ifindex, frame, ours, empty, _programs: programs, _server: server, _connection: connection })
    }

    /// Nanoseconds that a packet takes, and that it takes with an empty program.
    pub(super) fn round(&self, repeat: u32) -> Result<(f64, f64)> {
        let before = self.node.counter(Counter::ToLocalPod)?;
        let round = self.node.netns.inside(|| {
            pin::here();
            let run = |program: &Program| program.run(&self.frame, self.ifindex, repeat).map(f64::from);
            anyhow::Ok((run(&self.ours)?, run(&self.empty)?))
        })?;
        let delivered = self.node.counter(Counter::ToLocalPod)? - before;
        ensure!(delivered >= u64::from(repeat), "only {delivered} packets went the way that is to be timed");
        Ok(round)
    }
}

/// The program that a pod's packets meet first, and the interface by which they come.
pub(super) fn from_pod(node: &Node, pod: &Pod) -> Result<(Program, u32)> {
    let interface = pod.result["interfaces"][0]["name"].as_str().context("the plugin names no host interface")?;
    let pin = PinDir::new(node.pin_dir()).link("from_pod", interface);
    Ok((Program::by_id(program_of_link(&pin)?)?, node.netns.ifindex(interface)?))
}

/// A segment of an established connection to the Service.
fn segment(client: Ipv4Addr, vip: SocketAddrV4) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [0xee; 6])
        .ipv4(client.octets(), vip.ip().octets(), 64)
        .tcp(CLIENT_PORT, vip.port(), 1, 1000)
        .ack(1);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[1; 64]).unwrap_or_else(|error| panic!("no such packet: {error}"));
    frame
}
