//! Every map: key, value, sole writer, readers, and what happens when it is full. Names, versions and default capacities are in
//! `shunt_common::maps`; the agent may set other capacities when it loads.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::generated::bpf_get_prandom_u32,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use shunt_common::{
    address::{Address, Route},
    affinity::Affinity,
    config::{NodeConfig, SkbLayout, SockLayout},
    connect::{Client, Frontend},
    conntrack::{CtEntry, CtKey},
    fragment::{Fragment, FragmentKey},
    maps, neighbour,
    net::{Family, Ip4, Mac, Port, V4},
    service::{Backend, Service, ServiceClient, ServiceKey, node_port_bit},
    shortcut::{self, Shortcut},
};

/// Exact address -> owner. Writer: the agent. Readers: all programs. Full: the agent reports it, existing entries stay.
#[map]
static ADDRESSES: HashMap<Ip4, Address> = HashMap::with_max_entries(maps::ADDRESSES.capacity, 0);

/// Prefix -> where it leads. Writer: the agent. Readers: `stages::route`. Full: as above.
#[map]
static ROUTES: LpmTrie<Ip4, Route> = LpmTrie::with_max_entries(maps::ROUTES.capacity, 0);

/// Frontend -> run of slots. Writer: the agent. Readers: `stages::service`. Full: as above.
#[map]
static SERVICES: HashMap<ServiceKey<V4>, Service> = HashMap::with_max_entries(maps::SERVICES.capacity, 0);

/// Slot -> backend id. Writer: the agent. Readers: `stages::service`. Full: as above.
#[map]
static SLOTS: Array<u32> = Array::with_max_entries(maps::SLOTS.capacity, 0);

/// Backend id -> backend. Writer: the agent. Readers: `stages::service`. Full: as above.
#[map]
static BACKENDS: Array<Backend<V4>> = Array::with_max_entries(maps::BACKENDS.capacity, 0);

/// Word of ports -> bits of those that some frontend at a node's address has. Writer: the agent. Readers: `stages::service`.
#[map]
static NODE_PORTS: Array<u64> = Array::with_max_entries(maps::NODE_PORTS.capacity, 0);

/// Service and prefix -> 1 for clients that are let in. Writer: the agent. Readers: `stages::service`. Full: the agent reports it, and
/// clients of prefixes that found no room are kept out.
#[map]
static SOURCE_RANGES: LpmTrie<ServiceClient<V4>, u32> = LpmTrie::with_max_entries(maps::SOURCE_RANGES.capacity, 0);

/// Service and client -> the backend that the client had last, for Services with session affinity. Writer and reader: `stages::service`.
/// Full: the client that was away the longest is forgotten.
#[map]
static AFFINITY: LruHashMap<ServiceClient<V4>, Affinity<V4>> = LruHashMap::with_max_entries(maps::AFFINITY.capacity, 0);

/// Tuple -> flow entry. Writers: `stages::conntrack`; the agent's sweeper removes what has expired. Full: new translated flows are
/// refused and counted, direct ones go on untracked, live ones are left alone.
#[map]
static CONNTRACK: HashMap<CtKey<V4>, CtEntry<V4>> = HashMap::with_max_entries(maps::CONNTRACK.capacity, 0);

/// Index 0: counts what makes a flow's remembered next hop stale. Writer: the agent, after every change of a pod's, node's or host's
/// address and of a route. Reader: `stages::route`.
#[map]
static EPOCH: Array<u32> = Array::with_max_entries(maps::EPOCH.capacity, 0);

/// Hash of a tuple -> a random stamp, another after each change of `CONNTRACK` under a tuple of that hash. Writer: `stages::conntrack`. Reader: `stages::shortcut`.
#[map]
static CHANGES: Array<u32> = Array::with_max_entries(maps::CHANGES.capacity, 0);

/// Hash of a tuple -> what was decided for its flow's packets. Writer and reader: `stages::shortcut`. Not pinned: programs that are loaded
/// anew begin without. Full: a slot belongs to the flow that came last.
#[map]
static SHORTCUTS: PerCpuArray<Shortcut<V4>> = PerCpuArray::with_max_entries(shortcut::SLOTS, 0);

/// Next hop -> when the kernel was last given a packet for it. Writer and reader: `stages::neighbour`. Not pinned, as above. Full: a slot belongs
/// to the next hop that was used last.
#[map]
pub(crate) static NEIGHBOURS: Array<u64> = Array::with_max_entries(neighbour::SLOTS, 0);

/// Index 0: whether the node is being taken over from other software, so that a flow that is not known may be one of the host's stack.
/// Writer: the agent. Reader: `stages::stack`, for packets of no known flow.
#[map]
static TAKEOVER: Array<u32> = Array::with_max_entries(maps::TAKEOVER.capacity, 0);

/// Cookie of a network namespace -> whose it is. Writer: the agent. Reader: `stages::connect`. Full: the agent reports it, and further
/// pods' connections are translated packet by packet.
#[map]
static CLIENTS: HashMap<u64, Client<V4>> = HashMap::with_max_entries(maps::CLIENTS.capacity, 0);

/// Cookie of a socket -> the frontend that it was connected to. Writer and reader: `stages::connect`, which removes an entry when its socket
/// is closed; the agent removes all while nothing does. Memory for live sockets alone. Full: further connections are translated packet by packet,
/// or without being remembered where that cannot be.
#[map]
static CONNECTED: HashMap<u64, Frontend<V4>> = HashMap::with_max_entries(maps::CONNECTED.capacity, BPF_F_NO_PREALLOC);

/// Datagram -> what its fragments share. Writer and reader: `stages::fragment`. Full: the least recently used datagram is
/// forgotten, its remaining fragments go to reassembly.
#[map]
static FRAGMENTS: LruHashMap<FragmentKey<V4>, Fragment> = LruHashMap::with_max_entries(maps::FRAGMENTS.capacity, 0);

/// `DropReason` -> packets. Writer: `count`. Reader: the agent.
#[map]
pub(crate) static DROPS: PerCpuArray<u64> = PerCpuArray::with_max_entries(maps::DROPS.capacity, 0);

/// `Counter` -> packets. Writer: `count`. Reader: the agent.
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(maps::COUNTERS.capacity, 0);

/// Index 0: how many listen to `EVENTS`. Writer: the agent. Reader: `count`.
#[map]
pub(crate) static LISTENERS: Array<u32> = Array::with_max_entries(maps::LISTENERS.capacity, 0);

/// Dropped packets, for whoever listens. Writer: `count`. Reader: the agent. Full: the event is lost, the counter is not.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(maps::EVENTS.capacity, 0);

/// This node. The agent sets it when it loads the programs; to the verifier it is constant.
#[unsafe(no_mangle)]
static NODE: NodeConfig = NodeConfig {
    node_ip: Ip4::UNSPECIFIED,
    underlay_ifindex: 0,
    tunnel_ifindex: 0,
    vni: 0,
    mtu: 0,
    vxlan_port: Port::NONE,
    snat_port_min: 0,
    snat_port_max: 0,
    tunnel_mac: Mac::ZERO,
    underlay_mask: Ip4::UNSPECIFIED,
    xdp_forwards: 0,
};

/// What the loader knows of the kernel's `struct sk_buff`; constant as above.
#[unsafe(no_mangle)]
static SKB: SkbLayout = SkbLayout::UNKNOWN;

/// What the loader knows of the kernel's `struct sock`; constant as above.
#[unsafe(no_mangle)]
static SOCK: SockLayout = SockLayout::UNKNOWN;

/// Where a socket's `struct sock` has what no context field shows.
#[inline(always)]
pub(crate) fn sock_layout() -> SockLayout {
    // SAFETY: a live static; volatile, because the loader changes what the compiler sees as constant.
    unsafe { ptr::read_volatile(&raw const SOCK) }
}

/// Where a packet's `struct sk_buff` has what no context field shows.
#[inline(always)]
pub(crate) fn skb_layout() -> SkbLayout {
    // SAFETY: a live static; volatile, because the loader changes what the compiler sees as constant.
    unsafe { ptr::read_volatile(&raw const SKB) }
}

/// Reads one field of this node's constants.
macro_rules! node {
    ($field:ident) => {{
        // SAFETY: the field of a live static; volatile, because the loader changes what the compiler sees as constant.
        unsafe { core::ptr::read_volatile(&raw const (*$crate::maps::node_ptr()).$field) }
    }};
}
pub(crate) use node;

/// Where the constants are; read through [`node!`] only.
#[inline(always)]
pub(crate) fn node_ptr() -> *const NodeConfig {
    &raw const NODE
}

/// The maps of one address family.
pub(crate) trait FamilyMaps: Family {
    /// `ADDRESSES`.
    fn addresses() -> &'static HashMap<Self::Addr, Address>;
    /// `SERVICES`.
    fn services() -> &'static HashMap<ServiceKey<Self>, Service>;
    /// `BACKENDS`.
    fn backends() -> &'static Array<Backend<Self>>;
    /// `AFFINITY`.
    fn affinity() -> &'static LruHashMap<ServiceClient<Self>, Affinity<Self>>;
    /// Whether `SOURCE_RANGES` lets a client in.
    fn lets_in(client: ServiceClient<Self>) -> bool;
    /// `CONNTRACK`.
    fn conntrack() -> &'static HashMap<CtKey<Self>, CtEntry<Self>>;
    /// `CLIENTS`.
    fn clients() -> &'static HashMap<u64, Client<Self>>;
    /// `CONNECTED`.
    fn connected() -> &'static HashMap<u64, Frontend<Self>>;
    /// `SHORTCUTS`.
    fn shortcuts() -> &'static PerCpuArray<Shortcut<Self>>;
    /// `FRAGMENTS`.
    fn fragments() -> &'static LruHashMap<FragmentKey<Self>, Fragment>;
    /// Longest match in `ROUTES`.
    fn route(addr: Self::Addr) -> Option<&'static Route>;
    /// This node's address.
    fn node_ip() -> Self::Addr;
    /// The gateway a pod sees.
    fn gateway() -> Self::Addr;
    /// The source of what the node says to itself through a Service.
    fn hairpin() -> Self::Addr;
}

impl FamilyMaps for V4 {
    #[inline(always)]
    fn addresses() -> &'static HashMap<Ip4, Address> {
        &ADDRESSES
    }

    #[inline(always)]
    fn services() -> &'static HashMap<ServiceKey<V4>, Service> {
        &SERVICES
    }

    #[inline(always)]
    fn backends() -> &'static Array<Backend<V4>> {
        &BACKENDS
    }

    #[inline(always)]
    fn affinity() -> &'static LruHashMap<ServiceClient<V4>, Affinity<V4>> {
        &AFFINITY
    }

    #[inline(always)]
    fn lets_in(client: ServiceClient<V4>) -> bool {
        SOURCE_RANGES.get(Key::new(64, client)).is_some()
    }

    #[inline(always)]
    fn conntrack() -> &'static HashMap<CtKey<V4>, CtEntry<V4>> {
        &CONNTRACK
    }

    #[inline(always)]
    fn clients() -> &'static HashMap<u64, Client<V4>> {
        &CLIENTS
    }

    #[inline(always)]
    fn connected() -> &'static HashMap<u64, Frontend<V4>> {
        &CONNECTED
    }

    #[inline(always)]
    fn shortcuts() -> &'static PerCpuArray<Shortcut<V4>> {
        &SHORTCUTS
    }

    #[inline(always)]
    fn fragments() -> &'static LruHashMap<FragmentKey<V4>, Fragment> {
        &FRAGMENTS
    }

    #[inline(always)]
    fn route(addr: Ip4) -> Option<&'static Route> {
        ROUTES.get(Key::new(32, addr))
    }

    #[inline(always)]
    fn node_ip() -> Ip4 {
        node!(node_ip)
    }

    #[inline(always)]
    fn gateway() -> Ip4 {
        shunt_common::config::link_local::GATEWAY
    }

    #[inline(always)]
    fn hairpin() -> Ip4 {
        shunt_common::config::link_local::HAIRPIN
    }
}

/// The present epoch of addresses and routes.
#[inline(always)]
pub(crate) fn epoch() -> u32 {
    EPOCH.get(0).copied().unwrap_or(0)
}

/// The stamp of the latest change in `CONNTRACK` under a tuple of this hash.
#[inline(always)]
pub(crate) fn last_change(hash: u32) -> u32 {
    CHANGES.get(shortcut::stamp(hash)).copied().unwrap_or(0)
}

/// Notes that `CONNTRACK` has changed under a tuple of this hash.
#[inline(always)]
pub(crate) fn note_change(hash: u32) {
    if let Some(stamp) = CHANGES.get_ptr_mut(shortcut::stamp(hash)) {
        // SAFETY: a helper without arguments; and a live value of the map, stored whole whatever other CPUs store at the same time.
        unsafe { ptr::write_volatile(stamp, bpf_get_prandom_u32()) };
    }
}

/// What becomes of packets of no known flow: one of [`shunt_common::conntrack::takeover`].
#[inline(always)]
pub(crate) fn takeover() -> u32 {
    TAKEOVER.get(0).copied().unwrap_or(0)
}

/// Whether some frontend at an address of this node has a port.
#[inline(always)]
pub(crate) fn is_node_port(proto: u8, port: Port) -> bool {
    node_port_bit(proto, port).is_some_and(|(index, bit)| NODE_PORTS.get(index).is_some_and(|word| word & bit != 0))
}

/// The backend id in a slot.
#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<u32> {
    SLOTS.get(index).copied()
}
