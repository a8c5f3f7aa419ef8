//! Real programs on a real kernel with maps of their own, run packet by packet through BPF_PROG_TEST_RUN.
//!
//! What a green run doesn't prove: the redirects are decided but not carried out, and no device offloads anything. The lab shows those.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
    process,
    sync::LazyLock,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, PerCpuArray, lpm_trie},
    programs::{SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use shunt::kernel::{
    programs::{self, OBJECT},
    skb::SkbAccess,
};
use shunt_common::{
    address::{Address, Route, kind, route},
    config::{NodeConfig, xdp_forwards},
    conntrack::{CtEntry, CtKey},
    net::{Ip4, Mac, Port, V4},
    service::{Backend, Run, Service, ServiceClient, ServiceKey, node_port_bit, state},
    verdict::{Counter, DropReason},
};

/// This node.
pub const NODE_IP: &str = "192.0.2.1";
/// The other node.
pub const PEER_IP: &str = "192.0.2.2";
/// A pod of this node.
pub const POD: &str = "10.244.1.2";
/// Another one.
pub const OTHER_POD: &str = "10.244.1.3";
/// A pod of the other node.
pub const REMOTE_POD: &str = "10.244.2.2";
/// A virtual IP.
pub const VIP: &str = "10.96.0.10";
/// Every pod's gateway.
pub const GATEWAY: &str = "169.254.1.1";
/// What the node speaks to itself with, through a Service.
pub const HAIRPIN: &str = "169.254.1.2";
/// A host outside of the cluster.
pub const OUTSIDE: &str = "198.51.100.7";
/// This node's VTEP.
pub const TUNNEL_MAC: [u8; 6] = [0x72, 0x73, 192, 0, 2, 1];
/// The other node's VTEP.
pub const PEER_MAC: [u8; 6] = [0x72, 0x73, 192, 0, 2, 2];
/// The pods of this node.
pub const POD_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// The only interface that a test run has: `lo`.
const IFINDEX: u32 = 1;
/// Source ports of flows that leave with the node's address.
pub const SNAT_PORTS: std::ops::RangeInclusive<u16> = 10_000..=10_015;

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left to whoever is next at the hook.
    Pass,
    /// Sent on.
    Redirect,
    /// Sent on from XDP by a redirection to an interface, not by the driver's own way.
    RedirectAtXdp,
    /// Dropped.
    Drop,
}

/// The whole outcome of one run: verdict, bytes, and every counter that moved.
#[derive(Debug)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// Its bytes then.
    pub packet: Vec<u8>,
    /// Counters that moved, and by how much.
    pub counted: BTreeMap<&'static str, u64>,
}

/// Programs with maps of their own.
pub struct Dataplane {
    ebpf: Ebpf,
    next_backend: u32,
    /// The interface that packets enter by.
    pub ingress: u32,
    /// The interface by which packets on their way out came in; 0 if the host made them.
    pub entered_by: u32,
}

/// Has this test go on on a CPU, by its place among those that it may use.
pub fn run_on(place: usize) {
    let allowed = *ALLOWED;
    let all: Vec<usize> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).is_ok_and(|set| set)).collect();
    let mut one = CpuSet::new();
    one.set(all[place % all.len()]).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a CPU that may be used");
}

/// The CPUs that this process may use, before a test chose one of them.
static ALLOWED: LazyLock<CpuSet> = LazyLock::new(|| sched_getaffinity(Pid::from_raw(process::id() as i32)).expect("CPUs"));

fn ip4(addr: &str) -> Ip4 {
    addr.parse::<Ipv4Addr>().expect("an address in a test").into()
}

impl Default for Dataplane {
    fn default() -> Self {
        Self::new()
    }
}

impl Dataplane {
    /// A node with two pods, a peer with a pod range, and an empty Service table.
    pub fn new() -> Self {
        static SKB: LazyLock<SkbAccess> =
            LazyLock::new(|| SkbAccess::of_this_kernel().expect("a kernel that describes its types"));
        Self::with(&SKB)
    }

    /// The same with programs that look into packets as `skb` says.
    pub fn with(skb: &SkbAccess) -> Self {
        Self::on(IFINDEX, skb)
    }

    /// The same with another underlay than `lo`.
    pub fn on(underlay_ifindex: u32, skb: &SkbAccess) -> Self {
        Self::of(&Self::node(underlay_ifindex), skb, 256)
    }

    /// This node as its programs know it.
    pub fn node(underlay_ifindex: u32) -> NodeConfig {
        NodeConfig {
            node_ip: ip4(NODE_IP),
            underlay_ifindex,
            tunnel_ifindex: IFINDEX,
            vni: 1,
            mtu: 1450,
            vxlan_port: Port::from_host(8472),
            snat_port_min: *SNAT_PORTS.start(),
            snat_port_max: *SNAT_PORTS.end(),
            tunnel_mac: Mac { bytes: TUNNEL_MAC },
            underlay_mask: ip4("255.255.255.0"),
            xdp_forwards: xdp_forwards::TX,
        }
    }

    /// The same for any node, with room for some entries of flows.
    pub fn of(config: &NodeConfig, skb: &SkbAccess, flows: u32) -> Self {
        let ebpf = programs::load(OBJECT, config, skb, |loader| {
            loader.map_max_entries("CONNTRACK", flows);
        });
        let ebpf = ebpf.unwrap_or_else(|error| panic!("{error}: {error:?}"));
        // A shortcut is one CPU's.
        run_on(0);
        let mut dataplane = Self { ebpf, next_backend: 1, ingress: IFINDEX, entered_by: 0 };
        dataplane.address(POD, Address { mac: Mac { bytes: POD_MAC }, ..address(kind::POD) });
        dataplane.address(OTHER_POD, Address { mac: Mac { bytes: POD_MAC }, ifindex: 77, ..address(kind::POD) });
        dataplane.address(NODE_IP, address(kind::HOST));
        let peer = Address { underlay: ip4(PEER_IP), mac: Mac { bytes: PEER_MAC }, ..address(kind::NODE) };
        dataplane.address(PEER_IP, peer);
        dataplane.route("10.244.1.0", 24, Route { kind: route::LOCAL, underlay: ip4("0.0.0.0"), mac: Mac::ZERO, flags: 0 });
        let tunnel = Route { kind: route::TUNNEL, underlay: ip4(PEER_IP), mac: Mac { bytes: PEER_MAC }, flags: 0 };
        dataplane.route("10.244.2.0", 24, tunnel);
        dataplane
    }

    /// Puts an address in `ADDRESSES`.
    pub fn address(&mut self, addr: &str, address: Address) {
        let mut map: HashMap<_, Ip4, Address> = self.map("ADDRESSES");
        map.insert(ip4(addr), address, 0).expect("room in ADDRESSES");
    }

    /// Puts a prefix in `ROUTES`.
    pub fn route(&mut self, addr: &str, len: u32, route: Route) {
        let map = self.ebpf.map_mut("ROUTES").expect("ROUTES");
        let mut map: lpm_trie::LpmTrie<_, Ip4, Route> = map.try_into().expect("ROUTES");
        map.insert(&lpm_trie::Key::new(len, ip4(addr)), route, 0).expect("room in ROUTES");
    }

    fn map<'a, M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>>(&'a mut self, name: &str) -> M {
        self.ebpf.map_mut(name).expect("a map of ours").try_into().expect("its type")
    }

    /// Puts a frontend in force, in the order the agent would. Returns the backend ids.
    pub fn service(&mut self, vip: &str, port: u16, proto: u8, backends: &[(&str, u16)]) -> Vec<u32> {
        let run = self.run_of(backends);
        self.frontend(vip, port, proto, serving(run, 0));
        run.slots().collect()
    }

    /// New backends, and a run of slots that names them in this order; their ids are the slots' numbers.
    pub fn run_of(&mut self, backends: &[(&str, u16)]) -> Run {
        let base = self.next_backend;
        self.next_backend += backends.len() as u32;
        for (id, (addr, port)) in (base..).zip(backends) {
            self.backend(id, addr, *port, state::ACTIVE, 1);
            let mut slots: Array<_, u32> = self.map("SLOTS");
            slots.set(id, id, 0).expect("a slot");
        }
        Run { base, count: backends.len() as u32 }
    }

    /// A frontend at a virtual IP.
    pub fn frontend(&mut self, vip: &str, port: u16, proto: u8, service: Service) {
        self.address(vip, address(kind::SERVICE));
        self.serve(vip, port, proto, service);
    }

    /// A frontend at this node's address.
    pub fn node_port(&mut self, port: u16, proto: u8, service: Service) {
        self.node_port_at(NODE_IP, port, proto, service);
    }

    /// A frontend at one of this node's addresses.
    pub fn node_port_at(&mut self, addr: &str, port: u16, proto: u8, service: Service) {
        self.serve(addr, port, proto, service);
        self.set_node_port(port, proto, true);
    }

    /// Takes it away again.
    pub fn no_node_port(&mut self, port: u16, proto: u8) {
        self.set_node_port(port, proto, false);
        let key = ServiceKey { addr: ip4(NODE_IP), port: Port::from_host(port), proto, reserved: 0 };
        let mut services: HashMap<_, ServiceKey<V4>, Service> = self.map("SERVICES");
        services.remove(&key).expect("the frontend");
    }

    fn set_node_port(&mut self, port: u16, proto: u8, is_used: bool) {
        let (index, bit) = node_port_bit(proto, Port::from_host(port)).expect("a protocol with ports");
        let mut words: Array<_, u64> = self.map("NODE_PORTS");
        let word = words.get(&index, 0).expect("a word");
        words.set(index, if is_used { word | bit } else { word & !bit }, 0).expect("a word");
    }

    /// Lets clients of a prefix into a Service.
    pub fn source_range(&mut self, service: u32, addr: &str, len: u32) {
        let map = self.ebpf.map_mut("SOURCE_RANGES").expect("SOURCE_RANGES");
        let mut map: lpm_trie::LpmTrie<_, ServiceClient<V4>, u32> = map.try_into().expect("SOURCE_RANGES");
        let clients = ServiceClient { service, addr: ip4(addr) };
        map.insert(&lpm_trie::Key::new(32 + len, clients), 1, 0).expect("room in SOURCE_RANGES");
    }

    fn serve(&mut self, addr: &str, port: u16, proto: u8, service: Service) {
        let key = ServiceKey { addr: ip4(addr), port: Port::from_host(port), proto, reserved: 0 };
        let mut services: HashMap<_, ServiceKey<V4>, Service> = self.map("SERVICES");
        services.insert(key, service, 0).expect("room in SERVICES");
    }

    /// Writes a backend.
    pub fn backend(&mut self, id: u32, addr: &str, port: u16, state: u8, generation: u32) {
        let mut map: Array<_, Backend<V4>> = self.map("BACKENDS");
        map.set(id, Backend { addr: ip4(addr), port: Port::from_host(port), state, flags: 0, generation }, 0)
            .expect("a backend");
    }

    /// Says that addresses or routes have changed, as the agent does.
    pub fn begin_epoch(&mut self) {
        let mut epoch: Array<_, u32> = self.map("EPOCH");
        let now = epoch.get(&0, 0).expect("an epoch");
        epoch.set(0, now + 1, 0).expect("an epoch");
    }

    /// All tracked flows.
    pub fn flows(&mut self) -> Vec<(CtKey<V4>, CtEntry<V4>)> {
        let map: HashMap<_, CtKey<V4>, CtEntry<V4>> = self.map("CONNTRACK");
        map.iter().collect::<Result<_, _>>().expect("a readable table")
    }

    /// Tracks flows behind the programs' backs.
    pub fn track(&mut self, entries: impl IntoIterator<Item = (CtKey<V4>, CtEntry<V4>)>) {
        let mut map: HashMap<_, CtKey<V4>, CtEntry<V4>> = self.map("CONNTRACK");
        for (key, entry) in entries {
            map.insert(key, entry, 0).expect("room in CONNTRACK");
        }
    }

    /// How often something was counted since the programs were loaded.
    pub fn counted(&self, counter: Counter) -> u64 {
        self.counters()[counter.name()]
    }

    /// Takes every tracked flow away behind the programs' backs.
    pub fn lose_flows(&mut self) {
        let keys: Vec<_> = self.flows().into_iter().map(|(key, _)| key).collect();
        let mut map: HashMap<_, CtKey<V4>, CtEntry<V4>> = self.map("CONNTRACK");
        for key in keys {
            map.remove(&key).expect("a flow");
        }
    }

    /// Makes programs forget when the kernel was last given a packet for a next hop.
    pub fn forget_neighbours(&mut self) {
        let mut neighbours: Array<_, u64> = self.map("NEIGHBOURS");
        (0..neighbours.len()).for_each(|slot| neighbours.set(slot, 0, 0).expect("a slot"));
    }

    fn counters(&self) -> BTreeMap<&'static str, u64> {
        let sum = |name: &str, index: u32| -> u64 {
            let map = self.ebpf.map(name).expect("a map of ours");
            let map: PerCpuArray<&MapData, u64> = map.try_into().expect("its type");
            map.get(&index, 0).expect("a counter").iter().sum()
        };
        let drops = DropReason::ALL.iter().map(|&reason| (reason.name(), sum("DROPS", reason as u32)));
        let counters = Counter::ALL.iter().map(|&counter| (counter.name(), sum("COUNTERS", counter as u32)));
        drops.chain(counters).collect()
    }

    /// A loaded program, by name.
    pub fn program(&self, name: &str) -> BorrowedFd<'_> {
        self.ebpf.program(name).expect(name).fd().expect(name).as_fd()
    }

    /// Runs one packet through a TC program.
    pub fn run(&mut self, program: &str, packet: &[u8]) -> Outcome {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 256];
        let tc: &SchedClassifier = self.ebpf.program(program).expect(program).try_into().expect(program);
        // struct __sk_buff: ingress_ifindex and ifindex are the tenth and eleventh words.
        let mut context = [0; 192];
        context[36..40].copy_from_slice(&self.entered_by.to_ne_bytes());
        context[40..44].copy_from_slice(&self.ingress.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ctx_in: Some(&context), ..TestRunOptions::new() };
        let result = tc.test_run(options).expect("the packet is long enough to be run");
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value as i32 {
            -1 => Verdict::Pass,
            2 => Verdict::Drop,
            7 => Verdict::Redirect,
            other => panic!("{program} returned {other}"),
        };
        self.outcome(verdict, out, &before)
    }

    /// Runs one packet through the XDP program.
    pub fn run_xdp(&mut self, packet: &[u8]) -> Outcome {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 256];
        let xdp: &Xdp = self.ebpf.program("from_wire_xdp").expect("xdp").try_into().expect("xdp");
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = xdp.test_run(options).expect("the packet is long enough to be run");
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
            3 => Verdict::Redirect,
            4 => Verdict::RedirectAtXdp,
            other => panic!("from_wire_xdp returned {other}"),
        };
        self.outcome(verdict, out, &before)
    }

    fn outcome(&self, verdict: Verdict, packet: Vec<u8>, before: &BTreeMap<&'static str, u64>) -> Outcome {
        let after = self.counters();
        let counted = after.into_iter().map(|(name, n)| (name, n - before[name])).filter(|(_, n)| *n > 0).collect();
        Outcome { verdict, packet, counted }
    }
}

/// A frontend that gives all clients the same backends.
pub fn serving(run: Run, flags: u32) -> Service {
    Service { cluster: run, outside: run, flags, affinity_secs: 0, id: 1 }
}

/// An address of a kind, at `lo`.
pub fn address(kind: u32) -> Address {
    Address { kind, ifindex: IFINDEX, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, reserved: 0 }
}

impl Outcome {
    /// Asserts all of it.
    #[track_caller]
    pub fn is(&self, verdict: Verdict, packet: &[u8], counted: &[&str]) {
        let moved: Vec<_> = self.counted.iter().flat_map(|(name, n)| std::iter::repeat_n(*name, *n as usize)).collect();
        let mut expected = counted.to_vec();
        expected.sort_unstable();
        let mut sorted = moved.clone();
        sorted.sort_unstable();
        assert_eq!((&self.verdict, sorted), (&verdict, expected));
        assert_eq!(hex(&self.packet), hex(packet));
    }

    /// Asserts that the packet left in the tunnel for the peer; returns the inner packet behind `ethernet`.
    #[track_caller]
    pub fn tunnelled(&self, tos: u8, counted: &[&str], ethernet: &[u8; 14]) -> Outcome {
        let outer = &self.packet[14..34];
        assert_eq!(shunt_common::checksum::of(outer), 0, "the outer header's checksum");
        assert_eq!(outer[..2], [0x45, tos]);
        assert_eq!(usize::from(u16::from_be_bytes([outer[2], outer[3]])), self.packet.len() - 14);
        assert_eq!(outer[6..10], [0, 0, 64, 17], "no fragment, TTL 64, UDP");
        assert_eq!(outer[12..20], [192, 0, 2, 1, 192, 0, 2, 2]);
        let udp = &self.packet[34..42];
        assert!(u16::from_be_bytes([udp[0], udp[1]]) >= 49152);
        assert_eq!(udp[2..4], 8472u16.to_be_bytes());
        assert_eq!(usize::from(u16::from_be_bytes([udp[4], udp[5]])), self.packet.len() - 34);
        assert_eq!(udp[6..8], [0, 0]);
        assert_eq!(self.packet[42..50], [8, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(self.packet[50..64], [&PEER_MAC[..], &TUNNEL_MAC, &[8, 0]].concat()[..]);
        let inner = [&ethernet[..], &self.packet[64..]].concat();
        assert_eq!(self.verdict, Verdict::Redirect);
        let moved: Vec<_> = self.counted.keys().copied().collect();
        let mut expected = counted.to_vec();
        expected.sort_unstable();
        assert_eq!(moved, expected);
        Outcome { verdict: Verdict::Redirect, packet: inner, counted: self.counted.clone() }
    }

    /// The source port of the inner or plain packet, which must be one of the node's.
    #[track_caller]
    pub fn snat_port(&self) -> u16 {
        let icmp = self.packet[23] == 1;
        let at = if icmp { 38 } else { 34 };
        let port = u16::from_be_bytes([self.packet[at], self.packet[at + 1]]);
        assert!(SNAT_PORTS.contains(&port), "{port} is none of the node's");
        port
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(16).map(|row| row.iter().map(|b| format!("{b:02x} ")).collect::<String>() + "\n").collect()
}
