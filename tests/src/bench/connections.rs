//! TCP connections a second to a backend directly and through its Service, with few and with many Services.
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
    arena::{Arena, Contender, Samples},
    large::{SYNTHETIC, wait_for_services},
    pin,
    report::{Goal, Report},
};
use crate::{
    cluster::{Endpoint, Port},
    lab::eventually,
    service::SOON,
    synthetic::Cluster,
};

/// Outside of what the synthetic cluster uses.
const VIP: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 10);
const PORT: u16 = 8080;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let arena = Arena::build(options)?;
    let Some([client, backend, _]) = &arena.pods else { return Ok(()) };
    let period = Duration::from_millis(if options.quick { 300 } else { 1000 });
    let direct = Contender {
        name: "direct",
        client: &client.netns,
        client_address: client.address,
        server: &backend.netns,
        server_address: backend.address,
    };
    let contenders = [direct, Contender { name: "service", server_address: VIP, ..direct }];
    let ports = [Port::tcp(PORT, PORT)];
    arena.lab.cluster.put_service("web", VIP, &ports)?;
    arena.lab.cluster.put_endpoints("web", &ports, &[Endpoint::ready(backend.address, &backend.node)])?;
    let listener = backend.netns.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))?;

    for many in [false, true] {
        // With the one that is measured: 10 and 10,000.
        let cluster = Cluster { services: if many { SYNTHETIC.services - 1 } else { 9 }, ..SYNTHETIC };
        cluster.write(arena.lab.cluster.dir())?;
        wait_for_services(arena.lab.node("n1"), u64::from(cluster.services) + 1)?;
        eventually(SOON, || rate(&contenders[1], &listener, Duration::from_millis(10)))?;
        let samples = Samples::take(options.rounds(), &contenders, |contender| rate(contender, &listener, period))?;
        let name = format!("ClusterIP connections/s over direct, {} Services", cluster.services + 1);
        samples.row(report, &name, "service", "direct", Goal::AtLeast(0.93), "k/s");
    }
    Ok(())
}

/// Thousands of connections a second.
fn rate(contender: &Contender<'_>, listener: &TcpListener, period: Duration) -> Result<f64> {
    let to = SockaddrIn::from(SocketAddrV4::new(contender.server_address, PORT));
    contender.client.inside(|| {
        pin::here();
        let mut connections = 0u64;
        let start = Instant::now();
        while start.elapsed() < period {
            connection(&to, listener).with_context(|| format!("connection {connections}"))?;
            connections += 1;
        }
        Ok(connections as f64 / start.elapsed().as_secs_f64() / 1000.0)
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
