//! Who says that an address, a frontend or a pod range is theirs, and who of several is believed: never two owners, whatever the order of events.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use shunt_common::net::Ip4;

use crate::model::{HostPort, Name, ObjectName};

/// Somebody who says that an address is theirs. The smallest is believed: this host, then nodes by name, then Services by age and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claimant {
    /// This node.
    Host,
    /// Another node.
    Node(Name),
    /// A Service, for a virtual IP.
    Service {
        /// Who.
        rank: Rank,
        /// What the address is to it.
        role: VirtualIp,
    },
}

/// Services by age, then by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// Seconds since the epoch.
    pub(super) created: i64,
    pub(super) name: ObjectName,
}

/// What an address is to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum VirtualIp {
    /// Its own, which it shares with nobody.
    Cluster,
    /// A load balancer's: several Services may have ports there, and it may be a node's as well.
    LoadBalancer,
    /// So an external one.
    External,
}

impl VirtualIp {
    pub(super) fn is_exposed(self) -> bool {
        self != Self::Cluster
    }

    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Cluster => "spec.clusterIP",
            Self::LoadBalancer => "status.loadBalancer.ingress",
            Self::External => "spec.externalIPs",
        }
    }
}

impl std::fmt::Display for Claimant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host => f.write_str("this node"),
            Self::Node(name) => write!(f, "Node {name}"),
            Self::Service { rank, .. } => write!(f, "Service {}", rank.name),
        }
    }
}

/// Claims on addresses, in numerical order of the address so that a range can be asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressClaims {
    by_address: BTreeMap<u32, Vec<Claimant>>,
}

impl AddressClaims {
    pub(super) fn add(&mut self, addr: Ip4, claimant: Claimant) {
        let claimants = self.by_address.entry(addr.to_host()).or_default();
        if let Err(place) = claimants.binary_search(&claimant) {
            claimants.reserve_exact(1);
            claimants.insert(place, claimant);
        }
    }

    pub(super) fn remove(&mut self, addr: Ip4, claimant: &Claimant) {
        let Some(claimants) = self.by_address.get_mut(&addr.to_host()) else { return };
        claimants.retain(|other| other != claimant);
        if claimants.is_empty() {
            self.by_address.remove(&addr.to_host());
        }
    }

    /// All who claim the address; the first is believed.
    pub(super) fn of(&self, addr: Ip4) -> &[Claimant] {
        self.by_address.get(&addr.to_host()).map_or(&[], Vec::as_slice)
    }

    /// Claimed addresses in a range.
    pub(super) fn within(&self, range: Ipv4Net) -> impl Iterator<Item = (Ip4, &[Claimant])> {
        self.by_address
            .range(range.network().to_bits()..=range.broadcast().to_bits())
            .map(|(&addr, claimants)| (Ip4::from_host(addr), claimants.as_slice()))
    }
}

/// Who says that a frontend at an outside address is theirs. The smallest is believed: Services by age and name, then pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Exposer {
    Service(Rank),
    Pod(HostPort),
}

impl std::fmt::Display for Exposer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(rank) => write!(f, "Service {}", rank.name),
            Self::Pod(host_port) => write!(f, "the hostPort of Pod {}", host_port.pod),
        }
    }
}

/// Claims on something that only one can have.
#[derive(Clone, Debug)]
pub(super) struct Claims<K, C> {
    by_key: BTreeMap<K, Vec<C>>,
}

impl<K: Ord + Copy, C: Ord + Clone> Claims<K, C> {
    /// Changes what somebody claims, either in ascending order; who else is concerned.
    pub(super) fn change(&mut self, claimant: &C, before: &[K], now: &[K]) -> Vec<C> {
        let mut others = Vec::new();
        for key in before.iter().filter(|key| now.binary_search(key).is_err()) {
            let Some(claimants) = self.by_key.get_mut(key) else { continue };
            claimants.retain(|other| other != claimant);
            others.extend(claimants.iter().cloned());
            if claimants.is_empty() {
                self.by_key.remove(key);
            }
        }
        for key in now.iter().filter(|key| before.binary_search(key).is_err()) {
            let claimants = self.by_key.entry(*key).or_default();
            others.extend(claimants.iter().cloned());
            if let Err(place) = claimants.binary_search(claimant) {
                claimants.reserve_exact(1);
                claimants.insert(place, claimant.clone());
            }
        }
        others
    }

    /// Who is believed.
    pub(super) fn owner(&self, key: &K) -> Option<&C> {
        self.by_key.get(key)?.first()
    }
}

impl<K, C> Default for Claims<K, C> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new() }
    }
}

/// Claims of nodes on pod ranges.
#[derive(Clone, Debug, Default)]
pub(super) struct RangeClaims {
    by_range: BTreeMap<Ipv4Net, BTreeSet<Name>>,
}

impl RangeClaims {
    pub(super) fn add(&mut self, range: Ipv4Net, node: Name) {
        self.by_range.entry(range).or_default().insert(node);
    }

    pub(super) fn remove(&mut self, range: Ipv4Net, node: &Name) {
        let Some(nodes) = self.by_range.get_mut(&range) else { return };
        nodes.remove(node);
        if nodes.is_empty() {
            self.by_range.remove(&range);
        }
    }

    /// The widest claimed range that contains this one, or itself: two prefixes overlap only if one contains the other, so whoever
    /// contends with whom lies within one such range.
    pub(super) fn widest(&self, range: Ipv4Net) -> Ipv4Net {
        supernets(range).filter(|wider| self.by_range.contains_key(wider)).last().unwrap_or(range)
    }

    /// Claimed ranges that contain an address, narrowest first.
    pub(super) fn around(&self, addr: Ip4) -> impl Iterator<Item = Ipv4Net> {
        supernets(Ipv4Net::from(std::net::Ipv4Addr::from(addr))).filter(|range| self.by_range.contains_key(range))
    }

    /// Every claim within a range, in the order in which they are believed: by the node's name.
    pub(super) fn within(&self, range: Ipv4Net) -> Vec<(Name, Ipv4Net)> {
        let mut claims: Vec<_> = self
            .by_range
            .range(range..)
            .take_while(|(other, _)| range.contains(&other.network()))
            .flat_map(|(other, nodes)| nodes.iter().map(|node| (node.clone(), *other)))
            .collect();
        claims.sort();
        claims
    }
}

/// A prefix and all that contain it, narrowest first.
fn supernets(range: Ipv4Net) -> impl Iterator<Item = Ipv4Net> {
    std::iter::successors(Some(range), Ipv4Net::supernet)
}
