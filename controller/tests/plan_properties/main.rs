//! Compile and diff against the fake kernel: whatever the order of events, wherever a crash, the maps end up the same, and no step on
//! the way leaves anything dangling.

mod long_runs;
mod tampering;
mod tries;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use proptest::{collection::vec, prelude::*, sample::select};
use shunt::{
    compile::{
        Compiler, NodeView, compile,
        desired::{Desired, GroupKey},
    },
    config::{LoadBalancer, NodePortAddresses, NodePortMode},
    diff::{Capacities, Differ, audit::Finding},
    kernel::{
        fake::FakeKernel,
        step::{Actual, Kernel as _},
    },
    model::{
        Changes, Endpoint, EndpointPort, EndpointSlice, Exposure, Hints, HostPort, Model, Node, ObjectName, Protocol, Service,
        ServicePort, TunnelEnd,
    },
};
use shunt_common::{
    address::{Address, kind},
    net::{Ip4, Mac, Port, V4},
    service::{self, Backend, Run, ServiceClient, ServiceKey, SourceRange, backend_flags, flags, state},
};

use self::tampering::{look_over, tampered};

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
const ZONES: [&str; 2] = ["z1", "z2"];
const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
const SLICES: [&str; 5] = ["a-1", "a-2", "b-1", "c-1", "c-2"];

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn view() -> NodeView {
    let (ip, subnet) = (Ip4::new(192, 0, 2, 10), ipnet::Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24));
    let non_masquerade = ["10.0.0.0/8", "10.244.1.0/24"].iter().filter_map(|range| range.parse().ok()).collect();
    NodeView {
        name: "n0".into(),
        ip,
        subnet,
        addresses: [ip, Ip4::new(172, 17, 0, 1)].into(),
        non_masquerade,
        node_port_addresses: NodePortAddresses::Primary,
        node_port: NodePortMode::Snat,
        load_balancer: LoadBalancer::Random,
    }
}

/// Views that differ in what a restart may change.
fn views() -> impl Strategy<Value = NodeView> {
    let addresses = vec![NodePortAddresses::Primary, NodePortAddresses::Within("0.0.0.0/0".parse().into_iter().collect())];
    let modes = select(vec![NodePortMode::Snat, NodePortMode::Dsr]);
    (select(addresses), modes, select(vec![LoadBalancer::Random, LoadBalancer::Maglev])).prop_map(
        |(node_port_addresses, node_port, load_balancer)| NodeView { node_port_addresses, node_port, load_balancer, ..view() },
    )
}

/// Few addresses and ranges for few nodes, so that they often contradict each other.
fn node() -> impl Strategy<Value = Node> {
    let address = select(vec![[192, 0, 2, 10], [192, 0, 2, 11], [192, 0, 2, 12], [172, 17, 0, 1], [10, 244, 1, 7]])
        .prop_map(Ipv4Addr::from);
    let range = select(vec!["10.244.0.0/24", "10.244.1.0/24", "10.244.0.0/16", "10.244.1.0/26", "10.96.0.0/24", "fd00::/64"]);
    let zone = proptest::option::of(select(ZONES.to_vec()));
    let end = (proptest::option::of(address.clone()), any::<bool>());
    (select(NODES.to_vec()), vec(address, 0..3), vec(range, 0..2), end, zone).prop_map(
        |(name, addresses, ranges, (public_ip, direct_return), zone)| Node {
            name: name.into(),
            addresses: addresses.into_iter().map(Into::into).collect(),
            pod_cidrs: ranges.into_iter().filter_map(|range| range.parse().ok()).collect(),
            tunnel: TunnelEnd { public_ip, vtep_mac: None, direct_return },
            zone: zone.map(Into::into),
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let ips = vec![Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 96, 1, 2), Ipv4Addr::new(192, 0, 2, 11)];
    let number = (select(vec![80, 53]), proptest::option::of(select(vec![30_080, 30_053])));
    let port = (select(vec!["http", "dns"]), number, select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]));
    let policies = (any::<bool>(), any::<bool>(), proptest::option::of(select(vec![60, 10_800])));
    (select(SERVICES.to_vec()), 0..3i64, select(ips), vec(port, 1..3), policies, proptest::option::of(exposure())).prop_map(
        |(service, created, ip, ports, (internal_local, publish_not_ready, affinity_secs), exposure)| Service {
            name: name(service),
            created,
            cluster_ips: [ip.into()].into(),
            ports: ports
                .into_iter()
                .map(|(name, (port, node_port), protocol)| ServicePort {
                    name: name.into(),
                    port,
                    node_port: node_port.filter(|_| exposure.is_some()),
                    protocol,
                })
                .collect(),
            exposure: exposure.map(Box::new),
            internal_local,
            publish_not_ready,
            affinity_secs,
        },
    )
}

/// Addresses of their own, of nodes, of other Services and of pods.
fn exposure() -> impl Strategy<Value = Exposure> {
    let ips = vec![[203, 0, 113, 1], [203, 0, 113, 2], [192, 0, 2, 10], [192, 0, 2, 11], [10, 96, 0, 1], [10, 244, 1, 3]];
    let ips = move || vec(select(ips.clone()).prop_map(|ip| Ipv4Addr::from(ip).into()), 0..3);
    let range = select(vec!["10.0.0.0/8", "198.51.100.0/24", "0.0.0.0/0", "fd00::/8"]);
    (ips(), ips(), any::<bool>(), vec(range, 0..3), proptest::option::of(select(vec![30_080, 32_001]))).prop_map(
        |(load_balancer_ips, external_ips, local, ranges, health_check_port)| Exposure {
            load_balancer_ips: load_balancer_ips.into(),
            external_ips: external_ips.into(),
            local,
            source_ranges: ranges.into_iter().filter_map(|range| range.parse().ok()).collect(),
            health_check_port,
        },
    )
}

fn host_port() -> impl Strategy<Value = HostPort> {
    let host_ip = proptest::option::of(select(vec![[192, 0, 2, 10], [127, 0, 0, 1], [192, 0, 2, 99]]));
    (host_ip, select(vec![30_080, 8080]), select(vec![Protocol::Tcp, Protocol::Sctp]), select(SERVICES.to_vec()), 1..3u8)
        .prop_map(|(host_ip, host_port, protocol, pod, last)| HostPort {
            host_ip: host_ip.map(Ipv4Addr::from),
            host_port,
            protocol,
            pod: name(pod),
            pod_ip: Ipv4Addr::new(10, 244, 0, last),
            pod_port: 8080,
        })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port =
        (select(vec!["http", "dns"]), select(vec![8080, 5353, 53]), select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]));
    let address = prop_oneof![
        8 => (1..6u8).prop_map(|host| Ipv4Addr::new(10, 244, 1, host)),
        1 => select(vec![Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(192, 0, 2, 11)]),
    ];
    let hints = (vec(select(ZONES.to_vec()), 0..2), vec(select(NODES.to_vec()), 0..2));
    let place = (proptest::option::of(select(NODES.to_vec())), proptest::option::of(hints));
    let endpoint = (address, any::<bool>(), any::<bool>(), any::<bool>(), place);
    (vec(port, 0..3), vec(endpoint, 0..5)).prop_map(|(ports, endpoints)| EndpointSlice {
        ports: ports.into_iter().map(|(name, port, protocol)| EndpointPort { name: name.into(), port, protocol }).collect(),
        endpoints: endpoints
            .into_iter()
            .map(|(address, ready, serving, terminating, (node, hints))| Endpoint {
                address: address.into(),
                ready,
                serving,
                terminating,
                node: node.map(Into::into),
                hints: hints.map(|(zones, nodes)| {
                    let names = |texts: Vec<&str>| texts.into_iter().map(Into::into).collect();
                    Box::new(Hints { zones: names(zones), nodes: names(nodes) })
                }),
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

/// A backend, and what it is used for.
type Used = (Ip4, Port, u8, u8);

/// Flags, seconds of affinity, and the sorted backends of both runs.
type Frontend = (u32, u32, Vec<Used>, Vec<Used>);

/// Maps without what depends on the way to them: ids, generations, slots.
#[derive(Debug, PartialEq)]
struct Resolved {
    addresses: Vec<(Ip4, Address)>,
    routes: Vec<(String, shunt_common::address::Route)>,
    host_routes: Vec<String>,
    node_ports: BTreeMap<u32, u64>,
    /// Prefixes by frontend.
    source_ranges: BTreeMap<ServiceKey<V4>, Vec<(u32, Ip4)>>,
    services: BTreeMap<ServiceKey<V4>, Frontend>,
    /// All in use, sorted.
    backends: Vec<Used>,
}

fn held(actual: &Actual) -> Resolved {
    let used = |backend: &Backend<V4>| (backend.addr, backend.port, backend.state, backend.flags);
    let targets = |run: &Run| -> Vec<Used> {
        let used: BTreeSet<Used> = run.slots().map(|slot| used(&actual.backends[&actual.slots[&slot]])).collect();
        used.into_iter().collect()
    };
    let services = actual.services.iter().map(|(&key, service)| {
        (key, (service.flags, service.affinity_secs, targets(&service.cluster), targets(&service.outside)))
    });
    let limited = actual.services.iter().filter(|(_, service)| service.flags & flags::SOURCE_RANGES != 0);
    let source_ranges = limited.map(|(&key, service)| {
        let own = actual.source_ranges.iter().filter(|range| range.clients.service == service.id);
        (key, own.map(|range| (range.len, range.clients.addr)).collect())
    });
    let source_ranges: BTreeMap<_, Vec<_>> = source_ranges.collect();
    let numbers: BTreeSet<u32> = actual.services.values().map(|service| service.id).collect();
    assert!(actual.source_ranges.iter().all(|range| numbers.contains(&range.clients.service)), "a range of nobody's");
    let mut backends: Vec<_> = actual.backends.values().filter(|backend| backend.state != state::FREE).map(used).collect();
    backends.sort();
    Resolved {
        addresses: actual.addresses.iter().map(|(k, v)| (*k, *v)).filter(|(_, address)| address.kind != kind::POD).collect(),
        routes: actual.routes.iter().map(|(prefix, route)| (format!("{}/{}", prefix.addr, prefix.len), *route)).collect(),
        host_routes: actual.host_routes.iter().map(ToString::to_string).collect(),
        node_ports: actual.node_ports.clone(),
        source_ranges,
        services: services.collect(),
        backends,
    }
}

fn wanted(desired: &Desired) -> Resolved {
    let group = |key: &GroupKey| {
        desired.groups[key].backends.iter().map(|(target, it)| {
            let state = if it.draining { state::DRAINING } else { state::ACTIVE };
            (target.addr, target.port, state, if it.local { backend_flags::LOCAL } else { 0 })
        })
    };
    let active = |key: &GroupKey| -> Vec<Used> { group(key).filter(|used| used.2 == state::ACTIVE).collect() };
    let services = desired.frontends.iter().map(|(&key, frontend)| {
        let [cluster, outside] = frontend.groups(key.proto);
        (key, (frontend.flags, frontend.affinity_secs, active(&cluster), active(&outside)))
    });
    let limited = desired.frontends.iter().filter(|(_, frontend)| frontend.is_limited());
    let source_ranges = limited.map(|(&key, frontend)| {
        let shunt::compile::desired::Owner::Service(name) = &frontend.owner else { panic!("{key:?} is a pod's") };
        let mut ranges: Vec<_> = desired.source_ranges[name]
            .iter()
            .map(|range| (32 + u32::from(range.prefix_len()), range.network().into()))
            .collect();
        ranges.sort();
        (key, ranges)
    });
    let mut backends: Vec<Used> = desired.groups.keys().flat_map(group).collect();
    backends.sort();
    Resolved {
        addresses: desired.addresses.iter().map(|(k, v)| (*k, *v)).collect(),
        routes: desired.routes.iter().map(|(prefix, route)| (format!("{}/{}", prefix.addr, prefix.len), *route)).collect(),
        host_routes: desired.host_routes.iter().map(ToString::to_string).collect(),
        node_ports: desired.node_ports.clone(),
        source_ranges: source_ranges.collect(),
        services: services.collect(),
        backends,
    }
}

/// All frontends of a Service have its number, and no other Service has it.
fn numbers(actual: &Actual, desired: &Desired) -> BTreeMap<u32, BTreeSet<String>> {
    let mut numbers: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for (key, service) in actual.services.iter().filter(|(key, _)| desired.frontends.contains_key(key)) {
        numbers.entry(service.id).or_default().insert(desired.frontends[key].owner.to_string());
    }
    assert!(numbers.iter().all(|(id, owners)| *id == 0 || owners.len() == 1), "{numbers:?}");
    numbers
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
    prop_assert_eq!(look_over(&differ, kernel), Finding::AsKnown);
    let plan = Differ::new(&read_back(kernel), Capacities::default()).reconcile(desired);
    prop_assert_eq!(plan.steps, vec![], "a restart changes nothing");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_is_full(batches in batches(), view in views()) {
        let mut model = Model::default();
        let mut compiler = Compiler::new(view.clone());
        let mut differ = Differ::new(&Actual::default(), Capacities::default());
        let mut kernel = FakeKernel::default();
        for batch in batches {
            let mut changes = Changes::default();
            batch.into_iter().for_each(|event| event.happen(&mut model, &mut changes));
            let before = compiler.desired().clone();
            let patch = compiler.update(&model, &changes);
            let (full, mut problems) = compile(&model, &view);
            prop_assert_eq!(compiler.desired(), &full);
            let mut known = compiler.problems();
            known.sort();
            problems.sort();
            prop_assert_eq!(known, problems);
            for (key, frontend) in &before.frontends {
                let is_changed = full.frontends.get(key) != Some(frontend);
                prop_assert_eq!(patch.frontends.contains(key), is_changed, "a patch names what changed and nothing else");
            }
            for (key, group) in &before.groups {
                let is_changed = full.groups.get(key) != Some(group);
                prop_assert_eq!(patch.groups.contains(key), is_changed, "a patch names what changed and nothing else");
            }
            for (port, health_check) in &full.health_checks {
                let is_changed = before.health_checks.get(port) != Some(health_check);
                prop_assert_eq!(patch.health_checks.contains(port), is_changed);
            }
            let named = full.frontends.iter().flat_map(|(key, frontend)| frontend.groups(key.proto)).collect::<BTreeSet<_>>();
            prop_assert!(named.iter().eq(full.groups.keys()), "groups are those that frontends name");
            let known = numbers(kernel.held(), &before);
            let plan = differ.plan(&full, &patch);
            prop_assert_eq!(kernel.carry_out(&plan.steps), Ok(()), "{:#?}", plan.steps);
            prop_assert_eq!(held(kernel.held()), wanted(&full));
            prop_assert_eq!(differ.problems(), vec![]);
            prop_assert_eq!(look_over(&differ, &kernel), Finding::AsKnown);
            for (number, owners) in numbers(kernel.held(), &full) {
                let moved = known.iter().any(|(before, others)| others == &owners && *before != number && before.min(&number) != &0);
                prop_assert!(!moved, "a Service keeps its number while it has a frontend");
            }
        }
        let desired = compiler.desired().clone();
        prop_assert_eq!(differ.reconcile(&desired).steps, vec![]);
        let plan = Differ::new(&read_back(&mut kernel), Capacities::default()).reconcile(&desired);
        prop_assert_eq!(plan.steps, vec![], "a restart changes nothing");
        for tampered in tampered(kernel.held()) {
            let found = look_over(&differ, &FakeKernel::holding(tampered.clone()));
            prop_assert_eq!(found, Finding::Differs, "{:#?} instead of {:#?}", tampered, kernel.held());
        }
    }

    #[test]
    fn host_ports_come_and_go_among_services(
        steps in vec((vec(event(), 0..4), vec(host_port(), 0..4)), 1..8),
        view in views(),
    ) {
        let mut model = Model::default();
        let mut compiler = Compiler::new(view.clone());
        let mut differ = Differ::new(&Actual::default(), Capacities::default());
        let mut kernel = FakeKernel::default();
        for (events, host_ports) in steps {
            let mut changes = Changes::default();
            events.into_iter().for_each(|event| event.happen(&mut model, &mut changes));
            let host_ports: BTreeSet<HostPort> = host_ports.into_iter().collect();
            let patch = compiler.update(&model, &changes);
            let plan = differ.plan(compiler.desired(), &patch);
            prop_assert_eq!(kernel.carry_out(&plan.steps), Ok(()), "{:#?}", plan.steps);
            let patch = compiler.set_host_ports(host_ports.clone());
            let plan = differ.plan(compiler.desired(), &patch);
            prop_assert_eq!(kernel.carry_out(&plan.steps), Ok(()), "{:#?}", plan.steps);
            prop_assert_eq!(held(kernel.held()), wanted(compiler.desired()));
            let mut anew = Compiler::new(view.clone());
            anew.set_host_ports(host_ports);
            anew.update(&model, &Changes::all(&model));
            prop_assert_eq!(compiler.desired(), anew.desired());
            prop_assert_eq!(compiler.problems(), anew.problems());
            let patch = compiler.set_view(view.clone(), &model);
            prop_assert_eq!(patch, Default::default(), "a view that is the same changes nothing");
        }
        restart(&mut kernel, compiler.desired())?;
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
    fn a_crash_anywhere_is_made_good(batches in batches(), cuts in vec(any::<proptest::sample::Index>(), 12), view in views()) {
        let mut model = Model::default();
        let mut compiler = Compiler::new(view);
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
        let capacities =
            Capacities { slots, backends, services, addresses: Capacities::PODS + 3, routes: 2, ..Capacities::default() };
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
                numbers(actual, compiler.desired());
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
    let run = || (0..12u32, 0..5u32).prop_map(|(base, count)| Run { base, count });
    let bits = select(vec![0, flags::MAGLEV, flags::SOURCE_RANGES]);
    let service = (1..4u8, select(vec![80u16, 53]), run(), run(), bits, select(vec![0, 1, 2, u32::MAX]));
    let backend = (1..8u32, 1..5u8, 0..4u8, 0..3u32);
    let range = (select(vec![0, 31, 40, 64]), select(vec![0, 1, 2, u32::MAX]));
    let limits = (vec(range, 0..4), vec((0..3072u32, 1..u64::MAX), 0..3));
    (vec(address, 0..5), vec(service, 0..5), vec((0..12u32, 0..8u32), 0..12), vec(backend, 0..8), limits).prop_map(
        |(addresses, services, slots, backends, (ranges, node_ports))| Actual {
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
                .map(|(host, port, cluster, outside, flags, id)| {
                    let key =
                        ServiceKey { addr: Ip4::new(10, 96, 0, host), port: Port::from_host(port), proto: 6, reserved: 0 };
                    (key, service::Service { cluster, outside, flags, affinity_secs: 0, id })
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
                            flags: 0,
                            generation,
                        },
                    )
                })
                .collect(),
            source_ranges: ranges
                .into_iter()
                .map(|(len, service)| SourceRange { len, clients: ServiceClient { service, addr: Ip4::new(10, 0, 0, 0) } })
                .collect(),
            node_ports: node_ports.into_iter().collect(),
            host_routes: "198.51.100.0/24".parse().into_iter().collect(),
            ..Actual::default()
        },
    )
}
