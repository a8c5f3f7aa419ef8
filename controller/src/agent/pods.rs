//! The host side of this node's pods: attached, mended, removed. Addresses are the book's business.

use std::{collections::BTreeMap, io};

use shunt_common::{
    address::{Address, kind},
    net::Ip4,
};

use crate::{
    attachment::{AttachmentKey, Pod},
    kernel::{
        bpf::BpfError,
        headroom,
        links::{self, Kind, Link, LinksError},
        netlink::Netlink,
        pins::{PinDir, PinError},
        routes::{self, PodSide},
        step::{Kernel as _, Step},
        sysctl::{self, SysctlError},
        table::TableError,
    },
    problem::with_causes,
    takeover::TakeoverError,
};

use super::{
    clients,
    dataplane::{Dataplane, DataplaneError, forget_pod},
};

/// Why a pod's host side is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum PodError {
    #[error(
        "the interface {0} does not exist on this node: the plugin makes it before it asks for this; delete and add the pod"
    )]
    NoInterface(String),
    #[error("the interface {0} exists but is no veth: it is not of shunt's making; remove or rename it")]
    NoVeth(String),
    #[error("{0}")]
    NotAsItShould(String),
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    #[error(transparent)]
    Kernel(#[from] BpfError),
    #[error(transparent)]
    Links(#[from] LinksError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
}

/// Attached pods with the indices of their host-side interfaces.
pub(super) type Attached = BTreeMap<AttachmentKey, (Pod, u32)>;

/// The entry of `ADDRESSES` for a pod.
fn entry(pod: &Pod, ifindex: u32) -> Address {
    Address { kind: kind::POD, ifindex, underlay: Ip4::UNSPECIFIED, mac: pod.mac, reserved: 0 }
}

/// The pods of the book whose host-side interface is there, with its index.
pub(super) fn survivors<'a>(
    netlink: &mut Netlink,
    pods: impl Iterator<Item = &'a Pod>,
) -> Result<Vec<(&'a Pod, u32)>, LinksError> {
    let links: BTreeMap<String, u32> =
        links::list(netlink)?.into_iter().filter(|link| link.kind == Kind::Veth).map(|link| (link.name, link.index)).collect();
    Ok(pods.filter_map(|pod| Some((pod, *links.get(&pod.host_interface)?))).collect())
}

fn host_side(dataplane: &mut Dataplane, name: &str) -> Result<Link, PodError> {
    match links::by_name(dataplane.kernel.netlink(), name)? {
        None => Err(PodError::NoInterface(name.to_owned())),
        Some(link) if link.kind != Kind::Veth => Err(PodError::NoVeth(name.to_owned())),
        Some(link) => Ok(link),
    }
}

/// Attaches a pod whose interface pair stands. The order is such that no packet leaves the pod before the programs guard it, nor
/// finds a way to it that is not there yet. Doing it again mends what is missing.
///
/// `cookie` is that of the pod's network namespace, if it is known.
pub(super) fn attach(dataplane: &mut Dataplane, pod: &Pod, cookie: Option<u64>) -> Result<u32, PodError> {
    let name = &pod.host_interface;
    let link = host_side(dataplane, name)?;
    dataplane.attach_pod(name, link.index)?;
    enter(dataplane, &[(pod, link.index)])?;
    clients::enter(&dataplane.kernel.maps().clients, pod, cookie)?;
    open(dataplane, pod, link.index)?;
    Ok(link.index)
}

/// Enters pods into the dataplane's map.
fn enter(dataplane: &mut Dataplane, pods: &[(&Pod, u32)]) -> Result<(), PodError> {
    let put = |(pod, ifindex): &(&Pod, u32)| Step::PutAddress { addr: pod.address.into(), address: entry(pod, *ifindex) };
    let steps: Vec<Step> = pods.iter().map(put).collect();
    Ok(dataplane.kernel.carry_out(&steps).map_err(|(_, error)| error)?)
}

/// Settings of a pod's host side, and last the interface up with its route. An adopted pod has its way through the bridge that it is on.
pub(super) fn open(dataplane: &mut Dataplane, pod: &Pod, ifindex: u32) -> Result<(), PodError> {
    if pod.is_adopted() {
        return Ok(());
    }
    sysctl::apply(&sysctl::of_pod(&pod.host_interface))?;
    if let Some(bridge) = dataplane.pods_bridge
        && let Err(error) = headroom::join(dataplane.kernel.netlink(), bridge, ifindex, &pod.host_interface, Some(pod.mac))
    {
        tracing::warn!(pod = %pod.attachment, "datagrams to other nodes cost more CPU than they need to: {}", with_causes(&error));
    }
    let node_ip = dataplane.kernel.via().node_ip;
    let side = PodSide { name: &pod.host_interface, index: ifindex, address: pod.address, mac: pod.mac, node_ip };
    Ok(routes::set_up_pod(dataplane.kernel.netlink(), &side)?)
}

/// Map entries of pods before their programs are put in force, and away with those of pods that are gone. They are
/// [opened](open) when the programs guard them.
pub(super) fn restore(
    dataplane: &mut Dataplane,
    pods: &[(&Pod, u32)],
    present: &BTreeMap<Ip4, Address>,
) -> Result<(), PodError> {
    enter(dataplane, pods)?;
    let is_ours = |addr: &Ip4| pods.iter().any(|(pod, _)| Ip4::from(pod.address) == *addr);
    let stale = present.iter().filter(|(addr, address)| address.kind == kind::POD && !is_ours(addr));
    let steps: Vec<Step> = stale.map(|(addr, _)| Step::DeleteAddress { addr: *addr }).collect();
    dataplane.kernel.carry_out(&steps).map_err(|(_, error)| error)?;
    let node_ip = dataplane.kernel.via().node_ip;
    Ok(clients::restore(&dataplane.kernel.maps().clients, node_ip, pods.iter().map(|(pod, _)| *pod))?)
}

/// What is wrong with a pod's host side, if anything.
pub(super) fn check(dataplane: &mut Dataplane, pod: &Pod) -> Result<u32, PodError> {
    let name = &pod.host_interface;
    let link = host_side(dataplane, name)?;
    if !link.up {
        return Err(PodError::NotAsItShould(format!("the interface {name} is down")));
    }
    if !dataplane.is_pod_attached(name, link.index)? {
        return Err(PodError::NotAsItShould(format!("the programs of {name} are not attached")));
    }
    if dataplane.kernel.maps().addresses.get(&pod.address.into())? != Some(entry(pod, link.index)) {
        return Err(PodError::NotAsItShould(format!(
            "the dataplane does not know {} as the address behind {name}",
            pod.address
        )));
    }
    if pod.is_adopted() {
        return Ok(link.index);
    }
    let tunnel = dataplane.config.tunnel_ifindex;
    if !routes::has_pod_route(dataplane.kernel.netlink(), tunnel, pod.address, link.index)? {
        return Err(PodError::NotAsItShould(format!("the host has no route to {} over {name}", pod.address)));
    }
    Ok(link.index)
}

/// Removes a pod's host side: the interface pair first, so that nothing is on its way any more when the rest goes. Works without a
/// dataplane; the map's entry then goes when one comes up.
pub(super) fn remove(
    dataplane: Option<&mut Dataplane>,
    dir: &PinDir,
    interface: &str,
    pod: Option<&Pod>,
) -> Result<(), PodError> {
    let is_adopted = pod.is_some_and(Pod::is_adopted);
    match dataplane {
        Some(dataplane) => {
            remove_link(dataplane.kernel.netlink(), interface, is_adopted)?;
            if let Some(pod) = pod {
                clients::forget(&dataplane.kernel.maps().clients, pod)?;
                let addr = pod.address.into();
                dataplane.kernel.carry_out(&[Step::DeleteAddress { addr }]).map_err(|(_, error)| error)?;
            }
        }
        None => remove_link(&mut Netlink::open().map_err(PodError::Netlink)?, interface, is_adopted)?,
    }
    Ok(forget_pod(dir, interface)?)
}

fn remove_link(netlink: &mut Netlink, interface: &str, is_adopted: bool) -> Result<(), PodError> {
    match links::by_name(netlink, interface)? {
        Some(link) if links::is_pod_side(&link) || is_adopted && link.kind == Kind::Veth => {
            Ok(links::delete(netlink, link.index, interface)?)
        }
        _ => Ok(()),
    }
}
