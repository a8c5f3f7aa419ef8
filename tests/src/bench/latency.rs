//! Round trips of small UDP datagrams between two threads on one CPU.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

use super::{
    Options,
    arena::{Arena, Contender},
    figure::percentile,
    pin,
    report::{Better, Goal, Report},
    samples::{Sample, Samples},
};

pub(super) const PORT: u16 = 30_001;

pub(super) fn measure(arena: &Arena, options: &Options, report: &mut Report) -> Result<()> {
    let trips = if options.quick { 3_000 } else { 8_000 };
    let take = |contenders: &[Contender<'_>]| {
        Samples::take_several(options.many_rounds(), contenders, |contender| percentiles(contender, trips))
    };
    let same = take(&arena.same_node())?;
    publish(&same, report, "same node");
    let [p50, ..] = &same;
    p50.row(report, "same node, p50 latency over veth", "shunt", "veth", Goal::AtMost(1.08), "us");
    beside_flannel(&same, report, "same node", Goal::AtMost(1.0));

    let cross = take(&arena.cross_node())?;
    publish(&cross, report, "cross node");
    let [p50, ..] = &cross;
    p50.row(report, "cross node, p50 latency over bare", "shunt", "bare", Goal::AtMost(1.25), "us");
    beside_flannel(&cross, report, "cross node", Goal::AtMost(0.80));
    p50.row(report, "(flannel's way over bare)", "flannel", "bare", Goal::None, "us");
    Ok(())
}

pub(super) const PERCENTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

fn publish(samples: &[Samples; 3], report: &mut Report, place: &str) {
    for (samples, (name, _)) in samples.iter().zip(PERCENTILES) {
        samples.publish(report, &format!("Round trip, {name}, {place}"), "us", Better::Less, None);
    }
}

/// The tails are never worse; the median has a goal of its own.
fn beside_flannel(samples: &[Samples; 3], report: &mut Report, place: &str, median: Goal) {
    for ((samples, (name, _)), goal) in samples.iter().zip(PERCENTILES).zip([median, Goal::AtMost(1.0), Goal::AtMost(1.0)]) {
        samples.row(report, &format!("{place}, {name} latency over flannel's way"), "shunt", "flannel", goal, "us");
    }
}

/// The percentiles of a round trip in microseconds.
pub(super) fn percentiles(contender: &Contender<'_>, trips: usize) -> Result<Sample<3>> {
    let server = contender.server.inside(|| UdpSocket::bind((contender.server_address, PORT)))?;
    let client = contender.client.inside(|| UdpSocket::bind((contender.client_address, PORT)))?;
    client.connect((contender.asked, PORT))?;
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
        let microseconds: Vec<_> = nanoseconds?.into_iter().map(|time| f64::from(time) / 1000.0).collect();
        Ok(Sample { values: PERCENTILES.map(|(_, share)| percentile(&microseconds, share)), work: f64::NAN })
    })
}
