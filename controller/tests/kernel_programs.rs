//! The real programs and maps: loading, pinning, attaching, replacing, restarting, removing. Each test has a network namespace, a
//! mount namespace and a BPF filesystem of its own, which go with its thread. Needs root.
//!
//! ```text
//!   [ test's namespace ]   wire9 == eth9 (192.0.2.1/24)   shunt0   shunt0123456789 == peer9
//! ```

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use shunt::kernel::{
    bpf::BpfKernel,
    cleanup, defrag, features,
    links::{self, TunnelSpec},
    maps::Maps,
    netlink::Netlink,
    pins::{Adoption, MapPins, PinDir},
    programs::{Attached, Capacities, Hook, OBJECT, Programs},
    read::Reader,
    routes::Via,
    step::{Actual, Kernel, Step},
    sweeper::Sweeper,
};
use shunt_common::{
    address::{self, Address, Prefix, Route},
    config::NodeConfig,
    conntrack::CtEntry,
    flow::Tuple,
    maps,
    net::{Ip4, Mac, Port, V4, proto},
    service::{Backend, Run, Service, ServiceClient, ServiceKey, SourceRange, backend_flags, state},
};

const NODE_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const MAC: Mac = Mac { bytes: [0x72, 0x73, 192, 0, 2, 1] };
const VETH: &str = "shunt0123456789";

/// What a test works on.
struct Node {
    netlink: Netlink,
    dir: PinDir,
    config: NodeConfig,
    via: Via,
}

/// Runs a test in namespaces of its own.
fn on_node(test: fn(Node)) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let pins = directory.path().join("pins");
        assert_eq!(features::ensure_bpffs(&pins).unwrap(), Some(pins.clone()), "mounted for us");
        assert_eq!(features::ensure_bpffs(&pins).unwrap(), None, "once");
        for command in [
            "link set lo up",
            "link add eth9 type veth peer name wire9",
            "link set wire9 up",
            "address add 192.0.2.1/24 dev eth9",
            "link set eth9 up",
            "link add shunt0123456789 type veth peer name peer9",
        ] {
            ip(command);
        }
        let mut netlink = Netlink::open().unwrap();
        let tunnel = links::ensure_tunnel(&mut netlink, &TunnelSpec { port: 8472, mtu: 1450, mac: MAC }).unwrap();
        let via = Via { tunnel: tunnel.index, node_ip: NODE_IP };
        via.set_up(&mut netlink, MAC).unwrap();
        let config = NodeConfig {
            node_ip: NODE_IP.into(),
            underlay_ifindex: index(&mut netlink, "eth9"),
            tunnel_ifindex: tunnel.index,
            vni: 1,
            mtu: 1450,
            vxlan_port: Port::from_host(8472),
            snat_port_min: 10_000,
            snat_port_max: 29_999,
            tunnel_mac: MAC,
            underlay_mask: Ip4::new(255, 255, 255, 0),
            xdp_forwards: 1,
        };
        let dir = PinDir::new(&pins);
        dir.create().unwrap();
        test(Node { netlink, dir, config, via });
        nix::mount::umount(&pins).unwrap();
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn index(netlink: &mut Netlink, name: &str) -> u32 {
    links::by_name(netlink, name).unwrap().unwrap().index
}

/// Small maps, so that tests are quick and can fill them.
fn capacities() -> Capacities {
    [
        (maps::ADDRESSES.name, 64),
        (maps::SERVICES.name, 64),
        (maps::SLOTS.name, 4096),
        (maps::BACKENDS.name, 1024),
        (maps::CONNTRACK.name, 1024),
    ]
    .into()
}

impl Node {
    fn start(&self, capacities: &Capacities) -> (Programs, MapPins) {
        let pins = Programs::plan(OBJECT, &self.dir, capacities).unwrap();
        let programs = Programs::load(OBJECT, &pins, &self.dir, &self.config, capacities).unwrap();
        (programs, pins)
    }

    fn kernel(&self, pins: &MapPins) -> BpfKernel {
        BpfKernel::new(Maps::open(|spec| pins.path(spec)).unwrap(), Netlink::open().unwrap(), self.via)
    }

    fn link(&self, name: &str) -> PathBuf {
        self.dir.links().join(name)
    }
}

/// Ids of the TCX programs on a hook, in the order in which they run.
fn attached(interface: &str, direction: TcAttachType) -> Vec<u32> {
    SchedClassifier::query_tcx(interface, direction).unwrap().1.iter().map(ProgramInfo::id).collect()
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

#[test]
fn a_restart_uses_maps_on_and_replaces_programs_in_place() {
    on_node(|mut node| {
        let (eth9, veth) = (index(&mut node.netlink, "eth9"), index(&mut node.netlink, VETH));
        let (mut programs, mut pins) = node.start(&capacities());
        assert!(pins.iter().all(|(_, adoption)| adoption == Adoption::Create));
        let tunnel = node.config.tunnel_ifindex;
        let hooks = [
            (Hook::FromPod, VETH, veth),
            (Hook::ToPod, VETH, veth),
            (Hook::FromWire, "eth9", eth9),
            (Hook::ToWire, "eth9", eth9),
            (Hook::FromHost, "shunt0", tunnel),
            (Hook::FromLoopback, "lo", 1),
            (Hook::FromWireXdp, "eth9", eth9),
        ];
        for (hook, interface, ifindex) in hooks {
            assert_eq!(programs.attach(hook, interface, ifindex).unwrap(), Attached::New, "{hook:?}");
        }
        pins.settle().unwrap();
        let before = attached("eth9", TcAttachType::Ingress);
        assert_eq!(before.len(), 1);
        drop(programs);
        assert_eq!(attached("eth9", TcAttachType::Ingress), before, "the agent is gone, its programs are not");
        assert_eq!(attached(VETH, TcAttachType::Egress).len(), 1);

        let (mut programs, pins) = node.start(&capacities());
        assert!(pins.iter().all(|(_, adoption)| adoption == Adoption::Reuse), "{pins:?}");
        for (hook, interface, ifindex) in hooks {
            assert_eq!(programs.attach(hook, interface, ifindex).unwrap(), Attached::Replaced, "{hook:?}");
        }
        let after = attached("eth9", TcAttachType::Ingress);
        assert_eq!(after.len(), 1, "replaced, not added");
        assert_ne!(before, after);
    });
}

#[test]
fn programs_of_others_stay() {
    on_node(|mut node| {
        let eth9 = index(&mut node.netlink, "eth9");
        // Another agent's programs are others' as far as this one is concerned.
        let neighbour = PinDir::new(node.dir.path().join("neighbour"));
        neighbour.create().unwrap();
        let theirs_pins = Programs::plan(OBJECT, &neighbour, &capacities()).unwrap();
        let mut theirs = Programs::load(OBJECT, &theirs_pins, &neighbour, &node.config, &capacities()).unwrap();
        theirs.attach(Hook::FromWire, "eth9", eth9).unwrap();
        let before = attached("eth9", TcAttachType::Ingress);
        let (mut programs, _) = node.start(&capacities());
        programs.attach(Hook::FromWire, "eth9", eth9).unwrap();
        assert_eq!(attached("eth9", TcAttachType::Ingress).len(), 2);
        node.dir.remove_link("from_wire_eth9").unwrap();
        assert_eq!(attached("eth9", TcAttachType::Ingress), before);
    });
}

#[test]
fn an_interface_that_came_back_gets_a_new_link_and_dead_ones_are_collected() {
    on_node(|mut node| {
        let (mut programs, _) = node.start(&capacities());
        let veth = index(&mut node.netlink, VETH);
        programs.attach(Hook::FromPod, VETH, veth).unwrap();
        programs.attach(Hook::ToPod, VETH, veth).unwrap();
        assert_eq!(node.dir.collect_dead_links().unwrap(), Vec::<String>::new());
        ip("link del shunt0123456789");
        assert!(exists(&node.link("from_pod_shunt0123456789")), "a pin outlives its interface");
        ip("link add shunt0123456789 type veth peer name peer9");
        let veth = index(&mut node.netlink, VETH);
        assert_eq!(programs.attach(Hook::FromPod, VETH, veth).unwrap(), Attached::New);
        assert_eq!(attached(VETH, TcAttachType::Ingress).len(), 1);
        assert_eq!(node.dir.collect_dead_links().unwrap(), ["to_pod_shunt0123456789"]);
        assert_eq!(node.dir.link_names().unwrap(), ["from_pod_shunt0123456789"]);
    });
}

fn flow(port: u16) -> [(shunt_common::conntrack::CtKey<V4>, CtEntry<V4>); 2] {
    let tuple = Tuple::<V4> {
        src: Ip4::new(10, 244, 1, 2),
        dst: Ip4::new(10, 244, 2, 3),
        sport: Port::from_host(port),
        dport: Port::from_host(53),
        proto: proto::UDP,
    };
    CtEntry::pair(&tuple, &tuple, 0, 0, 1000)
}

#[test]
fn a_map_of_another_capacity_is_built_beside_the_old_and_takes_its_place() {
    on_node(|node| {
        let (programs, mut pins) = node.start(&capacities());
        pins.settle().unwrap();
        drop(programs);
        let [(key, entry), _] = flow(40_000);
        let old = Maps::open(|spec| node.dir.map(spec)).unwrap();
        old.conntrack.put(&key, &entry, String::new).unwrap();

        let larger = Capacities::from([(maps::CONNTRACK.name, 2048)]).into_iter().chain(capacities()).fold(
            BTreeMap::new(),
            |mut all: Capacities, (name, capacity)| {
                let _ = all.entry(name).or_insert(capacity);
                all
            },
        );
        let (_programs, mut pins) = node.start(&larger);
        assert_eq!(pins.adoption(&maps::CONNTRACK), Adoption::Replace { same_layout: true });
        assert_eq!(pins.adoption(&maps::SERVICES), Adoption::Reuse);
        let new = Maps::open(|spec| pins.path(spec)).unwrap();
        assert_eq!(old.conntrack.copy_missing_to(&new.conntrack).unwrap(), 1);
        assert_eq!(old.conntrack.copy_missing_to(&new.conntrack).unwrap(), 0);
        // Whoever reads the pins meets the old map until the swap.
        assert_eq!(Maps::open(|spec| node.dir.map(spec)).unwrap().conntrack.capacity(), 1024);
        pins.settle().unwrap();
        let settled = Maps::open(|spec| node.dir.map(spec)).unwrap();
        assert_eq!(settled.conntrack.capacity(), 2048);
        assert_eq!(settled.conntrack.get(&key).unwrap(), Some(entry));
        assert_eq!(node.dir.map_names().unwrap().len(), maps::ALL.len(), "nothing is left beside");
    });
}

fn frontend(last: u8) -> ServiceKey<V4> {
    ServiceKey { addr: Ip4::new(10, 96, 0, last), port: Port::from_host(80), proto: proto::TCP, reserved: 0 }
}

fn backend(last: u8) -> Backend<V4> {
    let addr = Ip4::new(10, 244, 2, last);
    Backend { addr, port: Port::from_host(8080), state: state::ACTIVE, flags: backend_flags::LOCAL, generation: 1 }
}

fn serving(run: Run) -> Service {
    Service { cluster: run, outside: run, flags: 0, affinity_secs: 0, id: 1 }
}

fn source_range() -> SourceRange<V4> {
    SourceRange { len: 40, clients: ServiceClient { service: 1, addr: Ip4::new(10, 0, 0, 0) } }
}

#[test]
fn what_is_carried_out_is_read_back() {
    on_node(|node| {
        let (_programs, pins) = node.start(&capacities());
        let mut kernel = node.kernel(&pins);
        assert_eq!(kernel.read_back().unwrap(), Actual::default());
        let service = serving(Run { base: 5, count: 2 });
        let owner =
            Address { kind: address::kind::SERVICE, ifindex: 0, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, reserved: 0 };
        let prefix = Prefix { len: 24, addr: Ip4::new(10, 244, 2, 0) };
        let route = Route { kind: address::route::TUNNEL, underlay: Ip4::new(192, 0, 2, 2), mac: MAC, flags: 0 };
        let host_routes = ["10.96.0.1/32", "10.244.2.0/24"].map(|prefix| prefix.parse().unwrap());
        let steps = [
            Step::PutBackend { id: 1, backend: backend(1) },
            Step::PutBackend { id: 7, backend: backend(7) },
            Step::PutSlots { base: 5, ids: vec![1, 7] },
            Step::PutSlots { base: 9, ids: vec![3] },
            Step::PutAddress { addr: Ip4::new(10, 96, 0, 1), address: owner },
            Step::PutService { key: frontend(1), service },
            Step::PutSourceRange { range: source_range() },
            Step::PutNodePorts { index: 3000, ports: 1 << 63 },
            Step::PutRoute { prefix, route },
            Step::AddHostRoute { prefix: host_routes[0] },
            Step::AddHostRoute { prefix: host_routes[1] },
        ];
        kernel.carry_out(&steps).unwrap();
        let mut expected = Actual {
            addresses: [(Ip4::new(10, 96, 0, 1), owner)].into(),
            routes: [(prefix, route)].into(),
            services: [(frontend(1), service)].into(),
            source_ranges: [source_range()].into(),
            node_ports: [(3000, 1 << 63)].into(),
            slots: [(5, 1), (6, 7)].into(),
            backends: [(1, backend(1)), (7, backend(7))].into(),
            host_routes: host_routes.into(),
        };
        assert_eq!(kernel.read_back().unwrap(), expected);
        kernel.carry_out(&steps).unwrap();
        assert_eq!(kernel.read_back().unwrap(), expected, "twice is once");
        kernel.carry_out(&[Step::PutBackend { id: 900, backend: backend(9) }]).unwrap();
        expected.backends.insert(900, backend(9));
        assert_eq!(kernel.read_back().unwrap(), expected, "ids above the highest known are read too");

        let gone = [
            Step::PutNodePorts { index: 3000, ports: 0 },
            Step::DeleteService { key: frontend(1) },
            Step::DeleteSourceRange { range: source_range() },
            Step::DeleteAddress { addr: Ip4::new(10, 96, 0, 1) },
            Step::DeleteRoute { prefix },
            Step::RemoveHostRoute { prefix: host_routes[0] },
            Step::RemoveHostRoute { prefix: host_routes[1] },
        ];
        kernel.carry_out(&gone).unwrap();
        kernel.carry_out(&gone).unwrap();
        let backends = expected.backends;
        assert_eq!(kernel.read_back().unwrap(), Actual { backends, ..Actual::default() });
        assert_eq!(node.kernel(&pins).read_back().unwrap().backends.len(), 3, "a new agent reads every id");
    });
}

#[test]
fn a_full_map_names_what_did_not_fit_and_keeps_the_rest() {
    on_node(|node| {
        let (_programs, pins) = node.start(&capacities());
        let mut kernel = node.kernel(&pins);
        let service = serving(Run::EMPTY);
        let steps: Vec<Step> = (0..70).map(|last| Step::PutService { key: frontend(last), service }).collect();
        let (index, error) = kernel.carry_out(&steps).unwrap_err();
        assert!(error.is_full());
        let text = error.to_string();
        assert!(text.contains(&format!("10.96.0.{index}:80/TCP")) && text.contains("SERVICES is full (64 entries)"), "{text}");
        assert_eq!(kernel.read_back().unwrap().services.len(), index);
        assert!(index >= 64);
        let beyond = Step::PutBackend { id: 4096, backend: backend(1) };
        let (_, error) = kernel.carry_out(&[beyond]).unwrap_err();
        assert!(error.is_full() && error.to_string().contains("backend 4096 (10.244.2.1:8080)"), "{error}");
    });
}

#[test]
fn rows_are_read_without_an_agent() {
    on_node(|node| {
        assert!(Reader::open(&node.dir).unwrap_err().to_string().contains("is not pinned at"));
        let (programs, mut pins) = node.start(&capacities());
        let steps = [
            Step::PutBackend { id: 3, backend: backend(3) },
            Step::PutSlots { base: 0, ids: vec![3] },
            Step::PutService { key: frontend(1), service: serving(Run { base: 0, count: 1 }) },
        ];
        node.kernel(&pins).carry_out(&steps).unwrap();
        pins.settle().unwrap();
        drop(programs);
        let reader = Reader::open(&node.dir).unwrap();
        let services = reader.services().unwrap();
        assert_eq!((services.len(), services[0].key), (1, frontend(1)));
        assert_eq!(services[0].cluster.iter().map(|row| (row.id, row.backend)).collect::<Vec<_>>(), [(3, backend(3))]);
        assert_eq!(reader.backends().unwrap().len(), 1);
        assert!(reader.drops().unwrap().iter().all(|(_, count)| *count == 0));
        assert_eq!(reader.fill().unwrap().iter().map(|fill| fill.entries).collect::<Vec<_>>(), [0, 0, 1, 0, 0, 0]);
    });
}

#[test]
fn silent_flows_are_forgotten_whole() {
    on_node(|node| {
        let (_programs, pins) = node.start(&capacities());
        let flows = Maps::open(|spec| pins.path(spec)).unwrap().conntrack;
        let keys_of = |port| flow(port).map(|(key, _)| key);
        for port in [1, 2, 3] {
            for (key, mut entry) in flow(port) {
                // One half of the second flow has been used since; the third has only one half.
                if port == 2 && entry.kind == shunt_common::conntrack::kind::REPLY {
                    entry.last_seen = 1050;
                }
                if port != 3 || entry.kind == shunt_common::conntrack::kind::REPLY {
                    flows.put(&key, &entry, String::new).unwrap();
                }
            }
        }
        let mut sweeper = Sweeper::default();
        assert_eq!(sweeper.round(&flows, 1060).unwrap().removed, 0, "60 ticks of silence are allowed");
        assert_eq!(sweeper.entries(), 5);
        let round = sweeper.round(&flows, 1061).unwrap();
        assert_eq!((round.removed, round.complete), (3, true));
        assert_eq!(sweeper.entries(), 2);
        assert!(keys_of(2).iter().all(|key| flows.get(key).unwrap().is_some()));
        assert_eq!(sweeper.round(&flows, 1111).unwrap().removed, 2);
    });
}

#[test]
fn reassembly_is_turned_on_once_and_again() {
    on_node(|node| {
        defrag::ensure(&node.dir).unwrap();
        assert_eq!(node.dir.link_names().unwrap(), [defrag::PIN]);
        defrag::ensure(&node.dir).unwrap();
        // The pin of a namespace that is gone is worth nothing.
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        defrag::ensure(&node.dir).unwrap();
        assert_eq!(node.dir.collect_dead_links().unwrap(), Vec::<String>::new());
    });
}

#[test]
fn cleanup_leaves_nothing_of_ours_and_everything_else() {
    on_node(|mut node| {
        let (mut programs, mut pins) = node.start(&capacities());
        let eth9 = index(&mut node.netlink, "eth9");
        programs.attach(Hook::FromWire, "eth9", eth9).unwrap();
        defrag::ensure(&node.dir).unwrap();
        pins.settle().unwrap();
        node.via.add(&mut node.netlink, &["10.96.0.1/32".parse().unwrap()]).unwrap();
        ip("route add 203.0.113.0/24 dev eth9");
        ip("link add shuntlab type bridge");
        drop(programs);
        let (removed, errors) = cleanup::remove_all(&node.dir);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!((removed.links, removed.maps, removed.devices), (2, maps::ALL.len(), 2));
        assert_eq!(attached("eth9", TcAttachType::Ingress), [0_u32; 0]);
        // What the kernel itself puts into every BPF filesystem (kernel/bpf/preload).
        let preloaded = |name: &str| name == "maps.debug" || name == "progs.debug";
        let left = fs::read_dir(node.dir.path()).unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
        assert_eq!(left.filter(|name| !preloaded(name)).count(), 0);
        let names: Vec<String> = links::list(&mut node.netlink).unwrap().into_iter().map(|link| link.name).collect();
        assert!(names.contains(&"eth9".to_owned()) && names.contains(&"shuntlab".to_owned()), "{names:?}");
        assert!(!names.contains(&"shunt0".to_owned()) && !names.contains(&VETH.to_owned()), "{names:?}");
        let (again, errors) = cleanup::remove_all(&node.dir);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(again, cleanup::Removed::default());
    });
}
