//! Every map: key, value, sole writer, readers, and what happens when it is full. Names, versions and default capacities are in
//! `shunt_common::maps`; the agent may set other capacities when it loads.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use shunt_common::{
    address::{Address, Route},
    config::NodeConfig,
    conntrack::{CtEntry, CtKey},
    fragment::{Fragment, FragmentKey},
    maps,
    net::{Family, Ip4, Mac, Port, V4},
    service::{Backend, Service, ServiceKey},
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

/// Tuple -> flow entry. Writers: `stages::conntrack`; the agent's sweeper removes what has expired. Full: new translated flows are
/// refused and counted, direct ones go on untracked, live ones are left alone.
#[map]
static CONNTRACK: HashMap<CtKey<V4>, CtEntry<V4>> = HashMap::with_max_entries(maps::CONNTRACK.capacity, 0);

/// Index 0: counts what makes a flow's remembered next hop stale. Writer: the agent, after every change of a pod's, node's or host's
/// address and of a route. Reader: `stages::route`.
#[map]
static EPOCH: Array<u32> = Array::with_max_entries(maps::EPOCH.capacity, 0);

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
};

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
    /// `CONNTRACK`.
    fn conntrack() -> &'static HashMap<CtKey<Self>, CtEntry<Self>>;
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
    fn conntrack() -> &'static HashMap<CtKey<V4>, CtEntry<V4>> {
        &CONNTRACK
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

/// The backend id in a slot.
#[inline(always)]
pub(crate) fn slot(index: u32) -> Option<u32> {
    SLOTS.get(index).copied()
}
