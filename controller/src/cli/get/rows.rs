//! Rows of what the kernel holds, for people and programs. Pure: entries in, rows out, in an order that does not change.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use ipnet::Ipv4Net;
use serde::Serialize;
use shunt_common::{
    address::{Address, Prefix, Route, kind, route, route_flags},
    net::{Ip4, V4},
    service::{Backend, backend_flags, state},
    verdict::DropReason,
};

use crate::{
    attachment::{Pod, PortMapping},
    cli::output::{Row, interface},
    kernel::read::BackendRow,
};

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeRow {
    /// `this` or `peer`.
    node: &'static str,
    addresses: Vec<Ipv4Addr>,
    /// Where its tunnel ends; of peers.
    underlay: Option<Ipv4Addr>,
    vtep_mac: Option<String>,
    pod_cidrs: Vec<Ipv4Net>,
}

impl Row for NodeRow {
    const COLUMNS: &'static [&'static str] = &["NODE", "ADDRESSES", "UNDERLAY", "VTEP MAC", "POD CIDRS"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.to_owned(),
            join(&self.addresses),
            self.underlay.map(|underlay| underlay.to_string()).unwrap_or_default(),
            self.vtep_mac.clone().unwrap_or_default(),
            join(&self.pod_cidrs),
        ]
    }
}

/// This node first, then peers by their tunnel's end.
pub(super) fn nodes(addresses: &[(Ip4, Address)], routes: &[(Prefix<V4>, Route)]) -> Vec<NodeRow> {
    let mut this = NodeRow { node: "this", addresses: vec![], underlay: None, vtep_mac: None, pod_cidrs: vec![] };
    let mut peers: BTreeMap<Ipv4Addr, NodeRow> = BTreeMap::new();
    let mut peer = |underlay: Ip4, mac: shunt_common::net::Mac, change: &mut dyn FnMut(&mut NodeRow)| {
        let underlay = Ipv4Addr::from(underlay);
        change(peers.entry(underlay).or_insert_with(|| NodeRow {
            node: "peer",
            addresses: vec![],
            underlay: Some(underlay),
            vtep_mac: Some(mac.to_string()),
            pod_cidrs: vec![],
        }));
    };
    for (addr, address) in addresses {
        match address.kind {
            kind::HOST => this.addresses.push((*addr).into()),
            kind::NODE => peer(address.underlay, address.mac, &mut |node| node.addresses.push((*addr).into())),
            _ => {}
        }
    }
    for (prefix, route) in routes {
        match route.kind {
            route::LOCAL => this.pod_cidrs.extend(net(prefix)),
            route::TUNNEL => peer(route.underlay, route.mac, &mut |node| node.pod_cidrs.extend(net(prefix))),
            _ => {}
        }
    }
    std::iter::once(this).chain(peers.into_values()).collect()
}

/// A pod of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodRow {
    namespace: String,
    name: String,
    address: Ipv4Addr,
    mac: String,
    /// The host-side end; its number if it is gone.
    interface: String,
    container_id: String,
    /// Ports of the node that lead to it, as far as nobody else has them: see the frontends.
    host_ports: Vec<PortMapping>,
}

impl Row for PodRow {
    const COLUMNS: &'static [&'static str] = &["NAMESPACE", "NAME", "ADDRESS", "MAC", "INTERFACE", "CONTAINER", "HOST PORTS"];

    fn cells(&self) -> Vec<String> {
        let id: String = self.container_id.chars().take(13).collect();
        vec![
            self.namespace.clone(),
            self.name.clone(),
            self.address.to_string(),
            self.mac.clone(),
            self.interface.clone(),
            id,
            join(&self.host_ports),
        ]
    }
}

/// By address.
pub(super) fn pods(addresses: &[(Ip4, Address)], known: &[Pod]) -> Vec<PodRow> {
    let known: BTreeMap<Ipv4Addr, &Pod> = known.iter().map(|pod| (pod.address, pod)).collect();
    let pods = addresses.iter().filter(|(_, address)| address.kind == kind::POD);
    pods.map(|(addr, entry)| {
        let address = Ipv4Addr::from(*addr);
        let pod = known.get(&address);
        PodRow {
            namespace: pod.map(|pod| pod.pod.namespace.clone()).unwrap_or_default(),
            name: pod.map(|pod| pod.pod.name.clone()).unwrap_or_default(),
            address,
            mac: entry.mac.to_string(),
            interface: interface(entry.ifindex),
            container_id: pod.map(|pod| pod.attachment.container_id.clone()).unwrap_or_default(),
            host_ports: pod.map(|pod| pod.port_mappings.clone()).unwrap_or_default(),
        }
    })
    .collect()
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PlainBackendRow {
    id: u32,
    address: Ipv4Addr,
    port: u16,
    /// `active` or `draining`.
    state: &'static str,
    /// Whether it runs on this node.
    local: bool,
    /// Tenants that this id has had.
    generation: u32,
}

impl Row for PlainBackendRow {
    const COLUMNS: &'static [&'static str] = &["ID", "BACKEND", "STATE", "NODE", "GENERATION"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.to_string(),
            SocketAddrV4::new(self.address, self.port).to_string(),
            self.state.to_owned(),
            if self.local { "this" } else { "" }.to_owned(),
            self.generation.to_string(),
        ]
    }
}

/// By id.
pub(super) fn backends(backends: &[BackendRow]) -> Vec<PlainBackendRow> {
    let state = |backend: &Backend<V4>| match backend.state {
        state::ACTIVE => "active",
        state::DRAINING => "draining",
        _ => "unknown",
    };
    let row = |BackendRow { id, backend }: &BackendRow| PlainBackendRow {
        id: *id,
        address: backend.addr.into(),
        port: backend.port.to_host(),
        state: state(backend),
        local: backend.flags & backend_flags::LOCAL != 0,
        generation: backend.generation,
    };
    backends.iter().map(row).collect()
}

/// A prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RouteRow {
    prefix: Ipv4Net,
    /// `tunnel`, `local` or `native`.
    leads: &'static str,
    underlay: Option<Ipv4Addr>,
    vtep_mac: Option<String>,
    /// Whether backends there answer clients that asked this node: it may send the node what only ours understand.
    direct_return: bool,
}

impl Row for RouteRow {
    const COLUMNS: &'static [&'static str] = &["PREFIX", "LEADS", "UNDERLAY", "VTEP MAC", "DIRECT RETURN"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.prefix.to_string(),
            self.leads.to_owned(),
            self.underlay.map(|underlay| underlay.to_string()).unwrap_or_default(),
            self.vtep_mac.clone().unwrap_or_default(),
            if self.direct_return { "yes" } else { "" }.to_owned(),
        ]
    }
}

/// By prefix.
pub(super) fn routes(routes: &[(Prefix<V4>, Route)]) -> Vec<RouteRow> {
    let row = |(prefix, entry): &(Prefix<V4>, Route)| {
        let tunnel = entry.kind == route::TUNNEL;
        Some(RouteRow {
            prefix: net(prefix)?,
            leads: match entry.kind {
                route::TUNNEL => "tunnel",
                route::LOCAL => "local",
                route::NATIVE => "native",
                _ => "unknown",
            },
            underlay: tunnel.then(|| entry.underlay.into()),
            vtep_mac: tunnel.then(|| entry.mac.to_string()),
            direct_return: tunnel && entry.flags & route_flags::TAKES_NAMES != 0,
        })
    };
    routes.iter().filter_map(row).collect()
}

/// A reason with its packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DropRow {
    name: &'static str,
    count: u64,
    help: &'static str,
}

impl Row for DropRow {
    const COLUMNS: &'static [&'static str] = &["REASON", "COUNT", "HELP"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.to_owned(), self.count.to_string(), self.help.to_owned()]
    }
}

/// Most packets first, then by name.
pub(super) fn drops(drops: &[(DropReason, u64)]) -> Vec<DropRow> {
    let mut rows: Vec<DropRow> =
        drops.iter().map(|(reason, count)| DropRow { name: reason.name(), count: *count, help: reason.help() }).collect();
    rows.sort_by(|a, b| b.count.cmp(&a.count).then(a.name.cmp(b.name)));
    rows
}

fn net(prefix: &Prefix<V4>) -> Option<Ipv4Net> {
    Ipv4Net::new(prefix.addr.into(), u8::try_from(prefix.len).ok()?).ok()
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use shunt_common::net::{Mac, Port};

    use super::*;
    use crate::{
        attachment::{AttachmentKey, PodIdentity, pod_mac},
        cli::output::table,
    };

    const VTEP: Mac = Mac { bytes: [0x72, 0x73, 192, 0, 2, 2] };

    fn address(kind: u32, underlay: Ip4, mac: Mac) -> Address {
        Address { kind, ifindex: u32::MAX, underlay, mac, reserved: 0 }
    }

    #[test]
    fn nodes_are_this_one_and_its_peers() {
        let peer = Ip4::new(192, 0, 2, 2);
        let addresses = [
            (Ip4::new(192, 0, 2, 1), address(kind::HOST, Ip4::UNSPECIFIED, Mac::ZERO)),
            (peer, address(kind::NODE, peer, VTEP)),
            (Ip4::new(10, 1, 0, 2), address(kind::POD, Ip4::UNSPECIFIED, Mac::ZERO)),
        ];
        let route = |kind, underlay, mac| Route { kind, underlay, mac, flags: route_flags::TAKES_NAMES };
        let routes = [
            (Prefix { len: 24, addr: Ip4::new(10, 1, 0, 0) }, route(route::LOCAL, Ip4::UNSPECIFIED, Mac::ZERO)),
            (Prefix { len: 24, addr: Ip4::new(10, 2, 0, 0) }, route(route::TUNNEL, peer, VTEP)),
            (Prefix { len: 8, addr: Ip4::new(172, 0, 0, 0) }, route(route::NATIVE, Ip4::UNSPECIFIED, Mac::ZERO)),
        ];
        insta::assert_snapshot!(table(&nodes(&addresses, &routes)), @r"
        NODE   ADDRESSES   UNDERLAY    VTEP MAC            POD CIDRS
        this   192.0.2.1   -           -                   10.1.0.0/24
        peer   192.0.2.2   192.0.2.2   72:73:c0:00:02:02   10.2.0.0/24
        ");
        insta::assert_snapshot!(table(&super::routes(&routes)), @r"
        PREFIX        LEADS    UNDERLAY    VTEP MAC            DIRECT RETURN
        10.1.0.0/24   local    -           -                   -
        10.2.0.0/24   tunnel   192.0.2.2   72:73:c0:00:02:02   yes
        172.0.0.0/8   native   -           -                   -
        ");
        let known = [Pod {
            attachment: AttachmentKey::new("0123456789abcdef", "eth0").unwrap(),
            network: "shunt".to_owned(),
            pod: PodIdentity { namespace: "default".to_owned(), name: "web-0".to_owned(), uid: "u".to_owned() },
            address: Ipv4Addr::new(10, 1, 0, 2),
            mac: pod_mac(Ipv4Addr::new(10, 1, 0, 2)),
            host_interface: "shunt0123456789".to_owned(),
            netns: "/run/netns/x".into(),
            port_mappings: serde_json::from_str(
                r#"[{"hostPort":80,"protocol":"tcp","containerPort":8080},
                    {"hostPort":53,"protocol":"udp","containerPort":53,"hostIP":"192.0.2.1"}]"#,
            )
            .unwrap(),
        }];
        insta::assert_snapshot!(table(&pods(&addresses, &known)), @r"
        NAMESPACE   NAME    ADDRESS    MAC                 INTERFACE   CONTAINER       HOST PORTS
        default     web-0   10.1.0.2   00:00:00:00:00:00   -           0123456789abc   80->8080/TCP,192.0.2.1:53->53/UDP
        ");
        assert_eq!(pods(&addresses, &[])[0].name, "", "a pod without a record is shown too");
    }

    #[test]
    fn backends_say_whether_they_are_of_this_node() {
        let backend = |id: u32, flags| BackendRow {
            id,
            backend: Backend {
                addr: Ip4::new(10, 1, 0, id as u8),
                port: Port::from_host(8080),
                state: state::ACTIVE,
                flags,
                generation: 1,
            },
        };
        insta::assert_snapshot!(table(&backends(&[backend(1, backend_flags::LOCAL), backend(2, 0)])), @r"
        ID   BACKEND         STATE    NODE   GENERATION
        1    10.1.0.1:8080   active   this   1
        2    10.1.0.2:8080   active   -      1
        ");
    }

    #[test]
    fn drops_have_the_most_frequent_first() {
        let rows = drops(&[
            (DropReason::NoRoute, 0),
            (DropReason::Malformed, 3),
            (DropReason::SourceSpoofed, 7),
            (DropReason::Multicast, 0),
        ]);
        assert_eq!(
            rows.iter().map(|row| row.name).collect::<Vec<_>>(),
            ["source_spoofed", "malformed", "multicast", "no_route"]
        );
    }
}
