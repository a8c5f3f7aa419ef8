//! This node's devices and settings as they are, mended where they are not as the dataplane needs them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use shunt_common::{
    config::NodeConfig,
    net::{Ip4, Port},
};

use super::DataplaneError;
use crate::{
    agent::{own_node::OwnNode, xdp::Xdp},
    attachment::HOST_MAC,
    config::{AgentOptions, PortRange},
    install::{Record, settings},
    kernel::{
        headroom,
        links::{self, ENCAPSULATION, HostAddress, Link, TUNNEL, TunnelSpec},
        netlink::Netlink,
        routes::{HOST_END, Via},
        sysctl,
    },
    problem::with_causes,
};

/// What was found, and made where it was missing, of devices.
pub(super) struct Survey {
    pub(super) underlay: Link,
    /// Other interfaces that could be wires.
    pub(super) wires: BTreeMap<String, u32>,
    pub(super) xdp: Xdp,
    pub(super) config: NodeConfig,
    /// Of all interfaces, without the loopback range.
    pub(super) addresses: BTreeSet<Ip4>,
    pub(super) pods_bridge: Option<u32>,
    pub(super) notes: Vec<String>,
}

impl Survey {
    /// Finds the underlay, makes or mends `shunt0` and the settings.
    pub(super) fn make(
        netlink: &mut Netlink,
        options: &AgentOptions,
        own: &OwnNode,
        record: &Record,
    ) -> Result<Self, DataplaneError> {
        let mut notes = Vec::new();
        let underlay = links::find_underlay(netlink, options.underlay.as_deref(), own.ip)?;
        let wires = links::other_wires(netlink, &underlay, own.pod_cidr)?;
        let room = underlay.mtu - ENCAPSULATION;
        let mtu = options.config.mtu.map_or(room, |wanted| wanted.min(room));
        if options.config.mtu.is_some_and(|wanted| wanted > room) {
            notes.push(format!(
                "mtu is configured larger than the underlay {} carries with the tunnel's {ENCAPSULATION} bytes: {mtu} is used",
                underlay.name
            ));
        }
        let spec = TunnelSpec { port: options.config.vxlan_port, mtu, mac: own.mac };
        let tunnel = links::ensure_tunnel(netlink, &spec)?;
        notes.extend(tunnel.without_gro);
        sysctl::apply(&sysctl::of_tunnel(TUNNEL))?;
        settings::apply(&sysctl::of_host(&underlay.name), record)?;
        notes.extend(local_ports_note(options.config.masquerade_ports, sysctl::local_port_range()));
        Via { tunnel: tunnel.index, node_ip: own.ip }.set_up(netlink, own.mac)?;
        let pods_bridge = match bridge_of_pods(netlink) {
            Ok(index) => Some(index),
            Err(error) => {
                notes.push(format!("pods' datagrams to other nodes cost more CPU than they need to: {}", with_causes(&error)));
                None
            }
        };
        let addresses = links::addresses(netlink)?;
        let xdp = Xdp::of(options, &underlay);
        let config = NodeConfig {
            node_ip: own.ip.into(),
            underlay_ifindex: underlay.index,
            tunnel_ifindex: tunnel.index,
            vni: options.config.vni,
            mtu,
            vxlan_port: Port::from_host(options.config.vxlan_port),
            snat_port_min: options.config.masquerade_ports.first,
            snat_port_max: options.config.masquerade_ports.last,
            tunnel_mac: own.mac,
            underlay_mask: mask(&addresses, &underlay, own.ip),
            xdp_forwards: xdp.leave(),
        };
        let is_of_node = |ip: &Ipv4Addr| !ip.is_loopback() && *ip != HOST_END;
        let addresses = addresses.iter().map(|held| held.address).filter(is_of_node).map(Ip4::from).collect();
        Ok(Self { underlay, wires, xdp, config, addresses, pods_bridge, notes })
    }
}

/// The bridge that gives pods' datagrams room for the tunnel's headers, with its settings.
fn bridge_of_pods(netlink: &mut Netlink) -> Result<u32, DataplaneError> {
    let index = headroom::ensure(netlink, HOST_MAC)?;
    sysctl::apply(&sysctl::of_pod(headroom::BRIDGE))?;
    Ok(index)
}

/// What to say if sockets of the host take their ports where masqueraded flows do.
fn local_ports_note(masquerade: PortRange, local: Option<(u16, u16)>) -> Option<String> {
    let (first, last) = local?;
    (masquerade.first <= last && first <= masquerade.last).then(|| {
        format!(
            "masqueradePorts {}-{} overlaps net.ipv4.ip_local_port_range {first}-{last}: connections of the host may fail now and then; \
             change one of them",
            masquerade.first, masquerade.last
        )
    })
}

/// The netmask with which the underlay holds the node's address; that of a single host if another interface holds it.
fn mask(addresses: &[HostAddress], underlay: &Link, ip: Ipv4Addr) -> Ip4 {
    let held = addresses.iter().find(|held| held.index == underlay.index && held.address == ip);
    let bits = held.map_or(32, |held| u32::from(held.prefix_len).min(32));
    Ip4::from_host(u32::MAX.checked_shl(32 - bits).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::links::Kind;

    #[test]
    fn the_underlays_mask_is_that_of_the_nodes_address() {
        let ip = Ipv4Addr::new(192, 0, 2, 1);
        let underlay = Link { index: 2, name: "eth0".into(), mtu: 1500, mac: None, up: true, kind: Kind::Other };
        let held = |index, prefix_len| HostAddress { index, address: ip, prefix_len };
        assert_eq!(mask(&[held(2, 24)], &underlay, ip), Ip4::new(255, 255, 255, 0));
        assert_eq!(mask(&[held(2, 0)], &underlay, ip), Ip4::UNSPECIFIED);
        assert_eq!(mask(&[held(1, 24)], &underlay, ip), Ip4::new(255, 255, 255, 255), "another interface holds it");
    }

    #[test]
    fn ports_of_the_host_within_those_of_masquerading_are_told_of() {
        let ours = PortRange { first: 10_000, last: 29_999 };
        for (local, overlaps) in
            [((32_768, 60_999), false), ((1024, 65_535), true), ((29_999, 40_000), true), ((1024, 9_999), false)]
        {
            assert_eq!(local_ports_note(ours, Some(local)).is_some(), overlaps, "{local:?}");
        }
        assert_eq!(local_ports_note(ours, None), None);
    }
}
