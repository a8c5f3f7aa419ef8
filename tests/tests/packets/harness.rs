//! Real programs on a real kernel with maps of their own, run packet by packet through BPF_PROG_TEST_RUN.
//!
//! What a green run doesn't prove: the redirects are decided but not carried out, and no device offloads anything. The lab shows those.

use std::{collections::BTreeMap, net::Ipv4Addr};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, lpm_trie},
    programs::{SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use shunt_common::{
    address::{Address, Route, kind, route},
    config::NodeConfig,
    conntrack::{CtEntry, CtKey},
    net::{Ip4, Mac, Port, V4},
    service::{Backend, Service, ServiceKey, state},
    verdict::{Counter, DropReason},
};

pub(crate) const NODE_IP: &str = "192.0.2.1";
pub(crate) const PEER_IP: &str = "192.0.2.2";
pub(crate) const POD: &str = "10.244.1.2";
pub(crate) const OTHER_POD: &str = "10.244.1.3";
pub(crate) const REMOTE_POD: &str = "10.244.2.2";
pub(crate) const VIP: &str = "10.96.0.10";
pub(crate) const GATEWAY: &str = "169.254.1.1";
pub(crate) const HAIRPIN: &str = "169.254.1.2";
pub(crate) const OUTSIDE: &str = "198.51.100.7";
pub(crate) const TUNNEL_MAC: [u8; 6] = [0x72, 0x73, 192, 0, 2, 1];
pub(crate) const PEER_MAC: [u8; 6] = [0x72, 0x73, 192, 0, 2, 2];
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// The only interface that a test run has: `lo`.
const IFINDEX: u32 = 1;
pub(crate) const SNAT_PORTS: std::ops::RangeInclusive<u16> = 10_000..=10_015;

/// What became of a packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Pass,
    Redirect,
    Drop,
}

/// The whole outcome of one run: verdict, bytes, and every counter that moved.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) packet: Vec<u8>,
    pub(crate) counted: BTreeMap<&'static str, u64>,
}

/// Programs with maps of their own.
pub(crate) struct Dataplane {
    ebpf: Ebpf,
    next_backend: u32,
}

fn ip4(addr: &str) -> Ip4 {
    addr.parse::<Ipv4Addr>().expect("an address in a test").into()
}

impl Dataplane {
    /// A node with two pods, a peer with a pod range, and an empty Service table.
    pub(crate) fn new() -> Self {
        let object = shunt::kernel::programs::OBJECT;
        let config = NodeConfig {
            node_ip: ip4(NODE_IP),
            underlay_ifindex: IFINDEX,
            tunnel_ifindex: IFINDEX,
            vni: 1,
            mtu: 1450,
            vxlan_port: Port::from_host(8472),
            snat_port_min: *SNAT_PORTS.start(),
            snat_port_max: *SNAT_PORTS.end(),
            tunnel_mac: Mac { bytes: TUNNEL_MAC },
            underlay_mask: ip4("255.255.255.0"),
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("NODE", &config, true)
            .map_max_entries("CONNTRACK", 256)
            .load(object)
            .expect("the object loads");
        for name in ["from_pod", "to_pod", "from_wire", "from_host"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).expect(name).try_into().expect(name);
            program.load().unwrap_or_else(|error| panic!("the verifier rejects {name}: {error:?}"));
        }
        let program: &mut Xdp = ebpf.program_mut("from_wire_xdp").expect("xdp").try_into().expect("xdp");
        program.load().unwrap_or_else(|error| panic!("the verifier rejects from_wire_xdp: {error:?}"));
        let mut dataplane = Self { ebpf, next_backend: 1 };
        dataplane.address(POD, Address { mac: Mac { bytes: POD_MAC }, ..address(kind::POD) });
        dataplane.address(OTHER_POD, Address { mac: Mac { bytes: POD_MAC }, ifindex: 77, ..address(kind::POD) });
        dataplane.address(NODE_IP, address(kind::HOST));
        let peer = Address { underlay: ip4(PEER_IP), mac: Mac { bytes: PEER_MAC }, ..address(kind::NODE) };
        dataplane.address(PEER_IP, peer);
        dataplane.route("10.244.1.0", 24, Route { kind: route::LOCAL, underlay: ip4("0.0.0.0"), mac: Mac::ZERO, reserved: 0 });
        let tunnel = Route { kind: route::TUNNEL, underlay: ip4(PEER_IP), mac: Mac { bytes: PEER_MAC }, reserved: 0 };
        dataplane.route("10.244.2.0", 24, tunnel);
        dataplane
    }

    pub(crate) fn address(&mut self, addr: &str, address: Address) {
        let mut map: HashMap<_, Ip4, Address> = self.map("ADDRESSES");
        map.insert(ip4(addr), address, 0).expect("room in ADDRESSES");
    }

    pub(crate) fn route(&mut self, addr: &str, len: u32, route: Route) {
        let map = self.ebpf.map_mut("ROUTES").expect("ROUTES");
        let mut map: lpm_trie::LpmTrie<_, Ip4, Route> = map.try_into().expect("ROUTES");
        map.insert(&lpm_trie::Key::new(len, ip4(addr)), route, 0).expect("room in ROUTES");
    }

    fn map<'a, M: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>>(&'a mut self, name: &str) -> M {
        self.ebpf.map_mut(name).expect("a map of ours").try_into().expect("its type")
    }

    /// Puts a frontend in force, in the order the agent would. Returns the backend ids.
    pub(crate) fn service(&mut self, vip: &str, port: u16, proto: u8, backends: &[(&str, u16)]) -> Vec<u32> {
        let first = self.next_backend;
        self.next_backend += backends.len() as u32;
        for (id, (addr, port)) in (first..).zip(backends) {
            self.backend(id, addr, *port, state::ACTIVE, 1);
            let mut slots: Array<_, u32> = self.map("SLOTS");
            slots.set(id, id, 0).expect("a slot");
        }
        let service = Service { base: first, count: backends.len() as u32, flags: 0 };
        self.frontend(vip, port, proto, service);
        (first..self.next_backend).collect()
    }

    pub(crate) fn frontend(&mut self, vip: &str, port: u16, proto: u8, service: Service) {
        self.address(vip, address(kind::SERVICE));
        let key = ServiceKey { addr: ip4(vip), port: Port::from_host(port), proto, reserved: 0 };
        let mut services: HashMap<_, ServiceKey<V4>, Service> = self.map("SERVICES");
        services.insert(key, service, 0).expect("room in SERVICES");
    }

    pub(crate) fn backend(&mut self, id: u32, addr: &str, port: u16, state: u16, generation: u32) {
        let mut map: Array<_, Backend<V4>> = self.map("BACKENDS");
        map.set(id, Backend { addr: ip4(addr), port: Port::from_host(port), state, generation }, 0).expect("a backend");
    }

    /// Says that addresses or routes have changed, as the agent does.
    pub(crate) fn begin_epoch(&mut self) {
        let mut epoch: Array<_, u32> = self.map("EPOCH");
        let now = epoch.get(&0, 0).expect("an epoch");
        epoch.set(0, now + 1, 0).expect("an epoch");
    }

    /// All tracked flows.
    pub(crate) fn flows(&mut self) -> Vec<(CtKey<V4>, CtEntry<V4>)> {
        let map: HashMap<_, CtKey<V4>, CtEntry<V4>> = self.map("CONNTRACK");
        map.iter().collect::<Result<_, _>>().expect("a readable table")
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

    /// Runs one packet through a TC program.
    pub(crate) fn run(&mut self, program: &str, packet: &[u8]) -> Outcome {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 256];
        let tc: &SchedClassifier = self.ebpf.program(program).expect(program).try_into().expect(program);
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
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
    pub(crate) fn run_xdp(&mut self, packet: &[u8]) -> Outcome {
        let before = self.counters();
        let mut out = vec![0; packet.len() + 256];
        let xdp: &Xdp = self.ebpf.program("from_wire_xdp").expect("xdp").try_into().expect("xdp");
        let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = xdp.test_run(options).expect("the packet is long enough to be run");
        out.truncate(result.data_size_out as usize);
        let verdict = match result.return_value {
            1 => Verdict::Drop,
            2 => Verdict::Pass,
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

pub(crate) fn address(kind: u32) -> Address {
    Address { kind, ifindex: IFINDEX, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, reserved: 0 }
}

impl Outcome {
    /// Asserts all of it.
    #[track_caller]
    pub(crate) fn is(&self, verdict: Verdict, packet: &[u8], counted: &[&str]) {
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
    pub(crate) fn tunnelled(&self, tos: u8, counted: &[&str], ethernet: &[u8; 14]) -> Outcome {
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
    pub(crate) fn snat_port(&self) -> u16 {
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
