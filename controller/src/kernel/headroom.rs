//! Room for the tunnel's headers in front of what pods send.
//!
//! A packet is allocated with as much room in front as the device asks for that it leaves by, and a veth asks for none: the tunnel's
//! headers then cost each datagram a new head (`pskb_expand_head`; TCP's packets have room for the largest headers there are). The one
//! kind of device that asks a veth for room in others' stead is a bridge (`netdev_set_rx_headroom` in net/bridge/br_if.c): each port asks
//! for what the neediest of all needs. So the host sides of pods are ports of a bridge, and so is a VXLAN device that is never up.
//!
//! Nothing is bridged. Programs take what pods send before the bridge sees it (`sch_handle_ingress` comes before the `rx_handler` in
//! net/core/dev.c), and what they leave to the host's stack comes in by the bridge instead of the pod's own interface. Ports are isolated,
//! teach the bridge nothing and get no floods. Without all this the dataplane does the same, for more CPU.

use std::io;

use rtnetlink::{
    LinkMessageBuilder, LinkUnspec,
    packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        link::{InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVxlan, LinkMessage},
        neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};
use shunt_common::net::Mac;

use super::{
    links::{self, Kind, Link, LinksError, netlink_error},
    netlink::Netlink,
    routes,
};

/// The bridge whose ports are the host sides of pods.
pub const BRIDGE: &str = "shunt-pods";

/// The port that needs the room.
const NEEDY: &str = "shunt-room";

/// The UDP port of a device that is never up and so binds none: Discard (RFC 863).
const UNUSED_PORT: u16 = 9;

/// Makes the bridge and its needy port, as far as they are missing; the bridge's index. It answers for the host in place of its ports:
/// so it has their MAC, and needs their settings ([`super::sysctl::of_pod`]).
///
/// # Errors
/// The kernel refuses, as one without bridges does, or a name is taken by something else.
pub fn ensure(netlink: &mut Netlink, mac: Mac) -> Result<u32, LinksError> {
    let bridge = find(netlink, BRIDGE, Kind::Bridge)?;
    match &bridge {
        None => create(netlink, BRIDGE, self::bridge(mac))?,
        Some(link) if link.mac != Some(mac) || !link.up => {
            let message = LinkUnspec::new_with_index(link.index).address(mac.bytes.to_vec()).up().build();
            netlink.request(RouteNetlinkMessage::SetLink(message), 0).map_err(netlink_error("set up", BRIDGE))?;
        }
        Some(_) => {}
    }
    let bridge = match bridge {
        Some(link) => link.index,
        None => find(netlink, BRIDGE, Kind::Bridge)?.ok_or_else(|| gone(BRIDGE))?.index,
    };
    if find(netlink, NEEDY, NEEDY_KIND)?.is_none() {
        create(netlink, NEEDY, needy())?;
    }
    let needy = find(netlink, NEEDY, NEEDY_KIND)?.ok_or_else(|| gone(NEEDY))?;
    join(netlink, bridge, needy.index, NEEDY, None)?;
    routes::add_host_end(netlink, bridge, BRIDGE)?;
    Ok(bridge)
}

/// Makes a pod's host side a port of the bridge, behind which the pod's own `mac` is found. Doing it again changes nothing.
///
/// # Errors
/// The kernel refuses, as it does the 1,024th port (`BR_MAX_PORTS` in net/bridge/br_private.h).
pub fn join(netlink: &mut Netlink, bridge: u32, port: u32, name: &str, mac: Option<Mac>) -> Result<(), LinksError> {
    let become_port = LinkUnspec::new_with_index(port).controller(bridge).build();
    let alone = vec![
        InfoBridgePort::Isolated(true),
        InfoBridgePort::Learning(false),
        InfoBridgePort::UnicastFlood(false),
        InfoBridgePort::MulticastFlood(false),
        InfoBridgePort::BroadcastFlood(false),
    ];
    let be_alone = LinkMessageBuilder::<LinkUnspec>::new()
        .index(port)
        .set_port_kind(InfoPortKind::Bridge)
        .set_port_data(InfoPortData::BridgePort(alone))
        .build();
    // A port's settings are taken once it is one, and not by `RTM_SETLINK`.
    let mut requests = vec![(RouteNetlinkMessage::SetLink(become_port), 0), (RouteNetlinkMessage::NewLink(be_alone), 0)];
    // The bridge itself speaks to a pod only to tell it the gateway's MAC, should it have lost that.
    requests.extend(mac.map(|mac| (RouteNetlinkMessage::NewNeighbour(behind(port, mac)), NLM_F_CREATE | NLM_F_REPLACE)));
    netlink.pipeline(requests).map_err(|(_, error)| netlink_error("bridge", name)(error))
}

/// Whether a device is one of these two, by name and kind.
#[must_use]
pub fn is_ours(link: &Link) -> bool {
    [(BRIDGE, Kind::Bridge), (NEEDY, NEEDY_KIND)].iter().any(|(name, kind)| link.name == *name && link.kind == *kind)
}

/// Removes both devices, if they are there; pods' host sides do without.
///
/// # Errors
/// What the kernel answers.
pub fn remove(netlink: &mut Netlink) -> Result<(), LinksError> {
    for link in links::list(netlink)?.iter().filter(|link| is_ours(link)) {
        links::delete(netlink, link.index, &link.name)?;
    }
    Ok(())
}

/// What the needy port is known by.
const NEEDY_KIND: Kind = Kind::Vxlan { vni: 0, port: UNUSED_PORT, external: true };

fn bridge(mac: Mac) -> LinkMessage {
    LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Bridge)
        .set_info_data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]))
        .name(BRIDGE)
        .address(mac.bytes.to_vec())
        .up()
        .build()
}

/// The entry of a bridge's forwarding table that `bridge fdb add MAC dev PORT master static` makes.
fn behind(port: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.bytes.to_vec())];
    message
}

fn needy() -> LinkMessage {
    let data = vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Port(UNUSED_PORT), InfoVxlan::Learning(false)];
    LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Vxlan)
        .set_info_data(InfoData::Vxlan(data))
        .name(NEEDY)
        .build()
}

fn create(netlink: &mut Netlink, name: &str, message: LinkMessage) -> Result<(), LinksError> {
    netlink.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL).map_err(netlink_error("create", name))
}

/// The device of this name, which has to be of this kind.
fn find(netlink: &mut Netlink, name: &'static str, kind: Kind) -> Result<Option<Link>, LinksError> {
    match links::by_name(netlink, name)? {
        Some(link) if link.kind != kind => Err(LinksError::Foreign(name)),
        found => Ok(found),
    }
}

fn gone(name: &str) -> LinksError {
    netlink_error("find again", name)(io::ErrorKind::NotFound.into())
}
