//! What nodes give: their addresses, and the ranges of their pods.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use shunt_common::{
    address::{Route, route, route_flags},
    net::{Ip4, Mac},
    vxlan,
};

use super::{Affected, Claimant, Compiler, Patch, Subject, native, prefix_of};
use crate::{
    model::{Model, Name, Node},
    problem::Problem,
};

/// What a node said when it was looked at last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeClaims {
    addresses: Vec<Ip4>,
    ranges: Vec<Ipv4Net>,
    /// Outer destination and inner MAC of what is sent to it; none without an IPv4 address.
    pub(super) tunnel_end: Option<(Ip4, Mac)>,
    /// Whether it takes packets that come with their backend's name.
    takes_names: bool,
}

impl NodeClaims {
    fn of(node: &Node) -> Self {
        let mut addresses: Vec<Ip4> = node.addresses.iter().filter_map(v4).map(Ip4::from).collect();
        let public_ip = node.tunnel.public_ip.map(Ip4::from);
        let underlay = public_ip.or_else(|| addresses.first().copied());
        addresses.extend(public_ip.filter(|ip| !addresses.contains(ip)));
        let tunnel_end = underlay.map(|ip| (ip, node.tunnel.vtep_mac.unwrap_or_else(|| vxlan::derived_mac(ip))));
        let ranges = node.pod_cidrs.iter().filter_map(|cidr| match cidr {
            IpNet::V4(range) => Some(*range),
            IpNet::V6(_) => None,
        });
        Self { addresses, ranges: ranges.collect(), tunnel_end, takes_names: node.tunnel.direct_return }
    }
}

impl Compiler {
    /// Takes back what a node said before and takes down what it says now.
    pub(super) fn claim_node(&mut self, model: &Model, name: &Name, affected: &mut Affected) {
        let claimant = if *name == self.view.name { Claimant::Host } else { Claimant::Node(name.clone()) };
        let now = model.nodes().get(name);
        let claims = now.map(NodeClaims::of);
        self.problems.remove(&Subject::Node(name.clone()));
        if let Some(problem) = now.zip(claims.as_ref()).and_then(|(node, claims)| self.unusable(node, claims)) {
            self.problems.insert(Subject::Node(name.clone()), problem);
        }
        let before = self.nodes.remove(name);
        if let Some(before) = &before {
            for &addr in &before.addresses {
                let is_own_interface =
                    claimant == Claimant::Host && (addr == self.view.ip || self.view.addresses.contains(&addr));
                if !is_own_interface {
                    self.addresses.remove(addr, &claimant);
                }
                self.problems.remove(&Subject::Address(addr, claimant.clone()));
                self.touch_address(addr, affected);
            }
            for &range in &before.ranges {
                self.ranges.remove(range, name);
                self.problems.remove(&Subject::Range(range, name.clone()));
                affected.ranges.insert(range);
            }
        }
        if let Some(claims) = claims {
            for &addr in &claims.addresses {
                self.addresses.add(addr, claimant.clone());
                self.touch_address(addr, affected);
            }
            for &range in &claims.ranges {
                self.ranges.add(range, name.clone());
                affected.ranges.insert(range);
            }
            self.nodes.insert(name.clone(), claims);
        }
    }

    /// A node's address decides over ranges twice: of the nodes that claim it, and of those whose range contains it.
    fn touch_address(&self, addr: Ip4, affected: &mut Affected) {
        affected.addresses.insert(addr);
        affected.ranges.extend(self.ranges.around(addr));
        for claimant in self.addresses.of(addr) {
            if let Claimant::Node(name) = claimant {
                affected.ranges.extend(self.nodes.get(name).into_iter().flat_map(|node| node.ranges.iter().copied()));
            }
        }
    }

    fn unusable(&self, node: &Node, claims: &NodeClaims) -> Option<Problem> {
        let (field, message) = if claims.ranges.is_empty() && !node.pod_cidrs.is_empty() {
            ("spec.podCIDRs", "has no IPv4 range; IPv6 is not carried yet: add an IPv4 podCIDR")
        } else if claims.tunnel_end.is_none() && !claims.ranges.is_empty() && node.name != self.view.name {
            ("status.addresses", "has no IPv4 InternalIP, so its pods cannot be reached: add one")
        } else {
            return None;
        };
        Some(node_problem(&node.name, field, message.to_owned()))
    }

    /// Settles which node each affected range leads to, and what else then has to be looked at.
    pub(super) fn resolve_ranges(&mut self, affected: &mut Affected, patch: &mut Patch) {
        let groups: BTreeSet<Ipv4Net> = affected.ranges.iter().map(|&range| self.ranges.widest(range)).collect();
        for group in groups {
            self.settle(group, affected, patch);
        }
    }

    /// One group of ranges that overlap: nodes are believed in the order of their names.
    fn settle(&mut self, widest: Ipv4Net, affected: &mut Affected, patch: &mut Patch) {
        let mut believed: Vec<(Name, Ipv4Net)> = Vec::new();
        for (node, range) in self.ranges.within(widest) {
            let subject = Subject::Range(range, node.clone());
            let overlapping = believed.iter().find(|(_, other)| other.contains(&range) || range.contains(other));
            let refusal = match overlapping {
                Some((other, of)) => Some(format!(
                    "{range} overlaps {of} of Node {other}, which comes first by name; give one of the two another podCIDR"
                )),
                None => self.objection(&node, range),
            };
            match refusal {
                Some(message) => {
                    self.problems.insert(subject, node_problem(&node, "spec.podCIDRs", message));
                }
                None => {
                    self.problems.remove(&subject);
                    believed.push((node, range));
                }
            }
        }
        let claimed = self.ranges.within(widest).into_iter().map(|(_, range)| range);
        let given_up = affected.ranges.iter().copied().filter(|range| widest.contains(range));
        let known: BTreeSet<Ipv4Net> = claimed.chain(given_up).collect();
        for range in known {
            let owner = believed.iter().find(|(_, other)| *other == range).map(|(node, _)| node);
            let route = owner.and_then(|node| self.route_to(node));
            let is_remote = route.is_some_and(|route| route.kind == route::TUNNEL);
            let fallback = self.view.non_masquerade.contains(&range).then(native);
            self.desired.set_route(prefix_of(range), route.or(fallback), patch);
            self.desired.set_host_route(range, is_remote, patch);
            affected.addresses.extend(self.addresses.within(range).map(|(addr, _)| addr));
        }
    }

    /// Why a range cannot be a node's pods', apart from other ranges.
    fn objection(&self, node: &Name, range: Ipv4Net) -> Option<String> {
        let inside = self.addresses.within(range).find_map(|(addr, claimants)| {
            let owner = claimants.iter().find_map(|claimant| match claimant {
                Claimant::Node(name) => Some(name),
                Claimant::Host => {
                    let is_own = self.nodes.get(&self.view.name).is_some_and(|own| own.addresses.contains(&addr));
                    (is_own || addr == self.view.ip).then_some(&self.view.name)
                }
                Claimant::Service { .. } => None,
            });
            owner.map(|owner| (addr, owner))
        });
        if let Some((addr, owner)) = inside {
            return Some(format!(
                "{range} contains {addr}, the address of Node {owner}; choose a range that contains no node's"
            ));
        }
        let subnet = self.view.subnet;
        if subnet.contains(&range) || range.contains(&subnet) {
            return Some(format!(
                "{range} overlaps {subnet}, the subnet of this node's underlay; choose a range outside of it"
            ));
        }
        if *node == self.view.name {
            return None;
        }
        let (underlay, _) = self.nodes.get(node)?.tunnel_end?;
        let owner = self.addresses.of(underlay).first()?;
        (*owner != Claimant::Node(node.clone())).then(|| {
            format!("{range} cannot be reached: the node's address {underlay} belongs to {owner}; correct status.addresses")
        })
    }

    fn route_to(&self, node: &Name) -> Option<Route> {
        if *node == self.view.name {
            return Some(Route { kind: route::LOCAL, underlay: Ip4::UNSPECIFIED, mac: Mac::ZERO, flags: 0 });
        }
        let claims = self.nodes.get(node)?;
        let (underlay, mac) = claims.tunnel_end?;
        let flags = if claims.takes_names { route_flags::TAKES_NAMES } else { 0 };
        Some(Route { kind: route::TUNNEL, underlay, mac, flags })
    }

    /// The pod range that an address lies in, if some node is believed to own it.
    pub(super) fn accepted_range_around(&self, addr: Ip4) -> Option<Ipv4Net> {
        self.ranges.around(addr).find(|&range| {
            self.desired
                .routes
                .get(&prefix_of(range))
                .is_some_and(|route| route.kind == route::TUNNEL || route.kind == route::LOCAL)
        })
    }
}

fn v4(ip: &IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    }
}

fn node_problem(node: &Name, field: &str, message: String) -> Problem {
    Problem { object: Some(format!("Node {node}")), field: Some(field.to_owned()), message, ..Problem::default() }
}
