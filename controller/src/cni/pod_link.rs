//! The pod's end of its veth pair: made, looked at and removed from inside the pod's network namespace.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

use futures::TryStreamExt;
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_core::ErrorMessage,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkFlags, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMessage},
    },
};
use shunt_common::{config::link_local, net::Mac};

use super::protocol::PrevInterface;
use crate::socket::protocol::PodAdded;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("cannot {action}: {source}{}", hint(.source))]
    Kernel { action: String, source: io::Error },
    #[error("the interface {0} is gone again right after it was made")]
    Gone(String),
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM) => " (the plugin needs CAP_SYS_ADMIN and CAP_NET_ADMIN)",
        Some(libc::EOPNOTSUPP) => " (is the kernel built with CONFIG_VETH?)",
        _ => "",
    }
}

fn failed(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let action = action.into();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        LinkError::Kernel { action, source }
    }
}

/// Whether an interface of this name is there.
pub(super) async fn exists(handle: &Handle, ifname: &str) -> Result<bool, LinkError> {
    Ok(find(handle, ifname).await?.is_some())
}

/// Makes the pair, its host's end down in the namespace of `node`, and configures the pod's end. Leaves nothing if it fails.
pub(super) async fn create(handle: &Handle, ifname: &str, wanted: &PodAdded, node: &File) -> Result<(), LinkError> {
    let host_end = LinkMessageBuilder::<LinkUnspec>::new()
        .name(wanted.host_interface.clone())
        .address(wanted.host_mac.bytes.to_vec())
        .mtu(wanted.mtu)
        .setns_by_fd(node.as_raw_fd())
        .build();
    let pair = LinkVeth::new(ifname, &wanted.host_interface)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(host_end)))
        .address(wanted.pod_mac.bytes.to_vec())
        .mtu(wanted.mtu)
        .build();
    let action = format!("create the interfaces {ifname} and {}", wanted.host_interface);
    handle.link().add(pair).execute().await.map_err(failed(action))?;
    let configured = configure(handle, ifname, wanted).await;
    if configured.is_err()
        && let Err(error) = delete(handle, ifname).await
    {
        eprintln!("shunt: after a failure: {error}");
    }
    configured
}

async fn configure(handle: &Handle, ifname: &str, wanted: &PodAdded) -> Result<(), LinkError> {
    let lo = LinkUnspec::new_with_name("lo").up().build();
    handle.link().set(lo).execute().await.map_err(failed("bring lo up"))?;
    let index = find(handle, ifname).await?.ok_or_else(|| LinkError::Gone(ifname.to_owned()))?.header.index;
    let gateway = IpAddr::V4(wanted.gateway);
    let address = handle.address().add(index, wanted.address.into(), 32).execute().await;
    address.map_err(failed(format!("set the address {} on {ifname}", wanted.address)))?;
    // IPv6 is not carried: without a link-local address the pod's kernel doesn't even try.
    let no_ipv6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let up = LinkUnspec::new_with_index(index).up().append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![no_ipv6])).build();
    if handle.link().set(up).execute().await.is_err() {
        // A kernel without IPv6 refuses the attribute, and has no need of it.
        let up = LinkUnspec::new_with_index(index).up().build();
        handle.link().set(up).execute().await.map_err(failed(format!("bring {ifname} up")))?;
    }
    let neighbour = handle.neighbours().add(index, gateway).link_layer_address(&wanted.host_mac.bytes).execute().await;
    neighbour.map_err(failed(format!("set the neighbour {gateway} on {ifname}")))?;
    let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(wanted.gateway).onlink().build();
    handle.route().add(route).execute().await.map_err(failed(format!("set the default route via {gateway} on {ifname}")))
}

/// Removes the pair; no error if there is none, or if it goes with its other end this very moment.
pub(super) async fn delete(handle: &Handle, ifname: &str) -> Result<(), LinkError> {
    let Some(link) = find(handle, ifname).await? else { return Ok(()) };
    match handle.link().del(link.header.index).execute().await {
        Err(rtnetlink::Error::NetlinkError(message)) if is_no_device(&message) => Ok(()),
        outcome => outcome.map_err(failed(format!("remove the interface {ifname}"))),
    }
}

fn is_no_device(message: &ErrorMessage) -> bool {
    message.to_io().raw_os_error() == Some(libc::ENODEV)
}

async fn find(handle: &Handle, ifname: &str) -> Result<Option<LinkMessage>, LinkError> {
    match handle.link().get().match_name(ifname).execute().try_next().await {
        Ok(link) => Ok(link),
        Err(rtnetlink::Error::NetlinkError(message)) if is_no_device(&message) => Ok(None),
        Err(error) => Err(failed(format!("look for the interface {ifname}"))(error)),
    }
}

/// What is found in a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodState {
    up: bool,
    mac: Option<Mac>,
    mtu: Option<u32>,
    addresses: Vec<Ipv4Addr>,
    /// Gateways of default routes out of this interface; `None` for one without.
    default_routes: Vec<Option<Ipv4Addr>>,
    permanent_neighbours: Vec<(Ipv4Addr, Mac)>,
}

/// Looks at the pod's end; `None` if it isn't there.
pub(super) async fn inspect(handle: &Handle, ifname: &str) -> Result<Option<PodState>, LinkError> {
    let Some(link) = find(handle, ifname).await? else { return Ok(None) };
    let index = link.header.index;
    let mut state = PodState { up: link.header.flags.contains(LinkFlags::Up), ..PodState::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => state.mac = mac(bytes),
            LinkAttribute::Mtu(mtu) => state.mtu = Some(*mtu),
            _ => {}
        }
    }
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Some(address) = addresses.try_next().await.map_err(failed(format!("read the addresses of {ifname}")))? {
        state.addresses.extend(ipv4_of(&address));
    }
    let mut routes = handle.route().get(RouteMessageBuilder::<Ipv4Addr>::new().build()).execute();
    while let Some(route) = routes.try_next().await.map_err(failed("read the pod's routes"))? {
        state.default_routes.extend(default_route(&route, index));
    }
    let mut neighbours = handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
    while let Some(neighbour) = neighbours.try_next().await.map_err(failed("read the pod's neighbours"))? {
        if neighbour.header.ifindex != index || neighbour.header.state != NeighbourState::Permanent {
            continue;
        }
        let (mut ip, mut hardware) = (None, None);
        for attribute in &neighbour.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => ip = Some(*address),
                NeighbourAttribute::LinkLayerAddress(bytes) => hardware = mac(bytes),
                _ => {}
            }
        }
        state.permanent_neighbours.extend(ip.zip(hardware));
    }
    Ok(Some(state))
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok().map(|bytes| Mac { bytes })
}

fn ipv4_of(address: &AddressMessage) -> Option<Ipv4Addr> {
    address.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}

fn default_route(route: &RouteMessage, index: u32) -> Option<Option<Ipv4Addr>> {
    let leaves_here = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::Oif(oif) if *oif == index));
    let gateway = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
        _ => None,
    });
    (route.header.destination_prefix_length == 0 && leaves_here).then_some(gateway)
}

/// What a CHECK is held against. Later plugins of a chain may change MTU and routes; what the result says then holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected<'a> {
    pub(super) ifname: &'a str,
    pub(super) wanted: &'a PodAdded,
    /// The pod's interface in `prevResult`.
    pub(super) reported: &'a PrevInterface,
    /// Whether `prevResult` has our default route.
    pub(super) default_route: bool,
}

impl Expected<'_> {
    /// What is not as it should be, for people; nothing if all is well.
    pub(super) fn differences(&self, found: Option<&PodState>) -> Vec<String> {
        let (ifname, wanted) = (self.ifname, self.wanted);
        let Some(found) = found else { return vec![format!("the pod has no interface {ifname}")] };
        let mut differences = Vec::new();
        if !found.up {
            differences.push(format!("{ifname} is down"));
        }
        let mac = self.reported.mac.unwrap_or(wanted.pod_mac);
        if found.mac != Some(mac) {
            let is = found.mac.map_or("none".to_owned(), |mac| mac.to_string());
            differences.push(format!("the MAC of {ifname} is {is}, not {mac}"));
        }
        let mtu = self.reported.mtu.unwrap_or(wanted.mtu);
        if found.mtu != Some(mtu) {
            differences.push(format!("the MTU of {ifname} is {}, not {mtu}", found.mtu.unwrap_or(0)));
        }
        if !found.addresses.contains(&wanted.address) {
            differences.push(format!("{ifname} has not the address {}", wanted.address));
        }
        if self.default_route && !found.default_routes.contains(&Some(wanted.gateway)) {
            differences.push(format!("the default route via {} is missing", wanted.gateway));
        }
        // A pod that was taken over has another network's gateway, which answers for itself.
        let is_our_gateway = wanted.gateway == Ipv4Addr::from(link_local::GATEWAY);
        if is_our_gateway && !found.permanent_neighbours.contains(&(wanted.gateway, wanted.host_mac)) {
            differences.push(format!("the permanent neighbour {} at {} is missing", wanted.gateway, wanted.host_mac));
        }
        differences
    }
}
