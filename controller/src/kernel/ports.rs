//! A bridge of others and what hangs on it: its ports, and whose interface is at the other end of each.
//!
//! The kernel itself says which interface of which namespace a veth leads to (`IFLA_LINK`, `IFLA_LINK_NETNSID`): nothing is concluded from
//! names or from what was learned from packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        linux::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkMessage},
    nsid::{NsidAttribute, NsidMessage},
};
use shunt_common::net::Mac;

use super::{
    links::{self, LinksError, netlink_error},
    netlink::Netlink,
};

/// A port of a bridge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Index of the other end, in the namespace with this number.
    peer: Option<(u32, i32)>,
}

/// The other end of a port, in a namespace of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// A path of its namespace.
    pub netns: PathBuf,
    /// Its name there.
    pub ifname: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Whether it has an IPv6 address besides the link-local one.
    pub has_ipv6: bool,
}

/// The ports of a bridge.
///
/// # Errors
/// What the kernel answers.
pub fn of_bridge(netlink: &mut Netlink, bridge: u32) -> Result<Vec<Port>, LinksError> {
    let answers =
        netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).map_err(netlink_error("list", "network devices"))?;
    let port = |message: &LinkMessage| {
        let (mut name, mut controller, mut peer, mut netns) = (String::new(), None, None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(value) => name.clone_from(value),
                LinkAttribute::Controller(index) => controller = Some(*index),
                LinkAttribute::Link(index) => peer = Some(*index),
                LinkAttribute::LinkNetNsId(id) => netns = Some(*id),
                _ => {}
            }
        }
        (controller == Some(bridge)).then(|| Port { index: message.header.index, name, peer: peer.zip(netns) })
    };
    Ok(answers
        .iter()
        .filter_map(|answer| if let RouteNetlinkMessage::NewLink(message) = answer { port(message) } else { None })
        .collect())
}

/// What is at the other end of each port, by the port's index, as far as its namespace is one of those at `paths`.
///
/// # Errors
/// What the kernel answers, unless it is that a namespace has gone meanwhile.
pub fn pod_ends(netlink: &mut Netlink, ports: &[Port], paths: &[PathBuf]) -> Result<BTreeMap<u32, PodEnd>, LinksError> {
    let wanted: BTreeSet<i32> = ports.iter().filter_map(|port| port.peer).map(|(_, netns)| netns).collect();
    let mut seen = BTreeSet::new();
    let mut ends = BTreeMap::new();
    for path in paths {
        let Ok(file) = File::open(path) else { continue };
        let Ok(metadata) = file.metadata() else { continue };
        if !seen.insert((metadata.st_dev(), metadata.st_ino())) {
            continue;
        }
        let Some(id) = number_of(netlink, &file).filter(|id| wanted.contains(id)) else { continue };
        let inside = look_inside(&file, path)?;
        for port in ports {
            if let Some((index, _)) = port.peer.filter(|(_, netns)| *netns == id)
                && let Some(end) = inside.get(&index)
            {
                ends.insert(port.index, end.clone());
            }
        }
    }
    Ok(ends)
}

/// The number by which this namespace knows another, if it does; a file that is no namespace has none.
fn number_of(netlink: &mut Netlink, file: &File) -> Option<i32> {
    let mut query = NsidMessage::default();
    query.attributes.push(NsidAttribute::Fd(u32::try_from(file.as_raw_fd()).ok()?));
    let Ok(RouteNetlinkMessage::NewNsId(answer)) = netlink.get(RouteNetlinkMessage::GetNsId(query)) else { return None };
    answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    })
}

/// The interfaces of a namespace, by index, looked at from a thread of its own inside.
fn look_inside(netns: &File, path: &Path) -> Result<BTreeMap<u32, PodEnd>, LinksError> {
    let enter = || -> Result<BTreeMap<u32, PodEnd>, LinksError> {
        let failed = |action| netlink_error(action, path.display().to_string());
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from).map_err(failed("enter"))?;
        let mut netlink = Netlink::open().map_err(failed("open a netlink socket in"))?;
        let links = links::list(&mut netlink)?;
        let answers = netlink
            .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
            .map_err(failed("list the addresses in"))?;
        let mut ends = BTreeMap::new();
        for link in links {
            let mut end = PodEnd {
                netns: path.to_owned(),
                ifname: link.name,
                mac: link.mac.unwrap_or(Mac::ZERO),
                addresses: Vec::new(),
                has_ipv6: false,
            };
            for answer in &answers {
                if let RouteNetlinkMessage::NewAddress(message) = answer
                    && message.header.index == link.index
                {
                    note_address(message, &mut end);
                }
            }
            ends.insert(link.index, end);
        }
        Ok(ends)
    };
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter)
            .map_err(netlink_error("look into", path.display().to_string()))?;
        worker
            .join()
            .unwrap_or_else(|_| Err(netlink_error("look into", path.display().to_string())(io::ErrorKind::Other.into())))
    })
}

fn note_address(message: &AddressMessage, end: &mut PodEnd) {
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => end.addresses.push(*address),
            AddressAttribute::Address(IpAddr::V6(_)) if message.header.scope == AddressScope::Universe => end.has_ipv6 = true,
            _ => {}
        }
    }
}
