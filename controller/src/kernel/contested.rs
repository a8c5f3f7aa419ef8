//! Routes of others where ours would be: they stay, and somebody who can decide is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};

use super::{
    links::{self, LinksError},
    netlink::Netlink,
    routes,
};
use crate::problem::Problem;

/// A route that is not ours to a prefix that we have one for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    gateway: Option<Ipv4Addr>,
    device: Option<String>,
    protocol: RouteProtocol,
}

/// As `ip route` shows it.
impl fmt::Display for Contested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(gateway) = self.gateway {
            write!(f, "via {gateway} ")?;
        }
        if let Some(device) = &self.device {
            write!(f, "dev {device} ")?;
        }
        write!(f, "proto {}", self.protocol)
    }
}

impl Contested {
    /// What is wrong with it, for people.
    #[must_use]
    pub fn problem(&self, prefix: Ipv4Net) -> Problem {
        let message = format!(
            "the node has a route of its own there ({self}), which stays: processes of the node go by that one, past shunt; pods and clients \
             from elsewhere are served. Remove that route, or what has this address in the cluster (a Service's virtual IP, a Node's podCIDR)"
        );
        Problem { object: Some(format!("host route {prefix}")), message, ..Problem::default() }
    }
}

/// Which of these prefixes, that all have a route of the metric of ours, have one that is not ours.
///
/// # Errors
/// What the kernel answers.
pub(super) fn find(netlink: &mut Netlink, prefixes: &BTreeSet<Ipv4Net>) -> Result<BTreeMap<Ipv4Net, Contested>, LinksError> {
    let mut found = BTreeMap::new();
    let mut left = BTreeSet::new();
    for &prefix in prefixes {
        match routes::look_up(netlink, prefix.network()).filter(|message| is_at(message, prefix)) {
            Some(message) => drop(found.insert(prefix, message)),
            None => drop(left.insert(prefix)),
        }
    }
    // Policy rules, a longer prefix or a device that is down hide some from a look-up.
    if !left.is_empty() {
        let listed = routes::table(netlink)?;
        let hidden = listed.into_iter().filter_map(|message| Some((routes::destination(&message)?, message)));
        found.extend(hidden.filter(|(prefix, message)| left.contains(prefix) && is_at(message, *prefix)));
    }
    let foreign = found.into_iter().filter(|(_, message)| !routes::is_ours(message));
    Ok(foreign.map(|(prefix, message)| (prefix, described(netlink, &message))).collect())
}

/// Whether a route has the place that ours would have: of several to a prefix in a table each has another metric, or type of service
/// (`fib_table_insert` in net/ipv4/fib_trie.c).
fn is_at(message: &RouteMessage, prefix: Ipv4Net) -> bool {
    let metric = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    let in_main = message.header.table == RouteHeader::RT_TABLE_MAIN;
    in_main && routes::destination(message) == Some(prefix) && metric.unwrap_or(0) == 0 && message.header.tos == 0
}

fn described(netlink: &mut Netlink, message: &RouteMessage) -> Contested {
    let device = routes::interface(message).map(|index| match links::by_index(netlink, index) {
        Ok(Some(link)) => link.name,
        _ => index.to_string(),
    });
    Contested { gateway: routes::gateway(message), device, protocol: message.header.protocol }
}
