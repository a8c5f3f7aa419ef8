//! Effects as data: what one change to the kernel is, what the kernel holds, and who carries changes out.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, Prefix, Route},
    net::{Ip4, V4},
    service::{Backend, Service, ServiceKey, SourceRange},
};

/// One change. A list of steps is ordered so that a referent exists before its reference and outlives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a backend under an id, its generation included.
    PutBackend {
        /// Index in `BACKENDS`, from 1.
        id: u32,
        /// The value.
        backend: Backend<V4>,
    },
    /// Write a run of slots.
    PutSlots {
        /// First slot.
        base: u32,
        /// Backend ids.
        ids: Vec<u32>,
    },
    /// Let clients of a prefix reach a Service at the addresses of a load balancer.
    PutSourceRange {
        /// The prefix, with the Service's number.
        range: SourceRange<V4>,
    },
    /// The reverse.
    DeleteSourceRange {
        /// The prefix, with the Service's number.
        range: SourceRange<V4>,
    },
    /// Write a frontend, which names its runs of slots.
    PutService {
        /// Frontend.
        key: ServiceKey<V4>,
        /// Runs and flags.
        service: Service,
    },
    /// Remove a frontend.
    DeleteService {
        /// Frontend.
        key: ServiceKey<V4>,
    },
    /// Write which of 64 ports some frontend at a node's address has.
    PutNodePorts {
        /// Index in `NODE_PORTS`.
        index: u32,
        /// A bit for each.
        ports: u64,
    },
    /// Write who owns an address.
    PutAddress {
        /// The address.
        addr: Ip4,
        /// Its owner.
        address: Address,
    },
    /// Remove an address.
    DeleteAddress {
        /// The address.
        addr: Ip4,
    },
    /// Write where a prefix leads.
    PutRoute {
        /// The prefix.
        prefix: Prefix<V4>,
        /// Where it leads.
        route: Route,
    },
    /// Remove a prefix.
    DeleteRoute {
        /// The prefix.
        prefix: Prefix<V4>,
    },
    /// Let the host's routing send a prefix to `shunt0`.
    AddHostRoute {
        /// The prefix.
        prefix: Ipv4Net,
    },
    /// The reverse.
    RemoveHostRoute {
        /// The prefix.
        prefix: Ipv4Net,
    },
}

/// What the kernel holds of what is ours, read back or tracked since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// `ADDRESSES`, pods included.
    pub addresses: BTreeMap<Ip4, Address>,
    /// `ROUTES`.
    pub routes: BTreeMap<Prefix<V4>, Route>,
    /// `SERVICES`.
    pub services: BTreeMap<ServiceKey<V4>, Service>,
    /// `SOURCE_RANGES`.
    pub source_ranges: BTreeSet<SourceRange<V4>>,
    /// `NODE_PORTS`, as far as there are any.
    pub node_ports: BTreeMap<u32, u64>,
    /// The slots that some frontend's runs cover.
    pub slots: BTreeMap<u32, u32>,
    /// `BACKENDS`, free ones that were used before included: their generation counts on.
    pub backends: BTreeMap<u32, Backend<V4>>,
    /// Host routes with our protocol number.
    pub host_routes: BTreeSet<Ipv4Net>,
}

/// A map whose entries mean something by themselves; slots do only as far as some frontend's runs cover them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `ADDRESSES`.
    Addresses,
    /// `ROUTES`.
    Routes,
    /// `SERVICES`.
    Services,
    /// `SOURCE_RANGES`.
    SourceRanges,
    /// `NODE_PORTS`.
    NodePorts,
    /// `BACKENDS`.
    Backends,
}

/// One thing that the kernel holds: an entry of a map, or a run of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Of `ADDRESSES`.
    Address(Ip4, Address),
    /// Of `ROUTES`.
    Route(Prefix<V4>, Route),
    /// Of `SERVICES`.
    Service(ServiceKey<V4>, Service),
    /// Of `SOURCE_RANGES`.
    SourceRange(SourceRange<V4>),
    /// Of `NODE_PORTS`.
    NodePorts(u32, u64),
    /// Of `BACKENDS`.
    Backend(u32, Backend<V4>),
    /// Of `SLOTS`: backend ids from a first slot on.
    Slots(u32, Vec<u32>),
}

/// The one interpreter of steps.
pub trait Kernel {
    /// Why a step failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Where a [`walk`](Self::walk) stands; at first, before a part's begin.
    type Cursor: Default;

    /// Carries steps out in order; stops at the first that fails and says which.
    ///
    /// # Errors
    /// The index of the step that failed, with its cause; those before it are in force.
    fn carry_out(&mut self, steps: &[Step]) -> Result<(), (usize, Self::Error)>;

    /// Reads back all that is ours.
    ///
    /// # Errors
    /// A map or the routing table could not be read.
    fn read_back(&mut self) -> Result<Actual, Self::Error>;

    /// Whether it holds just this; of a route or a source range, this or a shorter one that leads alike.
    ///
    /// # Errors
    /// A map could not be read.
    fn holds(&self, holding: &Holding) -> Result<bool, Self::Error>;

    /// Shows some of what there is in a part, so little that it takes a moment only; whether that was the end.
    ///
    /// # Errors
    /// A map could not be read.
    fn walk(&self, part: Part, cursor: &mut Self::Cursor, visit: &mut dyn FnMut(&Holding)) -> Result<bool, Self::Error>;
}
