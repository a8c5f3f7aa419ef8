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
    service::{Service, serve_pod},
    topology::PAIR,
    traffic::echo::TcpClient,
    translation::Translation,
};

const CLIENT_PORT: u16 = 47_000;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let lab = Lab::build_with(&PAIR, Translation::Packet)?;
    let (client, backend) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&backend)?;
    let service = Service::create(&lab, "web", 10, &[&backend])?;
    let mut connection = TcpClient::connect_from(&client.netns, CLIENT_PORT, service.vip)?;
    connection.exchange(b"established")?;

    let node = lab.node("n1");
    let interface = client.result["interfaces"][0]["name"].as_str().context("the plugin names no host interface")?;
    let ifindex = node.netns.ifindex(interface)?;
    let program = Program::by_id(program_of_link(&PinDir::new(node.pin_dir()).link("from_pod", interface))?)?;
    let frame = segment(client.address, service.vip);
    let programs = ProgramArray::of(&[&program, &Program::empty()?])?;
    let [ours, empty] = [Program::restoring(&frame, &programs, 0)?, Program::restoring(&frame, &programs, 1)?];
    let before = node.counter(Counter::ToLocalPod)?;
    let repeat = if options.quick { 100_000 } else { 1_000_000 };
    let rounds: Vec<(f64, f64)> = node.netns.inside(|| {
        pin::here();
        let round = |_| Ok((f64::from(ours.run(&frame, ifindex, repeat)?), f64::from(empty.run(&frame, ifindex, repeat)?)));
        (0..options.rounds()).map(round).collect::<Result<_>>()
    })?;
    let delivered = node.counter(Counter::ToLocalPod)? - before;
    ensure!(
        delivered >= u64::from(repeat) * options.rounds() as u64,
        "only {delivered} packets went the way that is to be timed"
    );
    let (full, nothing): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
    let differences: Vec<f64> = rounds.iter().map(|(full, nothing)| full - nothing).collect();
    let detail = format!("from_pod {:.0} ns, empty {:.0} ns", median(&full), median(&nothing));
    report.row("DNAT on a known flow, over an empty program", Goal::AtMost(35.0), " ns", Figure::of(&differences), detail);
    Ok(())
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
