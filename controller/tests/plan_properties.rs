//! Compile and diff against the fake kernel: whatever the order of events, wherever a crash, the maps end up the same, and no step on
//! the way leaves anything dangling.

use std::{collections::BTreeMap, net::Ipv4Addr};

use proptest::{collection::vec, prelude::*, sample::select};
use shunt::{
    compile::{Compiler, NodeView, compile, desired::Desired},
    diff::{Capacities, Differ},
    kernel::{
        fake::FakeKernel,
        step::{Actual, Kernel as _},
    },
    model::{
        Changes, Endpoint, EndpointPort, EndpointSlice, Model, Node, ObjectName, Protocol, Service, ServicePort, TunnelEnd,
    },
};
use shunt_common::{
    address::{Address, kind},
    net::{Ip4, Mac, Port, V4},
    service::{self, Backend, ServiceKey, state},
};

/// Something that happens to the cluster.
#[derive(Clone, Debug)]
enum Event {
    Node(Node),
    NoNode(&'static str),
    Service(Service),
    NoService(ObjectName),
    Slice(ObjectName, &'static str, EndpointSlice),
    NoSlice(ObjectName),
}

impl Event {
    fn happen(self, model: &mut Model, changes: &mut Changes) {
        match self {
            Self::Node(node) => model.put_node(node, changes),
            Self::NoNode(name) => model.remove_node(&name.into(), changes),
            Self::Service(service) => model.put_service(service, changes),
            Self::NoService(name) => model.remove_service(&name, changes),
            Self::Slice(name, service, slice) => model.put_slice(&name, &service.into(), slice, changes),
            Self::NoSlice(name) => model.remove_slice(&name, changes),
        }
    }
}

const NODES: [&str; 4] = ["n0", "n1", "n2", "n3"];
const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
const SLICES: [&str; 5] = ["a-1", "a-2", "b-1", "c-1", "c-2"];

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn view() -> NodeView {
    let ip = Ip4::new(192, 0, 2, 10);
    let non_masquerade = ["10.0.0.0/8", "10.244.1.0/24"].iter().filter_map(|range| range.parse().ok()).collect();
    NodeView { name: "n0".into(), ip, addresses: [ip, Ip4::new(172, 17, 0, 1)].into(), non_masquerade }
}

/// Few addresses and ranges for few nodes, so that they often contradict each other.
fn node() -> impl Strategy<Value = Node> {
    let address = select(vec![[192, 0, 2, 10], [192, 0, 2, 11], [192, 0, 2, 12], [172, 17, 0, 1], [10, 244, 1, 7]])
        .prop_map(Ipv4Addr::from);
    let range = select(vec!["10.244.0.0/24", "10.244.1.0/24", "10.244.0.0/16", "10.244.1.0/26", "10.96.0.0/24", "fd00::/64"]);
    (select(NODES.to_vec()), vec(address.clone(), 0..3), vec(range, 0..2), proptest::option::of(address)).prop_map(
        |(name, addresses, ranges, public_ip)| Node {
            name: name.into(),
            addresses: addresses.into_iter().map(Into::into).collect(),
            pod_cidrs: ranges.into_iter().filter_map(|range| range.parse().ok()).collect(),
            tunnel: TunnelEnd { public_ip, vtep_mac: None },
            zone: None,
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let ips = vec![Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 96, 1, 2), Ipv4Addr::new(192, 0, 2, 11)];
    let port = (select(vec!["http", "dns"]), select(vec![80, 53]), select(vec![Protocol::Tcp, Protocol::Udp]));
    (select(SERVICES.to_vec()), 0..3i64, select(ips), vec(port, 1..3), any::<bool>(), any::<bool>()).prop_map(
        |(service, created, ip, ports, internal_local, publish_not_ready)| Service {
            name: name(service),
            created,
            cluster_ips: [ip.into()].into(),
            ports: ports.into_iter().map(|(name, port, protocol)| ServicePort { name: name.into(), port, protocol }).collect(),
            internal_local,
            publish_not_ready,
        },
    )
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (select(vec!["http", "dns"]), select(vec![8080, 5353]), select(vec![Protocol::Tcp, Protocol::Udp]));
    let endpoint = (1..6u8, any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::of(select(NODES.to_vec())));
    (vec(port, 0..3), vec(endpoint, 0..5)).prop_map(|(ports, endpoints)| EndpointSlice {
        ports: ports.into_iter().map(|(name, port, protocol)| EndpointPort { name: name.into(), port, protocol }).collect(),
        endpoints: endpoints
            .into_iter()
            .map(|(host, ready, serving, terminating, node)| Endpoint {
                address: Ipv4Addr::new(10, 244, 1, host).into(),
                ready,
                serving,
                terminating,
                node: node.map(Into::into),
            })
            .collect(),
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => node().prop_map(Event::Node),
        1 => select(NODES.to_vec()).prop_map(Event::NoNode),
        4 => service().prop_map(Event::Service),
        1 => select(SERVICES.to_vec()).prop_map(|service| Event::NoService(name(service))),
        6 => (select(SLICES.to_vec()), select(SERVICES.to_vec()), slice())
            .prop_map(|(slice, service, it)| Event::Slice(name(slice), service, it)),
        1 => select(SLICES.to_vec()).prop_map(|slice| Event::NoSlice(name(slice))),
    ]
}

fn batches() -> impl Strategy<Value = Vec<Vec<Event>>> {
    vec(vec(event(), 1..5), 1..12)
}

/// Flags, and the sorted targets of the run.
type Frontend = (u32, Vec<(Ip4, Port)>);

/// Maps without what depends on the way to them: ids, generations, slots.
#[derive(Debug, PartialEq)]
struct Resolved {
    addresses: Vec<(Ip4, Address)>,
    routes: Vec<(String, shunt_common::address::Route)>,
    host_routes: Vec<String>,
    services: BTreeMap<ServiceKey<V4>, Frontend>,
    /// All in use, sorted.
    backends: Vec<(Ip4, Port, u16)>,
}

fn held(actual: &Actual) -> Resolved {
    let services = actual.services.iter().map(|(&key, service)| {
        let ids = (service.base..service.base + service.count).map(|slot| actual.slots[&slot]);
        let mut targets: Vec<_> = ids.map(|id| (actual.backends[&id].addr, actual.backends[&id].port)).collect();
        targets.sort();
        (key, (service.flags, targets))
    });
    let in_use = actual.backends.values().filter(|backend| backend.state != state::FREE);
    let mut backends: Vec<_> = in_use.map(|backend| (backend.addr, backend.port, backend.state)).collect();
    backends.sort();
    Resolved {
        addresses: actual.addresses.iter().map(|(k, v)| (*k, *v)).filter(|(_, address)| address.kind != kind::POD).collect(),
        routes: actual.routes.iter().map(|(prefix, route)| (format!("{}/{}", prefix.addr, prefix.len), *route)).collect(),
        host_routes: actual.host_routes.iter().map(ToString::to_string).collect(),
        services: services.collect(),
        backends,
    }
}

fn wanted(desired: &Desired) -> Resolved {
    let services = desired.services.iter().map(|(&key, frontend)| {
        let active = frontend.backends.iter().filter(|(_, is_draining)| !**is_draining);
        (key, (frontend.flags, active.map(|(target, _)| (target.addr, target.port)).collect()))
    });
    let all = desired.services.values().flat_map(|frontend| &frontend.backends);
    let mut backends: Vec<_> = all
        .map(|(target, &is_draining)| (target.addr, target.port, if is_draining { state::DRAINING } else { state::ACTIVE }))
        .collect();
    backends.sort();
    Resolved {
        addresses: desired.addresses.iter().map(|(k, v)| (*k, *v)).collect(),
        routes: desired.routes.iter().map(|(prefix, route)| (format!("{}/{}", prefix.addr, prefix.len), *route)).collect(),
        host_routes: desired.host_routes.iter().map(ToString::to_string).collect(),
        services: services.collect(),
        backends,
    }
}

fn read_back(kernel: &mut FakeKernel) -> Actual {
    kernel.read_back().expect("the fake can always be read")
}

/// Starts anew from what the kernel holds, and checks that this ends where it should and stays there.
fn restart(kernel: &mut FakeKernel, desired: &Desired) -> Result<(), TestCaseError> {
    let mut differ = Differ::new(&read_back(kernel), Capacities::default());
    let plan = differ.reconcile(desired);
    prop_assert_eq!(kernel.carry_out(&plan.steps), Ok(()), "{:#?}", plan.steps);
    prop_assert_eq!(held(kernel.held()), wanted(desired));
    prop_assert_eq!(differ.reconcile(desired).steps, vec![], "a second diff is empty");
    let plan = Differ::new(&read_back(kernel), Capacities::default()).reconcile(desired);
    prop_assert_eq!(plan.steps, vec![], "a restart changes nothing");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_is_full(batches in batches()) {
        let mut model = Model::default();
        let mut compiler = Compiler::new(view());
        let mut differ = Differ::new(&Actual::default(), Capacities::default());
        let mut kernel = FakeKernel::default();
        for batch in batches {
            let mut changes = Changes::default();
            batch.into_iter().for_each(|event| event.happen(&mut model, &mut changes));
            let before = compiler.desired().clone();
            let patch = compiler.update(&model, &changes);
            let (full, mut problems) = compile(&model, &view());
            prop_assert_eq!(compiler.desired(), &full);
            let mut known = compiler.problems();
            known.sort();
            problems.sort();
            prop_assert_eq!(known, problems);
            for (key, frontend) in &before.services {
                let is_changed = full.services.get(key) != Some(frontend);
                prop_assert_eq!(patch.services.contains(key), is_changed, "a patch names what changed and nothing else");
            }
            let plan = differ.plan(&full, &patch);
            prop_assert_eq!(kernel.carry_out(&plan.steps), Ok(()), "{:#?}", plan.steps);
            prop_assert_eq!(held(kernel.held()), wanted(&full));
            prop_assert_eq!(differ.problems(), vec![]);
        }
        let desired = compiler.desired().clone();
        prop_assert_eq!(differ.reconcile(&desired).steps, vec![]);
        let plan = Differ::new(&read_back(&mut kernel), Capacities::default()).reconcile(&desired);
        prop_assert_eq!(plan.steps, vec![], "a restart changes nothing");
    }

    #[test]
    fn any_order_of_events_ends_in_equal_maps(
        (nodes, services, slices) in (vec(node(), 0..4), vec(service(), 0..4), vec((select(SLICES.to_vec()), select(SERVICES.to_vec()), slice()), 0..5)),
        seed in any::<u64>(),
    ) {
        let unique = |events: Vec<(String, Event)>| events.into_iter().collect::<BTreeMap<_, _>>().into_values().collect::<Vec<_>>();
        let events = nodes.into_iter().map(|node| (format!("node {}", node.name), Event::Node(node)));
        let events = events.chain(services.into_iter().map(|service| (format!("service {}", service.name), Event::Service(service))));
        let events = events.chain(slices.into_iter().map(|(slice, service, it)| (format!("slice {slice}"), Event::Slice(name(slice), service, it))));
        let mut shuffled = unique(events.collect());
        let run = |events: Vec<Event>| {
            let mut model = Model::default();
            let mut compiler = Compiler::new(view());
            let mut differ = Differ::new(&Actual::default(), Capacities::default());
            let mut kernel = FakeKernel::default();
            for event in events {
                let mut changes = Changes::default();
                event.happen(&mut model, &mut changes);
                let patch = compiler.update(&model, &changes);
                let plan = differ.plan(compiler.desired(), &patch);
                kernel.carry_out(&plan.steps).expect("no step leaves anything dangling");
            }
            held(kernel.held())
        };
        let in_order = run(shuffled.clone());
        let mut state = seed;
        for i in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            shuffled.swap(i, (state >> 33) as usize % (i + 1));
        }
        prop_assert_eq!(in_order, run(shuffled));
    }

    #[test]
    fn a_crash_anywhere_is_made_good(batches in batches(), cuts in vec(any::<proptest::sample::Index>(), 12)) {
        let mut model = Model::default();
        let mut compiler = Compiler::new(view());
        let mut kernel = FakeKernel::default();
        for (batch, cut) in batches.into_iter().zip(cuts) {
            let mut changes = Changes::default();
            batch.into_iter().for_each(|event| event.happen(&mut model, &mut changes));
            compiler.update(&model, &changes);
            let mut differ = Differ::new(&read_back(&mut kernel), Capacities::default());
            let plan = differ.reconcile(compiler.desired());
            let carried = cut.index(plan.steps.len() + 1);
            prop_assert_eq!(kernel.carry_out(&plan.steps[..carried]), Ok(()));
        }
        restart(&mut kernel, compiler.desired())?;
    }

    #[test]
    fn garbage_is_cleared_away(garbage in garbage(), batch in vec(event(), 1..20)) {
        let mut model = Model::default();
        let mut changes = Changes::default();
        batch.into_iter().for_each(|event| event.happen(&mut model, &mut changes));
        let (desired, _) = compile(&model, &view());
        let pods = garbage.addresses.iter().filter(|(_, address)| address.kind == kind::POD).count();
        let mut kernel = FakeKernel::holding(garbage);
        restart(&mut kernel, &desired)?;
        let left = kernel.held().addresses.values().filter(|address| address.kind == kind::POD).count();
        prop_assert!(left == pods, "pods are nobody's business here");
    }

    #[test]
    fn a_full_map_disturbs_nothing(batches in batches(), slots in 0..12u32, backends in 0..12u32, services in 0..4u32) {
        let capacities = Capacities { slots, backends, services, addresses: Capacities::PODS + 3, routes: 2 };
        let mut model = Model::default();
        let mut compiler = Compiler::new(view());
        let mut differ = Differ::new(&Actual::default(), capacities);
        let mut kernel = FakeKernel::default();
        for batch in batches {
            let mut changes = Changes::default();
            batch.into_iter().for_each(|event| event.happen(&mut model, &mut changes));
            let mut patch = compiler.update(&model, &changes);
            for round in 0.. {
                let plan = differ.plan(compiler.desired(), &patch);
                prop_assert_eq!(kernel.carry_out(&plan.steps), Ok(()), "{:#?}", plan.steps);
                patch = Default::default();
                prop_assert!(round < 20, "making room ends");
                if !plan.again {
                    break;
                }
            }
            let actual = kernel.held();
            prop_assert!(actual.services.len() <= services as usize && actual.routes.len() <= 2 && actual.addresses.len() <= 3);
            prop_assert!(actual.slots.keys().all(|&slot| slot < slots) && actual.backends.keys().all(|&id| 0 < id && id < backends.max(1)));
            if differ.problems().is_empty() {
                prop_assert_eq!(held(actual), wanted(compiler.desired()));
            } else {
                let every_refusal_says_where = differ.problems().iter().all(|problem| problem.message.contains(" is full") && problem.object.is_some());
                prop_assert!(every_refusal_says_where);
            }
        }
        if differ.problems().is_empty() {
            return Ok(());
        }
        // Roomier maps take what these could not.
        let mut differ = Differ::new(&read_back(&mut kernel), Capacities::default());
        let plan = differ.reconcile(compiler.desired());
        prop_assert_eq!(kernel.carry_out(&plan.steps), Ok(()));
        prop_assert_eq!(held(kernel.held()), wanted(compiler.desired()));
    }
}

/// Maps as no agent leaves them: Services over each other's slots, slots without backends, forgotten backends.
fn garbage() -> impl Strategy<Value = Actual> {
    let address = (any::<u8>(), select(vec![kind::POD, kind::HOST, kind::NODE, kind::SERVICE]));
    let service = (1..4u8, select(vec![80u16, 53]), 0..12u32, 0..5u32, 0..3u32);
    (vec(address, 0..5), vec(service, 0..5), vec((0..12u32, 0..8u32), 0..12), vec((1..8u32, 1..5u8, 0..4u16, 0..3u32), 0..8))
        .prop_map(|(addresses, services, slots, backends)| Actual {
            addresses: addresses
                .into_iter()
                .map(|(host, kind)| {
                    (
                        Ip4::new(198, 51, 100, host),
                        Address { kind, ifindex: 0, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, reserved: 0 },
                    )
                })
                .collect(),
            services: services
                .into_iter()
                .map(|(host, port, base, count, flags)| {
                    let key =
                        ServiceKey { addr: Ip4::new(10, 96, 0, host), port: Port::from_host(port), proto: 6, reserved: 0 };
                    (key, service::Service { base, count, flags })
                })
                .collect(),
            slots: slots.into_iter().collect(),
            backends: backends
                .into_iter()
                .map(|(id, host, state, generation)| {
                    (
                        id,
                        Backend {
                            addr: Ip4::new(10, 244, 1, host),
                            port: Port::from_host(8080),
                            state: state.min(2),
                            generation,
                        },
                    )
                })
                .collect(),
            host_routes: "198.51.100.0/24".parse().into_iter().collect(),
            ..Actual::default()
        })
}
