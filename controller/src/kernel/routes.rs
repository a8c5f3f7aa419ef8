//! The host's routing table and neighbours, as far as they are ours: protocol number 83.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use rtnetlink::{
    AddressMessageBuilder, LinkUnspec, RouteMessageBuilder,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressScope,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope},
    },
};
use serde::{Deserialize, Serialize};
use shunt_common::{
    config::link_local::{GATEWAY, HAIRPIN},
    net::Mac,
};

use super::{
    contested::{self, Contested},
    links::{LinksError, TUNNEL, netlink_error},
    netlink::Netlink,
};

/// Marks our routes: `S` in ASCII, unassigned in /etc/iproute2/rt_protos.
pub const PROTOCOL: u8 = 83;

/// An address of the host on each device of ours, which nobody ever speaks to.
///
/// A device without any address takes no packet whose source is routed elsewhere, however loose its reverse path filter is
/// (`no_addr` in net/ipv4/fib_frontend.c): answers of a Service to the host come from the pod's veth, but its virtual IP is routed to
/// `shunt0`.
pub const HOST_END: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 3);

/// What every route of ours to `shunt0` has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// `shunt0`.
    pub tunnel: u32,
    /// The source that the host's own packets take.
    pub node_ip: Ipv4Addr,
}

impl Via {
    /// `PREFIX via 169.254.1.1 dev shunt0 onlink src NODE_IP proto 83`.
    fn message(self, prefix: Ipv4Net) -> RouteMessage {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .gateway(GATEWAY.into())
            .output_interface(self.tunnel)
            .pref_source(self.node_ip)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .onlink()
            .build()
    }

    /// Adds routes of the host to `shunt0`, many at a time, in place of what is there of ours; where somebody else has one, it stays, and is
    /// what this answers.
    ///
    /// # Errors
    /// The index of the first that failed, and why.
    pub fn add(self, netlink: &mut Netlink, prefixes: &[Ipv4Net]) -> Result<BTreeMap<Ipv4Net, Contested>, (usize, LinksError)> {
        let failed = |(index, error)| (index, netlink_error("add the route to", described(prefixes, index))(error));
        let messages = self.messages(prefixes, NLM_F_CREATE | NLM_F_EXCL);
        let mut taken = BTreeMap::new();
        for (index, error) in netlink.pipeline_all(messages).map_err(failed)? {
            match prefixes.get(index) {
                Some(&prefix) if error.raw_os_error() == Some(libc::EEXIST) => drop(taken.insert(prefix, index)),
                _ => return Err(failed((index, error))),
            }
        }
        let Some(&first) = taken.values().min() else { return Ok(BTreeMap::new()) };
        let contested = contested::find(netlink, &taken.keys().copied().collect()).map_err(|error| (first, error))?;
        let ours: Vec<Ipv4Net> = taken.keys().filter(|prefix| !contested.contains_key(prefix)).copied().collect();
        let index_of = |index: usize| ours.get(index).and_then(|prefix| taken.get(prefix)).copied().unwrap_or(first);
        self.replace(netlink, &ours).map_err(|(index, error)| (index_of(index), error))?;
        Ok(contested)
    }

    /// Adds routes of the host to `shunt0` in place of what is there, whoever made it.
    ///
    /// # Errors
    /// The index of the first that failed, and why.
    pub fn replace(self, netlink: &mut Netlink, prefixes: &[Ipv4Net]) -> Result<(), (usize, LinksError)> {
        netlink
            .pipeline(self.messages(prefixes, NLM_F_CREATE | NLM_F_REPLACE))
            .map_err(|(index, error)| (index, netlink_error("add the route to", described(prefixes, index))(error)))
    }

    fn messages(self, prefixes: &[Ipv4Net], flags: u16) -> impl Iterator<Item = (RouteNetlinkMessage, u16)> {
        prefixes.iter().map(move |prefix| (RouteNetlinkMessage::NewRoute(self.message(*prefix)), flags))
    }

    /// Removes routes of the host to `shunt0`; those that are gone already, or are others', are no error.
    ///
    /// # Errors
    /// The index of the first that failed, and why.
    pub fn remove(self, netlink: &mut Netlink, prefixes: &[Ipv4Net]) -> Result<(), (usize, LinksError)> {
        let failed = |(index, error)| (index, netlink_error("remove the route to", described(prefixes, index))(error));
        let messages = prefixes.iter().map(|prefix| (RouteNetlinkMessage::DelRoute(self.message(*prefix)), 0));
        let failures = netlink.pipeline_all(messages).map_err(failed)?;
        let failure = failures.into_iter().find(|(_, error)| error.raw_os_error() != Some(libc::ESRCH));
        failure.map_or(Ok(()), |failure| Err(failed(failure)))
    }

    /// Routes of the host to `shunt0`, apart from the fixed ones.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn list(self, netlink: &mut Netlink) -> Result<BTreeSet<Ipv4Net>, LinksError> {
        let fixed = fixed();
        Ok(ours(netlink)?
            .iter()
            .filter(|message| interface(message) == Some(self.tunnel) && gateway(message) == Some(GATEWAY.into()))
            // A route with another source is left out, and so written anew, after the node's address has changed.
            .filter(|message| source(message) == Some(self.node_ip))
            .filter_map(destination)
            .filter(|prefix| !fixed.contains(prefix))
            .collect())
    }

    /// What `shunt0` needs once: an address, the gateway's neighbour entry, which is the device's own MAC, a route that lets the host answer
    /// ARP for the gateway in the pods' stead, and one for the node's connections to itself.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_up(self, netlink: &mut Netlink, mac: Mac) -> Result<(), LinksError> {
        add_host_end(netlink, self.tunnel, TUNNEL)?;
        let neighbour = neighbour(self.tunnel, GATEWAY.into(), mac);
        netlink
            .request(RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(netlink_error("add the neighbour", GATEWAY.to_string()))?;
        let gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(GATEWAY.into(), 32)
            .output_interface(self.tunnel)
            .pref_source(self.node_ip)
            .scope(RouteScope::Link)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build();
        netlink
            .request(RouteNetlinkMessage::NewRoute(gateway), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(netlink_error("add the route to", GATEWAY.to_string()))?;
        self.replace(netlink, &[hairpin()]).map_err(|(_, error)| error)
    }
}

/// Gives a device of ours the address that lets it take packets in ([`HOST_END`]).
///
/// # Errors
/// What the kernel answers.
pub(super) fn add_host_end(netlink: &mut Netlink, index: u32, name: &str) -> Result<(), LinksError> {
    netlink.request(host_end(index), NLM_F_CREATE | NLM_F_REPLACE).map_err(netlink_error("add an address to", name))
}

fn host_end(index: u32) -> RouteNetlinkMessage {
    let mut message = AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(HOST_END, 32).build();
    message.header.scope = AddressScope::Host;
    RouteNetlinkMessage::NewAddress(message)
}

fn hairpin() -> Ipv4Net {
    Ipv4Net::from(Ipv4Addr::from(HAIRPIN))
}

fn fixed() -> [Ipv4Net; 2] {
    [hairpin(), Ipv4Net::from(Ipv4Addr::from(GATEWAY))]
}

fn described(prefixes: &[Ipv4Net], index: usize) -> String {
    prefixes.get(index).map(ToString::to_string).unwrap_or_default()
}

/// The host side of one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodSide<'a> {
    /// Its veth's name.
    pub name: &'a str,
    /// Its veth's index.
    pub index: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The pod's own MAC.
    pub mac: Mac,
    /// The source that the host's own packets take.
    pub node_ip: Ipv4Addr,
}

/// Sets the host side of a pod up: an address, the device, a host route to the pod, a neighbour entry so that nobody asks for it.
///
/// # Errors
/// What the kernel answers; all of it can be tried again.
pub fn set_up_pod(netlink: &mut Netlink, pod: &PodSide<'_>) -> Result<(), LinksError> {
    let up = LinkUnspec::new_with_index(pod.index).up().build();
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(pod.address, 32)
        .output_interface(pod.index)
        .pref_source(pod.node_ip)
        .scope(RouteScope::Link)
        .protocol(RouteProtocol::Other(PROTOCOL))
        .build();
    let neighbour = neighbour(pod.index, pod.address, pod.mac);
    let requests = [
        (host_end(pod.index), NLM_F_CREATE | NLM_F_REPLACE),
        (RouteNetlinkMessage::SetLink(up), 0),
        (RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE),
        (RouteNetlinkMessage::NewNeighbour(neighbour), NLM_F_CREATE | NLM_F_REPLACE),
    ];
    let action = ["add an address to", "set up", "add the pod's route to", "add the pod's neighbour entry to"];
    netlink.pipeline(requests).map_err(|(index, error)| netlink_error(action.get(index).unwrap_or(&"set up"), pod.name)(error))
}

/// Routes to pods over veths: destination and device.
///
/// # Errors
/// What the kernel answers.
pub fn pod_routes(netlink: &mut Netlink, tunnel: u32) -> Result<Vec<(Ipv4Net, u32)>, LinksError> {
    Ok(ours(netlink)?
        .iter()
        .filter_map(|message| Some((destination(message)?, interface(message)?)))
        .filter(|(_, index)| *index != tunnel)
        .collect())
}

/// Whether the host has our route to a pod over the device of this index. The kernel looks it up as for a packet (`inet_rtm_getroute` in
/// net/ipv4/route.c), so that this costs the same with tens of thousands of other routes. Only where that finds another, as it does with
/// policy rules that lead to another table first, ours are listed.
///
/// # Errors
/// What the kernel answers to the listing.
pub fn has_pod_route(netlink: &mut Netlink, tunnel: u32, address: Ipv4Addr, index: u32) -> Result<bool, LinksError> {
    let prefix = Ipv4Net::from(address);
    if let Some(found) = look_up(netlink, address)
        && (destination(&found), interface(&found)) == (Some(prefix), Some(index))
        && is_ours(&found)
    {
        return Ok(true);
    }
    Ok(pod_routes(netlink, tunnel)?.contains(&(prefix, index)))
}

/// The route by which a packet to this address goes, if it goes by one, with the table that has it.
pub(super) fn look_up(netlink: &mut Netlink, address: Ipv4Addr) -> Option<RouteMessage> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    query.header.destination_prefix_length = 32;
    query.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
    query.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(address))];
    match netlink.get(RouteNetlinkMessage::GetRoute(query)) {
        Ok(RouteNetlinkMessage::NewRoute(found)) => Some(found),
        _ => None,
    }
}

/// Removes every route with our protocol number; how many.
///
/// # Errors
/// What the kernel answers.
pub fn remove_all(netlink: &mut Netlink) -> Result<usize, LinksError> {
    let routes = ours(netlink)?;
    let mut removed = 0;
    for message in routes {
        let object = destination(&message).map(|prefix| prefix.to_string()).unwrap_or_default();
        match netlink.request(RouteNetlinkMessage::DelRoute(message), 0) {
            Ok(()) => removed += 1,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(netlink_error("remove the route to", object)(error)),
        }
    }
    Ok(removed)
}

/// A route of others over one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OthersRoute {
    /// Where it leads.
    pub prefix: Ipv4Net,
    /// The next hop, reached directly whatever the device's addresses are.
    pub gateway: Ipv4Addr,
}

/// Routes with a gateway over a device that are not ours.
///
/// # Errors
/// What the kernel answers.
pub fn of_others(netlink: &mut Netlink, index: u32) -> Result<Vec<OthersRoute>, LinksError> {
    Ok(table(netlink)?
        .iter()
        .filter(|message| !is_ours(message) && interface(message) == Some(index))
        .filter_map(|message| Some(OthersRoute { prefix: destination(message)?, gateway: gateway(message)? }))
        .collect())
}

/// Puts routes of others back in place of ours, each in one step.
///
/// # Errors
/// What the kernel answers.
pub fn give_back(netlink: &mut Netlink, index: u32, routes: &[OthersRoute]) -> Result<(), LinksError> {
    let messages = routes.iter().map(|route| {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(route.prefix.addr(), route.prefix.prefix_len())
            .gateway(route.gateway)
            .output_interface(index)
            .onlink()
            .build();
        (RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    });
    netlink.pipeline(messages).map_err(|(at, error)| {
        netlink_error("put back the route to", routes.get(at).map(|route| route.prefix.to_string()).unwrap_or_default())(error)
    })
}

/// All routes of the main table.
pub(super) fn table(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, LinksError> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    query.header.table = RouteHeader::RT_TABLE_MAIN;
    let answers = netlink.dump(RouteNetlinkMessage::GetRoute(query)).map_err(netlink_error("list", "routes"))?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| if let RouteNetlinkMessage::NewRoute(message) = answer { Some(message) } else { None })
        .collect())
}

pub(super) fn is_ours(message: &RouteMessage) -> bool {
    message.header.protocol == RouteProtocol::Other(PROTOCOL)
}

fn ours(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, LinksError> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    query.header.protocol = RouteProtocol::Other(PROTOCOL);
    query.header.table = RouteHeader::RT_TABLE_MAIN;
    let answers = match netlink.dump(RouteNetlinkMessage::GetRoute(query)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Vec::new(),
        answers => answers.map_err(netlink_error("list", "routes"))?,
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| if let RouteNetlinkMessage::NewRoute(message) = answer { Some(message) } else { None })
        .filter(is_ours)
        .collect())
}

pub(super) fn destination(message: &RouteMessage) -> Option<Ipv4Net> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Net::new(address, message.header.destination_prefix_length).ok()
}

pub(super) fn interface(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None })
}

pub(super) fn gateway(message: &RouteMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

fn source(message: &RouteMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

fn neighbour(index: u32, address: Ipv4Addr, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.bytes.to_vec()),
    ];
    message
}
