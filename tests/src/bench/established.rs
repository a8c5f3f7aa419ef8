//! One TCP stream to a backend directly and through its ClusterIP: what translating every packet of an established flow takes from it.
//! With connect-time translation there would be nothing to translate, so that is switched off.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::{
    Options,
    arena::{Arena, Contender},
    report::{Better, Goal, Report},
    samples::Samples,
    throughput::gigabits,
};
use crate::{
    cluster::{Endpoint, Port},
    lab::eventually,
    pod::Pod,
    service::SOON,
    traffic::iperf,
    translation::Translation,
};

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let mut arena = Arena::build(options)?;
    let Some([client, here, there]) = &arena.pods else { return Ok(()) };
    arena.lab.switch_translation("n1", Translation::Packet)?;
    for (place, index, backend) in [("same node", 10, here), ("cross node", 11, there)] {
        let vip = Ipv4Addr::new(10, 100, 0, index);
        let ports = [Port::tcp(iperf::PORT, iperf::PORT)];
        arena.lab.cluster.put_service(&backend.name, vip, &ports)?;
        arena.lab.cluster.put_endpoints(&backend.name, &ports, &[Endpoint::ready(backend.address, &backend.node)])?;
        let samples = against_direct(options, client, backend, vip)?;
        samples.publish(report, &format!("TCP through a ClusterIP, one stream, {place}"), "Gbit/s", Better::More, Some("MB"));
        let name = format!("{place}, throughput through a ClusterIP over direct");
        samples.row(report, &name, "service", "direct", Goal::AtLeast(0.97), "Gbit/s");
    }
    Ok(())
}

fn against_direct(options: &Options, client: &Pod, backend: &Pod, vip: Ipv4Addr) -> Result<Samples> {
    let direct = Contender::of_pods("direct", client, backend);
    let service = Contender { name: "service", asked: vip, ..direct };
    let stream = |contender: &Contender<'_>| gigabits(contender, "1");
    eventually(SOON, || stream(&service))?;
    Samples::take(options.long_rounds(options.many_rounds()), &[direct, service], stream)
}
