//! Who owns an address: this host, a node, a Service.

use ipnet::Ipv4Net;
use shunt_common::{
    address::{Address, kind},
    net::{Ip4, Mac},
};

use super::{
    Affected, Compiler, Subject,
    claims::{Claimant, Rank, VirtualIp},
    desired::Patch,
};
use crate::problem::Problem;

impl Compiler {
    /// Settles who owns each affected address, once it is settled who owns which range.
    pub(super) fn resolve_addresses(&mut self, affected: &mut Affected, patch: &mut Patch) {
        for addr in std::mem::take(&mut affected.addresses) {
            let claimants = self.addresses.of(addr).to_vec();
            let pod_range = self.accepted_range_around(addr);
            let owner = claimants.first().filter(|first| !matches!(first, Claimant::Service { .. }) || pod_range.is_none());
            let is_shared = owner.is_some_and(|owner| match owner {
                Claimant::Host | Claimant::Node(_) => true,
                Claimant::Service { role, .. } => role.is_exposed(),
            });
            for claimant in &claimants {
                let subject = Subject::Address(addr, claimant.clone());
                let shares = is_shared && matches!(claimant, Claimant::Service { role, .. } if role.is_exposed());
                match (owner, pod_range) {
                    (Some(owner), _) if owner == claimant || shares => {
                        self.problems.remove(&subject);
                    }
                    (Some(owner), _) => {
                        let message = format!("{addr} already belongs to {owner}; give one of the two another address");
                        self.problems.insert(subject, contradiction(claimant, message));
                    }
                    (None, range) => {
                        let within = range.map(|range| range.to_string()).unwrap_or_default();
                        let message =
                            format!("{addr} lies in the pod range {within}; choose an address outside of all nodes' podCIDRs");
                        self.problems.insert(subject, contradiction(claimant, message));
                    }
                }
                if let Claimant::Service { rank, .. } = claimant {
                    affected.services.insert(rank.name.clone());
                }
            }
            let value = owner.and_then(|owner| self.address_of(owner));
            let is_virtual = value.is_some_and(|address| address.kind == kind::SERVICE);
            if is_virtual != self.is_virtual(addr) && self.endpoints_seen.contains(&addr) {
                affected.endpoints.insert(std::net::Ipv4Addr::from(addr).into());
            }
            self.desired.set_address(addr, value, patch);
            self.desired.set_host_route(Ipv4Net::from(std::net::Ipv4Addr::from(addr)), is_virtual, patch);
        }
    }

    fn address_of(&self, owner: &Claimant) -> Option<Address> {
        let entry = |kind, underlay, mac| Address { kind, ifindex: 0, underlay, mac, reserved: 0 };
        match owner {
            Claimant::Host => Some(entry(kind::HOST, Ip4::UNSPECIFIED, Mac::ZERO)),
            Claimant::Node(name) => {
                let (underlay, mac) = self.nodes.get(name)?.tunnel_end?;
                Some(entry(kind::NODE, underlay, mac))
            }
            Claimant::Service { .. } => Some(entry(kind::SERVICE, Ip4::UNSPECIFIED, Mac::ZERO)),
        }
    }

    /// Whether a Service is believed that an address is its virtual IP, once addresses are settled.
    pub(super) fn is_served(&self, addr: Ip4, rank: &Rank, role: VirtualIp) -> bool {
        match self.addresses.of(addr).first() {
            Some(Claimant::Service { rank: owner, role: owned_as }) => {
                self.is_virtual(addr) && ((owner, *owned_as) == (rank, role) || (owned_as.is_exposed() && role.is_exposed()))
            }
            // The address stays the node's; packets to it that name a port of the Service are the Service's.
            Some(Claimant::Host | Claimant::Node(_)) => role.is_exposed(),
            None => false,
        }
    }

    /// Whether an address is a Service's and nobody else's.
    pub(super) fn is_virtual(&self, addr: Ip4) -> bool {
        self.desired.addresses.get(&addr).is_some_and(|address| address.kind == kind::SERVICE)
    }

    /// Whether an address is this node's or another's.
    pub(super) fn is_of_node(&self, addr: Ip4) -> bool {
        matches!(self.addresses.of(addr).first(), Some(Claimant::Host | Claimant::Node(_)))
    }
}

/// What a claimant who was not believed is told.
fn contradiction(claimant: &Claimant, message: String) -> Problem {
    let (object, field) = match claimant {
        Claimant::Host => ("this node".to_owned(), None),
        Claimant::Node(name) => (format!("Node {name}"), Some("status.addresses")),
        Claimant::Service { rank, role } => (format!("Service {}", rank.name), Some(role.field())),
    };
    Problem { object: Some(object), field: field.map(str::to_owned), message, ..Problem::default() }
}
