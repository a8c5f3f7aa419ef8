//! What the first packet of a flow waits for on its way through a ClusterIP, with few and with many Services: a datagram until its
//! answer is there, and a connection until it stands. One thread is client and server.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};

use super::{
    Options,
    arena::Contender,
    connections,
    figure::percentile,
    latency, pin,
    report::{Better, Goal, Report},
    rival::MODES,
    samples::{Sample, Samples},
    sizes::{Frontend, Sizes},
};
use crate::{lab::eventually, service::SOON};

const PATIENCE: Duration = Duration::from_secs(1);
/// What is measured: the name of a row's beginning, and the title of a curve.
const MEASURED: [(&str, &str); 2] = [
    ("first datagram's answer", "A new flow's first datagram through a ClusterIP until its answer is there, same node"),
    ("TCP connect", "A TCP connection through a ClusterIP until it stands, same node"),
];

/// A contender's ends, with what its client asks.
struct Scene<'a> {
    contender: Contender<'a>,
    datagrams: UdpSocket,
    connections: TcpListener,
}

pub(super) fn measure(sizes: &Sizes, options: &Options, report: &mut Report) -> Result<()> {
    let contenders = sizes.contenders(Frontend::ClusterIp);
    let scenes: Vec<_> = contenders.iter().copied().map(Scene::open).collect::<Result<_>>()?;
    for scene in &scenes {
        eventually(SOON, || scene.sample(1)).with_context(|| format!("{} doesn't answer", scene.contender.name))?;
    }
    let tries = if options.quick { 100 } else { 300 };
    let samples = Samples::take_several(options.many_rounds(), &contenders, |contender| {
        let scene = scenes.iter().find(|scene| scene.contender.name == contender.name).context("it has no scene")?;
        scene.sample(tries)
    })?;
    for (samples, (what, title)) in samples.iter().zip(MEASURED) {
        publish(report, samples, sizes, what, title);
    }
    Ok(())
}

fn publish(report: &mut Report, samples: &Samples, sizes: &Sizes, what: &str, title: &str) {
    let mut by_size = sizes.sizes();
    let Some(least) = by_size.next() else { return };
    for size in by_size {
        let name = format!("{what}, {} Services over {}", size.services, least.services);
        samples.row(report, &name, size.names[0], least.names[0], Goal::AtMost(1.10), "us");
    }
    for (index, (rival, _)) in (1..).zip(MODES) {
        for size in sizes.sizes() {
            let name = format!("{what} over {rival}, {} Services", size.services);
            let Some(theirs) = size.names.get(index) else { continue };
            samples.row(report, &name, size.names[0], theirs, Goal::AtMost(1.0), "us");
        }
    }
    report.curve(sizes.curve(samples, title.to_owned(), "us", Better::Less, None));
}

impl<'a> Scene<'a> {
    fn open(contender: Contender<'a>) -> Result<Self> {
        let at = |port| (Ipv4Addr::UNSPECIFIED, port);
        let (datagrams, connections) =
            contender.server.inside(|| (UdpSocket::bind(at(latency::PORT)), TcpListener::bind(at(connections::PORT))));
        let datagrams = datagrams?;
        datagrams.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { contender, datagrams, connections: connections? })
    }

    /// Medians over some tries, in microseconds: of a datagram's answer, and of a connection.
    fn sample(&self, tries: usize) -> Result<Sample<2>> {
        let to = |port| SocketAddrV4::new(self.contender.asked, port);
        let (answers, connects) = self.contender.client.inside(|| -> Result<_> {
            pin::here();
            let answers: Vec<f64> =
                (0..tries).map(|_| self.ask(to(latency::PORT))).collect::<io::Result<_>>().context("a datagram")?;
            let connects: Vec<f64> =
                (0..tries).map(|_| self.connect(to(connections::PORT))).collect::<io::Result<_>>().context("a connection")?;
            Ok((answers, connects))
        })?;
        Ok(Sample { values: [percentile(&answers, 0.5), percentile(&connects, 0.5)], work: f64::NAN })
    }

    fn ask(&self, to: SocketAddrV4) -> io::Result<f64> {
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.connect(to)?;
        let mut buffer = [0; 64];
        let start = Instant::now();
        client.send(&[1; 32])?;
        let (len, peer) = self.datagrams.recv_from(&mut buffer)?;
        self.datagrams.send_to(&buffer[..len], peer)?;
        client.recv(&mut buffer)?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    }

    fn connect(&self, to: SocketAddrV4) -> io::Result<f64> {
        let client = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // Reset at the end, so that no port is left waiting.
        setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        let start = Instant::now();
        connect(client.as_raw_fd(), &SockaddrIn::from(to))?;
        let took = start.elapsed();
        let server = self.connections.accept()?;
        drop(client);
        drop(server);
        Ok(took.as_secs_f64() * 1e6)
    }
}
