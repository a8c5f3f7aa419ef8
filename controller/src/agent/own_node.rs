//! This node as its Node object has it.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use shunt_common::{net::Mac, vxlan};

use crate::model::Node;

/// What this node's own Node object says that the dataplane depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnNode {
    /// The first IPv4 address.
    pub(super) ip: Ipv4Addr,
    /// The first IPv4 range.
    pub(super) pod_cidr: Option<Ipv4Net>,
    /// The VTEP's.
    pub(super) mac: Mac,
}

impl OwnNode {
    /// `None` if it has no IPv4 address.
    pub(super) fn of(node: &Node) -> Option<Self> {
        let ip = node.addresses.iter().find_map(|address| match address {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        })?;
        let pod_cidr = node.pod_cidrs.iter().find_map(|range| match range {
            IpNet::V4(range) => Some(*range),
            IpNet::V6(_) => None,
        });
        let mac = node.tunnel.vtep_mac.unwrap_or_else(|| vxlan::derived_mac(ip.into()));
        Some(Self { ip, pod_cidr, mac })
    }

    /// Whether the dataplane can stay as it is: the range is for the address book, and
    /// [`Dataplane::check`](super::dataplane::Dataplane::check) tells wires from pods' bridges by it.
    pub(super) fn has_same_tunnel_end(&self, other: &Self) -> bool {
        (self.ip, self.mac) == (other.ip, other.mac)
    }
}

#[cfg(test)]
mod tests {
    use shunt_common::net::Ip4;

    use super::*;
    use crate::model::TunnelEnd;

    #[test]
    fn the_own_node_is_its_first_ipv4_address_and_range() {
        let mut node = Node {
            name: "n1".into(),
            addresses: vec!["2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap()],
            pod_cidrs: vec!["2001:db8:1::/64".parse().unwrap(), "10.244.1.0/24".parse().unwrap()],
            tunnel: TunnelEnd::default(),
            zone: None,
        };
        let own = OwnNode::of(&node).unwrap();
        assert_eq!((own.ip, own.pod_cidr), (Ipv4Addr::new(192, 0, 2, 1), Some("10.244.1.0/24".parse().unwrap())));
        assert_eq!(own.mac, vxlan::derived_mac(Ip4::new(192, 0, 2, 1)));
        node.tunnel.vtep_mac = Some(Mac { bytes: [2; 6] });
        assert_eq!(OwnNode::of(&node).unwrap().mac, Mac { bytes: [2; 6] });
        node.addresses.truncate(1);
        assert_eq!(OwnNode::of(&node), None);
    }
}
