//! Network devices: finding the underlay, keeping `shunt0`, setting up the host side of a pod, listing what is ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, UdpSocket},
};

use ipnet::Ipv4Net;
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    },
};
use shunt_common::net::Mac;

use super::{headroom, netlink::Netlink};

/// The name of the idle VXLAN device.
pub const TUNNEL: &str = "shunt0";

/// What VXLAN adds to a packet: outer IPv4, UDP and VXLAN headers, inner Ethernet header (RFC 7348).
pub const ENCAPSULATION: u32 = 50;

/// The smallest MTU that IPv4 allows a host to assume (RFC 791), and the kernel an IPv4 device to have is smaller still.
const MTU_MIN: u32 = 576;

/// Why a device cannot be found or set up.
#[derive(Debug, thiserror::Error)]
pub enum LinksError {
    /// The name given is no interface's.
    #[error("interface {name} does not exist in the agent's network namespace; it has: {}", present.join(", "))]
    UnknownInterface {
        /// The name.
        name: String,
        /// Interfaces there are.
        present: Vec<String>,
    },
    /// No interface has the node's address.
    #[error("no interface holds the node's InternalIP {address}: add it to one, or correct status.addresses of this Node")]
    NoUnderlay {
        /// The node's address.
        address: Ipv4Addr,
    },
    /// The underlay's MTU leaves no room.
    #[error("the underlay {name} has MTU {mtu}: {ENCAPSULATION} bytes for the tunnel leave less than {MTU_MIN} for packets")]
    MtuTooSmall {
        /// Underlay.
        name: String,
        /// Its MTU.
        mtu: u32,
    },
    /// A device with a name of ours is somebody else's.
    #[error("a device named {0} exists and is not what shunt makes of that name: remove or rename it")]
    Foreign(&'static str),
    /// No driver.
    #[error("this kernel has no VXLAN devices: load the module vxlan, or boot a kernel with CONFIG_VXLAN")]
    NoVxlan,
    /// The kernel refuses.
    #[error("cannot {action} {object}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// On what.
        object: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

pub(super) fn netlink_error(action: &'static str, object: impl Into<String>) -> impl FnOnce(io::Error) -> LinksError {
    let object = object.into();
    move |source| LinksError::Netlink { action, object, source }
}

/// A device as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index in this network namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Its driver.
    pub kind: Kind,
}

/// What drives a device, as far as we care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair.
    Veth,
    /// A VXLAN device.
    Vxlan {
        /// Network identifier; 0 where each packet says its own.
        vni: u32,
        /// UDP port.
        port: u16,
        /// Whether it takes its tunnel from each packet's metadata.
        external: bool,
    },
    /// A bridge.
    Bridge,
    /// Anything else.
    Other,
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: Kind::Other,
        };
        let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                // The loopback device has six bytes too.
                LinkAttribute::Address(bytes) if is_ethernet => {
                    link.mac = bytes.as_slice().try_into().ok().map(|bytes| Mac { bytes });
                }
                LinkAttribute::LinkInfo(infos) => link.kind = Kind::of(infos),
                _ => {}
            }
        }
        link
    }
}

impl Kind {
    fn of(infos: &[LinkInfo]) -> Self {
        let mut kind = Self::Other;
        for info in infos {
            match info {
                LinkInfo::Kind(InfoKind::Veth) => kind = Self::Veth,
                LinkInfo::Kind(InfoKind::Bridge) => kind = Self::Bridge,
                LinkInfo::Data(InfoData::Vxlan(data)) => {
                    let port = data.iter().find_map(|info| if let InfoVxlan::Port(port) = info { Some(*port) } else { None });
                    let external = data.iter().any(|info| matches!(info, InfoVxlan::CollectMetadata(true)));
                    let vni = data.iter().find_map(|info| if let InfoVxlan::Id(vni) = info { Some(*vni) } else { None });
                    kind = Self::Vxlan { vni: vni.unwrap_or(0), port: port.unwrap_or(0), external };
                }
                _ => {}
            }
        }
        kind
    }
}

/// All devices of this network namespace.
///
/// # Errors
/// What the kernel answers.
pub fn list(netlink: &mut Netlink) -> Result<Vec<Link>, LinksError> {
    let answers =
        netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).map_err(netlink_error("list", "network devices"))?;
    Ok(answers
        .iter()
        .filter_map(|answer| if let RouteNetlinkMessage::NewLink(message) = answer { Some(Link::of(message)) } else { None })
        .collect())
}

/// The device of this name.
///
/// # Errors
/// What the kernel answers, unless it is that there is none.
pub fn by_name(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, LinksError> {
    get(netlink, LinkUnspec::new_with_name(name)).map_err(netlink_error("look up", name))
}

pub(super) fn by_index(netlink: &mut Netlink, index: u32) -> Result<Option<Link>, LinksError> {
    get(netlink, LinkUnspec::new_with_index(index)).map_err(netlink_error("look up", format!("interface {index}")))
}

fn get(netlink: &mut Netlink, query: LinkMessageBuilder<LinkUnspec>) -> io::Result<Option<Link>> {
    match netlink.get(RouteNetlinkMessage::GetLink(query.build())) {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(Link::of(&message))),
        Ok(_) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An IPv4 address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The device's index.
    pub index: u32,
    /// The address.
    pub address: Ipv4Addr,
    /// Leading bits that its network has.
    pub prefix_len: u8,
}

/// All IPv4 addresses of this network namespace.
///
/// # Errors
/// What the kernel answers.
pub fn addresses(netlink: &mut Netlink) -> Result<Vec<HostAddress>, LinksError> {
    let mut query = AddressMessage::default();
    query.header.family = AddressFamily::Inet;
    let answers = netlink.dump(RouteNetlinkMessage::GetAddress(query)).map_err(netlink_error("list", "addresses"))?;
    let local = |message: &AddressMessage| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => {
                Some(HostAddress { index: message.header.index, address: *address, prefix_len: message.header.prefix_len })
            }
            _ => None,
        })
    };
    Ok(answers
        .iter()
        .filter_map(|answer| if let RouteNetlinkMessage::NewAddress(message) = answer { local(message) } else { None })
        .collect())
}

/// The interface towards other nodes: the one named, or the one that holds the node's address.
///
/// # Errors
/// There is none, nothing holds the node's address, or the MTU is too small for a tunnel.
pub fn find_underlay(netlink: &mut Netlink, name: Option<&str>, node_ip: Ipv4Addr) -> Result<Link, LinksError> {
    let holder = addresses(netlink)?.into_iter().find(|holder| holder.address == node_ip);
    // Not all devices: a node has hundreds of pods.
    let link = match (name, holder) {
        (Some(name), holder) => match by_name(netlink, name)? {
            Some(link) => holder.map(|_| link),
            None => {
                let present = list(netlink)?.into_iter().filter(|link| !is_ours(link)).map(|link| link.name).collect();
                return Err(LinksError::UnknownInterface { name: name.to_owned(), present });
            }
        },
        (None, Some(holder)) => by_index(netlink, holder.index)?,
        (None, None) => None,
    };
    let link = link.ok_or(LinksError::NoUnderlay { address: node_ip })?;
    if link.mtu < ENCAPSULATION + MTU_MIN {
        return Err(LinksError::MtuTooSmall { name: link.name, mtu: link.mtu });
    }
    Ok(link)
}

/// The other interfaces by which clients of Services and answers to pods may come: Ethernet devices that are up and hold an address that is of
/// use beyond the link, and not of the node's pod range, which is a pod bridge's. Index by name.
///
/// # Errors
/// What the kernel answers.
pub fn other_wires(
    netlink: &mut Netlink,
    underlay: &Link,
    pod_range: Option<Ipv4Net>,
) -> Result<BTreeMap<String, u32>, LinksError> {
    // Only devices with an address: a node has hundreds of pods.
    let holders: BTreeSet<u32> =
        addresses(netlink)?.iter().filter(|held| leads_on(held.address, pod_range)).map(|held| held.index).collect();
    let mut wires = BTreeMap::new();
    for index in holders.into_iter().filter(|index| *index != underlay.index) {
        if let Some(link) = by_index(netlink, index)?.filter(can_be_wire) {
            wires.insert(link.name, link.index);
        }
    }
    Ok(wires)
}

/// Whether an address is of use beyond its link, and not a pod bridge's.
fn leads_on(address: Ipv4Addr, pod_range: Option<Ipv4Net>) -> bool {
    !address.is_loopback() && !address.is_link_local() && pod_range.is_none_or(|range| !range.contains(&address))
}

fn can_be_wire(link: &Link) -> bool {
    link.up && link.mac.is_some() && !is_ours(link) && !matches!(link.kind, Kind::Vxlan { .. })
}

/// What `shunt0` has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// VXLAN's UDP port.
    pub port: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// The node's VTEP MAC.
    pub mac: Mac,
}

/// `shunt0` as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its index.
    pub index: u32,
    /// Whether it was made just now, so that routes over it have to be written anew.
    pub created: bool,
    /// Why tunnel packets get no GRO, if they don't: the device has another port then.
    pub without_gro: Option<String>,
}

/// Ports after the tunnel's own that are tried when that is taken.
const SPARE_PORTS: u16 = 32;

/// Makes `shunt0` what it has to be, keeping it, and its routes, where it is that already.
///
/// A tunnel port that something else has bound costs only throughput: the device then takes another port, and the outcome says so.
///
/// # Errors
/// The kernel refuses, or the name is taken by something else.
pub fn ensure_tunnel(netlink: &mut Netlink, spec: &TunnelSpec) -> Result<Tunnel, LinksError> {
    if let Some(link) = by_name(netlink, TUNNEL)? {
        let Kind::Vxlan { port, external, .. } = link.kind else { return Err(LinksError::Foreign(TUNNEL)) };
        if external && (port == spec.port || !is_free(spec.port)) {
            if link.mtu != spec.mtu || link.mac != Some(spec.mac) || !link.up {
                let message =
                    LinkUnspec::new_with_index(link.index).mtu(spec.mtu).address(spec.mac.bytes.to_vec()).up().build();
                netlink.request(RouteNetlinkMessage::SetLink(message), 0).map_err(netlink_error("set up", TUNNEL))?;
            }
            let without_gro = if port == spec.port { None } else { without_gro(netlink, spec.port)? };
            return Ok(Tunnel { index: link.index, created: false, without_gro });
        }
        delete(netlink, link.index, TUNNEL)?;
    }
    let mut is_taken = false;
    let mut outcome = create(netlink, vxlan(spec));
    for offset in 1..=SPARE_PORTS {
        match &outcome {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EEXIST)) => {
                is_taken = true;
                outcome = create(netlink, vxlan(&TunnelSpec { port: spec.port.wrapping_add(offset), ..*spec }));
            }
            _ => break,
        }
    }
    match outcome {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Err(LinksError::NoVxlan),
        outcome => outcome.map_err(netlink_error("create", TUNNEL))?,
    }
    let link = by_name(netlink, TUNNEL)?.ok_or_else(|| netlink_error("create", TUNNEL)(io::ErrorKind::NotFound.into()))?;
    let without_gro = if is_taken { without_gro(netlink, spec.port)? } else { None };
    Ok(Tunnel { index: link.index, created: true, without_gro })
}

/// Why tunnel packets get no GRO although the tunnel's port is taken: another VXLAN device's socket merges them as ours would.
fn without_gro(netlink: &mut Netlink, wanted: u16) -> Result<Option<String>, LinksError> {
    let merges = |link: &Link| link.up && matches!(link.kind, Kind::Vxlan { port, .. } if port == wanted);
    Ok(if list(netlink)?.iter().any(merges) { None } else { Some(port_taken(wanted)) })
}

/// Whether a UDP port can be bound now.
fn is_free(port: u16) -> bool {
    UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

fn port_taken(port: u16) -> String {
    format!(
        "UDP port {port} is bound by something that is no VXLAN device, so that tunnel packets get no GRO and bulk transfers \
         are slower: free the port and restart the agent"
    )
}

fn vxlan(spec: &TunnelSpec) -> LinkMessage {
    let data = vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Port(spec.port), InfoVxlan::Learning(false)];
    LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Vxlan)
        .set_info_data(InfoData::Vxlan(data))
        .name(TUNNEL)
        .mtu(spec.mtu)
        .address(spec.mac.bytes.to_vec())
        .arp(false)
        .up()
        .build()
}

fn create(netlink: &mut Netlink, message: LinkMessage) -> io::Result<()> {
    netlink.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes a device; one that is gone already is no error.
///
/// # Errors
/// What the kernel answers.
pub fn delete(netlink: &mut Netlink, index: u32, name: &str) -> Result<(), LinksError> {
    match netlink.request(RouteNetlinkMessage::DelLink(LinkUnspec::new_with_index(index).build()), 0) {
        Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(netlink_error("remove", name)(error)),
        _ => Ok(()),
    }
}

fn is_ours(link: &Link) -> bool {
    link.name == TUNNEL || is_pod_side(link) || headroom::is_ours(link)
}

/// Whether a device is the host side of a pod of ours, by name and kind.
#[must_use]
pub fn is_pod_side(link: &Link) -> bool {
    link.kind == Kind::Veth
        && link
            .name
            .strip_prefix("shunt")
            .is_some_and(|rest| rest.len() == 10 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wire_is_an_ethernet_device_that_is_up_with_an_address_of_use_elsewhere() {
        let mac = Some(Mac { bytes: [2, 0, 0, 0, 0, 1] });
        let link = Link { index: 3, name: "eth1".to_owned(), mtu: 1500, mac, up: true, kind: Kind::Other };
        assert!(can_be_wire(&link));
        assert!(can_be_wire(&Link { kind: Kind::Bridge, ..link.clone() }), "a bridge of containers");
        assert!(!can_be_wire(&Link { up: false, ..link.clone() }));
        assert!(!can_be_wire(&Link { mac: None, ..link.clone() }), "no Ethernet");
        assert!(!can_be_wire(&Link { name: TUNNEL.to_owned(), ..link.clone() }));
        assert!(!can_be_wire(&Link { kind: Kind::Vxlan { vni: 1, port: 8472, external: false }, ..link.clone() }));
        let range = Some("10.244.1.0/24".parse().unwrap());
        assert!(leads_on([198, 51, 100, 1].into(), range) && leads_on([10, 244, 2, 1].into(), range));
        for (address, whose) in
            [([10, 244, 1, 1], "a pod bridge's"), ([169, 254, 20, 10], "the link's"), ([127, 0, 0, 2], "loopback")]
        {
            assert!(!leads_on(address.into(), range), "{whose}");
        }
    }

    #[test]
    fn only_ethernet_devices_have_a_mac() {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Address(vec![0; 6]));
        message.header.link_layer_type = LinkLayerType::Loopback;
        assert_eq!(Link::of(&message).mac, None);
        message.header.link_layer_type = LinkLayerType::Ether;
        assert_eq!(Link::of(&message).mac, Some(Mac::ZERO));
    }

    #[test]
    fn only_our_veths_are_ours() {
        let link = |name: &str, kind| Link { index: 5, name: name.to_owned(), mtu: 1450, mac: None, up: true, kind };
        assert!(is_pod_side(&link("shunt0123456789", Kind::Veth)));
        assert!(!is_pod_side(&link("shunt0123456789", Kind::Other)), "not a veth");
        assert!(!is_pod_side(&link("shunt0", Kind::Veth)), "too short");
        assert!(!is_pod_side(&link("shuntlab-node", Kind::Veth)), "not hexadecimal");
    }
}
