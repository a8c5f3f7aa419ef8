//! What translating a packet of a known Service flow costs, over an empty program on the same packet.
//!
//! Each test run gets the packet anew: repeats within one run would be fed the translated packet back.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use shunt::kernel::pins::PinDir;

use super::{
    Options,
    bpf::{Program, program_of_link},
    pin,
    report::{Figure, Goal, Report, median},
};
use crate::{
    lab::Lab,
    service::{Service, serve_pod},
    topology::PAIR,
    traffic::echo::TcpClient,
};

const CLIENT_PORT: u16 = 47_000;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    if options.rivals_only {
        return Ok(());
    }
    let lab = Lab::build(&PAIR)?;
    let (client, backend) = (lab.pod("n1", "a")?, lab.pod("n1", "b")?);
    let _server = serve_pod(&backend)?;
    let service = Service::create(&lab, "web", 10, &[&backend])?;
    let mut connection = TcpClient::connect_from(&client.netns, CLIENT_PORT, service.vip)?;
    connection.exchange(b"established")?;

    let node = lab.node("n1");
    let interface = client.result["interfaces"][0]["name"].as_str().context("the plugin names no host interface")?;
    let ifindex = node.netns.ifindex(interface)?;
    let program = Program::by_id(program_of_link(&PinDir::new(node.pin_dir()).link("from_pod", interface))?)?;
    let empty = Program::empty()?;
    let frame = segment(client.address, service.vip);
    let runs = if options.quick { 3_000 } else { 20_000 };
    let rounds: Vec<(f64, f64)> = node.netns.inside(|| {
        pin::here();
        (0..options.rounds())
            .map(|_| Ok((cost(&program, &frame, ifindex, runs)?, cost(&empty, &frame, ifindex, runs)?)))
            .collect::<Result<_>>()
    })?;
    let (full, nothing): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
    let differences: Vec<f64> = rounds.iter().map(|(full, nothing)| full - nothing).collect();
    let detail = format!("from_pod {:.0} ns, empty {:.0} ns", median(&full), median(&nothing));
    report.row("DNAT on a known flow, over an empty program", Goal::AtMost(35.0), " ns", Figure::of(&differences), detail);
    Ok(())
}

/// The median of single runs in nanoseconds.
fn cost(program: &Program, frame: &[u8], ifindex: u32, runs: usize) -> Result<f64> {
    let mut nanoseconds = Vec::with_capacity(runs);
    for _ in 0..runs {
        nanoseconds.push(program.run(frame, ifindex)?.as_nanos() as f64);
    }
    Ok(median(&nanoseconds))
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
