//! Round trips of small UDP datagrams between two threads on one CPU.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::{
    Options,
    arena::{Arena, Contender, Samples},
    pin,
    report::{Goal, Report},
};

const PORT: u16 = 7001;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let arena = Arena::build(options)?;
    let trips = if options.quick { 3_000 } else { 8_000 };
    let same = Samples::take(options.many_rounds(), &arena.same_node(), |contender| p50(contender, trips))?;
    same.row(report, "same node, p50 latency over veth", "shunt", "veth", Goal::AtMost(1.08), "us");
    let cross = Samples::take(options.many_rounds(), &arena.cross_node(), |contender| p50(contender, trips))?;
    cross.row(report, "cross node, p50 latency over bare", "shunt", "bare", Goal::AtMost(1.25), "us");
    cross.row(report, "cross node, p50 latency over flannel's way", "shunt", "flannel", Goal::AtMost(0.80), "us");
    cross.row(report, "(flannel's way over bare)", "flannel", "bare", Goal::None, "us");
    Ok(())
}

/// The median of a round trip in microseconds.
fn p50(contender: &Contender<'_>, trips: usize) -> Result<f64> {
    let server = contender.server.inside(|| UdpSocket::bind((contender.server_address, PORT)))?;
    let client = contender.client.inside(|| UdpSocket::bind((contender.client_address, PORT)))?;
    client.connect((contender.server_address, PORT))?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    server.set_read_timeout(Some(Duration::from_secs(2)))?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || -> Result<()> {
            pin::here();
            let mut buffer = [0; 64];
            for _ in 0..trips {
                let (len, peer): (usize, SocketAddr) = server.recv_from(&mut buffer)?;
                server.send_to(&buffer[..len], peer)?;
            }
            Ok(())
        });
        let asker = scope.spawn(move || -> Result<Vec<u32>> {
            pin::here();
            let mut buffer = [0; 64];
            let mut nanoseconds = Vec::with_capacity(trips);
            for _ in 0..trips {
                let start = Instant::now();
                client.send(&[1; 32])?;
                client.recv(&mut buffer)?;
                nanoseconds.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
            Ok(nanoseconds)
        });
        let nanoseconds = asker.join().map_err(|_| anyhow!("the client panicked"))?;
        echo.join().map_err(|_| anyhow!("the server panicked"))??;
        let mut nanoseconds = nanoseconds?;
        nanoseconds.sort_unstable();
        Ok(f64::from(nanoseconds[trips / 2]) / 1000.0)
    })
}
