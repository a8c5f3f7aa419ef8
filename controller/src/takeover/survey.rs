//! What is on a node that may be taken over. Looks, and concludes nothing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use shunt_common::net::Mac;

use super::{
    TakeoverError,
    allocations::{self, Allocation, Kept},
    netfilter,
    rules::{Owner, RulesFound},
};
use crate::{
    attachment::AttachmentKey,
    kernel::{
        links::{self, Kind, Link},
        netlink::Netlink,
        nf_tables::{self, RuleSets},
        ports::{self, PodEnd, Port},
        routes::{self, OthersRoute},
        xtables,
    },
};

/// The bridge that flannel's CNI plugin makes.
pub const BRIDGE: &str = "cni0";
/// What names of flannel's VXLAN devices begin with; the network identifier follows.
pub const TUNNEL_PREFIX: &str = "flannel.";
/// The same of its devices that carry IPv6 (pkg/backend/vxlan/vxlan.go).
pub const TUNNEL_PREFIX_V6: &str = "flannel-v6.";

/// Where runtimes keep network namespaces.
const NETNS_DIRS: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// A bridge with what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Its index.
    pub index: u32,
    /// Its MAC.
    pub mac: Mac,
    /// Its own address with the range on it.
    pub address: Option<Ipv4Net>,
    /// Its ports, each with what is at its other end, if that was found.
    pub ports: Vec<(Port, Option<PodEnd>)>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// `cni0`.
    pub bridge: Option<Bridge>,
    /// VXLAN devices with flannel's names.
    pub tunnels: Vec<Link>,
    /// Names of all devices.
    pub devices: Vec<String>,
    /// Routes over flannel's devices, by the device's name.
    pub routes: BTreeMap<String, Vec<OthersRoute>>,
    /// Where host-local keeps its allocations.
    pub networks: PathBuf,
    /// host-local's allocations.
    pub allocations: Vec<Allocation>,
    /// What the runtime kept of attachments.
    pub kept: BTreeMap<AttachmentKey, Kept>,
    /// Rules of nf_tables.
    pub rules: RulesFound,
    /// Names of legacy tables with rules of kube-proxy or flannel.
    pub legacy: Vec<String>,
}

impl Survey {
    /// Looks at this network namespace, and at the files of CNI below `cni_dir`.
    ///
    /// # Errors
    /// Something could not be looked at.
    pub fn make(netlink: &mut Netlink, cni_dir: &Path) -> Result<Self, TakeoverError> {
        let links = links::list(netlink)?;
        let kept = allocations::results(cni_dir);
        let bridge = match links.iter().find(|link| link.name == BRIDGE) {
            Some(link) => Some(bridge(netlink, link, &kept)?),
            None => None,
        };
        let is_tunnel = |link: &&Link| link.name.starts_with(TUNNEL_PREFIX) && matches!(link.kind, Kind::Vxlan { .. });
        let tunnels: Vec<Link> = links.iter().filter(is_tunnel).cloned().collect();
        let mut routes = BTreeMap::new();
        for tunnel in &tunnels {
            routes.insert(tunnel.name.clone(), routes::of_others(netlink, tunnel.index)?);
        }
        Ok(Self {
            bridge,
            tunnels,
            devices: links.into_iter().map(|link| link.name).collect(),
            routes,
            networks: allocations::networks(cni_dir),
            allocations: allocations::read(cni_dir)?,
            kept,
            rules: rules()?,
            legacy: legacy()?,
        })
    }
}

impl Survey {
    /// Whether flannel or kube-proxy has left anything here.
    #[must_use]
    pub fn has_anything(&self) -> bool {
        let in_force = |owner| self.rules.in_force(owner);
        self.bridge.is_some()
            || !self.tunnels.is_empty()
            || !self.legacy.is_empty()
            || in_force(Owner::KubeProxy)
            || in_force(Owner::Flannel)
    }

    /// The name of flannel's network, as host-local has it.
    #[must_use]
    pub fn network(&self) -> String {
        self.allocations.first().map_or_else(|| NETWORK.to_owned(), |allocation| allocation.network.clone())
    }
}

/// The name that flannel's own manifest gives to its network.
const NETWORK: &str = "cbr0";

/// Rules of nf_tables as they are.
///
/// # Errors
/// What the kernel answers.
pub fn rules() -> Result<RulesFound, TakeoverError> {
    let refused = || netfilter("read the rules of nf_tables");
    let mut rule_sets = RuleSets::open().map_err(refused())?;
    let tables = nf_tables::tables(&mut rule_sets).map_err(refused())?;
    let chains = nf_tables::chains(&mut rule_sets).map_err(refused())?;
    let mut found = RulesFound { tables, chains, rules: Vec::new() };
    for table in found.of_iptables() {
        found.rules.extend(nf_tables::rules(&mut rule_sets, &table).map_err(refused())?);
    }
    Ok(found)
}

/// Names of the tables of legacy iptables in which flannel or kube-proxy has rules.
///
/// # Errors
/// What the kernel answers.
pub fn legacy() -> Result<Vec<String>, TakeoverError> {
    let mut found = Vec::new();
    for needle in ["KUBE-SERVICES", "FLANNEL-POSTRTG", "flanneld masq"] {
        found.extend(xtables::tables_with(needle).map_err(netfilter("read the tables of legacy iptables"))?);
    }
    found.sort();
    found.dedup();
    Ok(found)
}

fn bridge(netlink: &mut Netlink, link: &Link, kept: &BTreeMap<AttachmentKey, Kept>) -> Result<Bridge, TakeoverError> {
    let address = links::addresses(netlink)?
        .into_iter()
        .find(|held| held.index == link.index)
        .and_then(|held| Ipv4Net::new(held.address, held.prefix_len).ok());
    let ports = ports::of_bridge(netlink, link.index)?;
    let mut paths: Vec<PathBuf> = kept.values().flat_map(|kept| kept.sandboxes.iter().cloned()).collect();
    for dir in NETNS_DIRS {
        paths.extend(fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    let mut ends = ports::pod_ends(netlink, &ports, &paths)?;
    let ports = ports.into_iter().map(|port| (port.clone(), ends.remove(&port.index))).collect();
    Ok(Bridge { index: link.index, mac: link.mac.unwrap_or(Mac::ZERO), address, ports })
}
