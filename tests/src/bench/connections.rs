//! TCP connections a second to a backend directly and through its Service, with few and with many Services: translated packet by packet,
//! and given the backend by `connect()`.
//!
//! One thread is client and server, so that both ends' work and the way's is counted, and nothing waits.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

use super::{
    Options,
    arena::{Arena, Contender},
    large::{SYNTHETIC, wait_for_services},
    pin,
    report::{Better, Curve, Goal, Report},
    samples::{Sample, Samples},
};
use crate::{
    cluster::{Endpoint, Port},
    lab::eventually,
    service::SOON,
    synthetic::Cluster,
    translation::Translation,
};

/// Outside of what the synthetic cluster uses.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 10);
pub(super) const PORT: u16 = 30_080;

/// Connections straight to a pod.
pub(super) fn measure_direct(arena: &Arena, options: &Options, report: &mut Report) -> Result<()> {
    for (place, contenders) in [("same node", arena.same_node()), ("cross node", arena.cross_node())] {
        let samples = Samples::take(options.rounds(), &contenders, |contender| kiloconnections(contender, period(options)))?;
        samples.publish(report, &format!("TCP connections, {place}"), "k/s", Better::More, Some("connection"));
        let name = format!("{place}, connections/s over flannel's way");
        samples.row(report, &name, "shunt", "flannel", Goal::AtLeast(1.0), "k/s");
    }
    Ok(())
}

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let mut arena = Arena::build(options)?;
    let Some([client, backend, _]) = &arena.pods else { return Ok(()) };
    let direct = Contender::of_pods("direct", client, backend);
    let contenders = [direct, Contender { name: "service", asked: VIP, ..direct }];
    let ports = [Port::tcp(PORT, PORT)];
    arena.lab.cluster.put_service("web", VIP, &ports)?;
    arena.lab.cluster.put_endpoints("web", &ports, &[Endpoint::ready(backend.address, &backend.node)])?;

    let sizes: &[u32] = if options.quick { &[10, 10_000] } else { &[10, 1_000, 10_000, 30_000] };
    let ways = [(Translation::Packet, "packet by packet", 0.93), (Translation::Connect, "by connect()", 0.98)];
    let mut lines = ["direct", ways[0].1, ways[1].1].map(|name| (name, Vec::new()));
    for size in sizes {
        // One of them is the one that is measured.
        let cluster = Cluster { services: size - 1, ..SYNTHETIC };
        cluster.write_packed(arena.lab.cluster.dir())?;
        for (way, &(translation, how, goal)) in ways.iter().enumerate() {
            arena.lab.switch_translation("n1", translation)?;
            wait_for_services(arena.lab.node("n1"), u64::from(*size))?;
            eventually(SOON, || kiloconnections(&contenders[1], Duration::from_millis(10)))?;
            let samples =
                Samples::take(options.rounds(), &contenders, |contender| kiloconnections(contender, period(options)))?;
            let name = format!("ClusterIP connections/s over direct, {how}, {size} Services");
            samples.row(report, &name, "service", "direct", Goal::AtLeast(goal), "k/s");
            let mut point = |line: usize, contender| {
                lines[line].1.extend(samples.figure(contender).map(|figure| (f64::from(*size), figure)));
            };
            point(1 + way, "service");
            if translation == Translation::Packet {
                point(0, "direct");
            }
        }
    }
    let title = "TCP connections through a ClusterIP, same node".to_owned();
    report.curve(Curve::over_services(title, "k/s", Better::More, lines.to_vec()));
    Ok(())
}

fn period(options: &Options) -> Duration {
    Duration::from_millis(if options.quick { 150 } else { 1000 })
}

/// Thousands of connections a second.
pub(super) fn kiloconnections(contender: &Contender<'_>, period: Duration) -> Result<Sample> {
    let listener = contender.server.inside(|| TcpListener::bind((contender.server_address, PORT)))?;
    let to = SockaddrIn::from(SocketAddrV4::new(contender.asked, PORT));
    contender.client.inside(|| {
        pin::here();
        let mut connections = 0u32;
        let start = Instant::now();
        while start.elapsed() < period {
            connection(&to, &listener).with_context(|| format!("connection {connections}"))?;
            connections += 1;
        }
        let work = f64::from(connections);
        Ok(Sample { values: [work / start.elapsed().as_secs_f64() / 1000.0], work })
    })
}

/// Opens, accepts and resets one, so that no port is left waiting.
fn connection(to: &SockaddrIn, listener: &TcpListener) -> io::Result<()> {
    let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    connect(client.as_raw_fd(), to)?;
    let (server, _) = listener.accept()?;
    drop(client);
    drop(server);
    Ok(())
}
