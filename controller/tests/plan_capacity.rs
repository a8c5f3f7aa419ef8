//! The largest cluster that is promised fits into the maps as they are, and a change in it costs what the change costs.

use std::net::Ipv4Addr;

use shunt::{
    compile::{Compiler, NodeView},
    config::{LoadBalancer, NodePortAddresses, NodePortMode},
    diff::{Capacities, Differ},
    kernel::step::{Actual, Step},
    model::{
        Changes, Endpoint, EndpointPort, EndpointSlice, Exposure, Model, Node, ObjectName, Protocol, Service, ServicePort,
        TunnelEnd,
    },
};
use shunt_common::net::Ip4;

const NODES: u32 = 5_000;
const SERVICES: u32 = 65_536;
const ENDPOINTS: u32 = 250_000;

fn name(number: u32) -> ObjectName {
    ObjectName::new("default", format!("service-{number}"))
}

/// Every tenth has a node port too.
fn service(number: u32) -> Service {
    let is_exposed = number.is_multiple_of(10);
    Service {
        name: name(number),
        cluster_ips: [Ipv4Addr::from(0x0a60_0000 + number).into()].into(),
        exposure: is_exposed.then(|| Exposure::default().into()),
        ports: [ServicePort {
            name: "".into(),
            port: 80,
            node_port: is_exposed.then_some(number as u16).filter(|&port| port != 0),
            protocol: Protocol::Tcp,
        }]
        .into(),
        ..Service::default()
    }
}

/// Four endpoints each, less what makes it too many.
fn slice(number: u32, ready: bool) -> EndpointSlice {
    let first = number * 4;
    let count = ENDPOINTS.saturating_sub(first).min(4);
    EndpointSlice {
        ports: [EndpointPort { name: "".into(), port: 8080, protocol: Protocol::Tcp }].into(),
        endpoints: (first..first + count)
            .map(|serial| Endpoint {
                address: Ipv4Addr::from(0x0b00_0000 + ((serial % NODES) << 8) + 2 + serial / NODES).into(),
                ready: ready || serial != first,
                serving: true,
                terminating: false,
                node: None,
                hints: None,
            })
            .collect(),
    }
}

#[test]
fn what_is_promised_fits_and_changes_are_small() {
    let mut model = Model::default();
    let mut changes = Changes::default();
    for number in 0..NODES {
        let node = Node {
            name: format!("node-{number}").into(),
            addresses: vec![Ipv4Addr::from(0xac10_0001 + number).into()],
            pod_cidrs: format!("{}/24", Ipv4Addr::from(0x0b00_0000 + (number << 8))).parse().into_iter().collect(),
            tunnel: TunnelEnd::default(),
            zone: None,
        };
        model.put_node(node, &mut changes);
    }
    for number in 0..SERVICES {
        model.put_service(service(number), &mut changes);
        model.put_slice(&name(number), &name(number).name, slice(number, true), &mut changes);
    }
    let ip = Ip4::new(172, 16, 0, 1);
    let mut compiler = Compiler::new(NodeView {
        name: "node-0".into(),
        ip,
        subnet: "172.16.0.0/12".parse().unwrap(),
        addresses: [ip].into(),
        non_masquerade: [].into(),
        node_port_addresses: NodePortAddresses::Primary,
        node_port: NodePortMode::Snat,
        load_balancer: LoadBalancer::Random,
    });
    let mut differ = Differ::new(&Actual::default(), Capacities::default());
    let patch = compiler.update(&model, &changes);
    let plan = differ.plan(compiler.desired(), &patch);
    assert_eq!((compiler.problems(), differ.problems()), (vec![], vec![]));
    let count = |is: fn(&Step) -> bool| plan.steps.iter().filter(|step| is(step)).count();
    assert_eq!(count(|step| matches!(step, Step::PutService { .. })), 65_536 + 6_553);
    assert_eq!(count(|step| matches!(step, Step::PutBackend { .. })), 250_000);

    let mut changes = Changes::default();
    model.put_slice(&name(10), &name(10).name, slice(10, false), &mut changes);
    let patch = compiler.update(&model, &changes);
    let steps = differ.plan(compiler.desired(), &patch).steps;
    let [Step::PutSlots { ids, .. }, Step::PutService { .. }, Step::PutService { .. }, Step::PutBackend { .. }] = &*steps
    else {
        panic!("one run for both frontends, the two that name it, the backend that goes: {steps:#?}");
    };
    assert_eq!(ids.len(), 3);
}
