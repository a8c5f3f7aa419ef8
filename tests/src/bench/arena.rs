//! The contenders, side by side in one lab.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::Options;
use crate::{
    lab::Lab,
    netns::Netns,
    plain::PlainPod,
    pod::Pod,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire, node_address},
};

const ARENA: Topology = Topology {
    nodes: &[
        NodeSpec::new("n1", Kind::Shunt),
        NodeSpec::new("n2", Kind::Shunt),
        NodeSpec::new("f1", Kind::PlainVxlan),
        NodeSpec::new("f2", Kind::PlainVxlan),
        NodeSpec::new("b1", Kind::Bare),
        NodeSpec::new("b2", Kind::Bare),
        NodeSpec::new("r1", Kind::PlainRoutes),
        NodeSpec::new("r2", Kind::PlainRoutes),
        NodeSpec::new("m1", Kind::PlainMetadata),
        NodeSpec::new("m2", Kind::PlainMetadata),
    ],
    fabric: Fabric::Cables,
    wire: Wire::Offloaded,
};

const VETH: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];

/// A lab with every contender.
pub(crate) struct Arena {
    pub(crate) lab: Lab,
    veth: [Netns; 2],
    flannel: [PlainPod; 3],
    routes: [PlainPod; 2],
    metadata: [PlainPod; 2],
    /// Two on one node, one on the other; none if rivals are alone.
    pub(crate) pods: Option<[Pod; 3]>,
}

/// A pair of ends.
#[derive(Clone, Copy)]
pub(crate) struct Contender<'a> {
    pub(crate) name: &'static str,
    pub(crate) client: &'a Netns,
    pub(crate) client_address: Ipv4Addr,
    pub(crate) server: &'a Netns,
    /// Where the server listens.
    pub(crate) server_address: Ipv4Addr,
    /// What the client asks, at the same port: the server itself, or what leads to it.
    pub(crate) asked: Ipv4Addr,
}

/// A namespace, and an address in it.
pub(crate) type End<'a> = (&'a Netns, Ipv4Addr);

impl<'a> Contender<'a> {
    /// A client that asks a server.
    pub(crate) fn new(name: &'static str, client: End<'a>, server: End<'a>) -> Self {
        let ((client, client_address), (server, server_address)) = (client, server);
        Self { name, client, client_address, server, server_address, asked: server_address }
    }

    /// Two pods of ours.
    pub(crate) fn of_pods(name: &'static str, client: &'a Pod, server: &'a Pod) -> Self {
        Self::new(name, (&client.netns, client.address), (&server.netns, server.address))
    }

    /// Two pods of a plain node.
    fn of_plain(name: &'static str, client: &'a PlainPod, server: &'a PlainPod) -> Self {
        Self::new(name, (&client.netns, client.address), (&server.netns, server.address))
    }
}

impl Arena {
    pub(crate) fn build(options: &Options) -> Result<Self> {
        let lab = if options.rivals_only { Lab::wired(&ARENA)? } else { Lab::build(&ARENA)? };
        let bare = &lab.bare[0];
        let veth = [bare.create_beside(&format!("{}-v1", lab.name()))?, bare.create_beside(&format!("{}-v2", lab.name()))?];
        // The MTU of a pod, so that both cut a stream into the same segments.
        veth[0].ip(&format!("link add eth0 mtu 1450 type veth peer name eth0 mtu 1450 netns {}", veth[1].name()))?;
        for (netns, address) in veth.iter().zip(VETH) {
            netns.ip(&format!("addr add {address}/24 dev eth0"))?;
            netns.ip("link set eth0 up")?;
        }
        let [f1, f2, r1, r2, m1, m2] = std::array::from_fn(|index| &lab.plain[index]);
        let flannel = [f1.pod("a", 10)?, f1.pod("b", 11)?, f2.pod("c", 10)?];
        let routes = [r1.pod("a", 10)?, r2.pod("c", 10)?];
        let metadata = [m1.pod("a", 10)?, m2.pod("c", 10)?];
        let pods =
            if options.rivals_only { None } else { Some([lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?]) };
        Ok(Self { lab, veth, flannel, routes, metadata, pods })
    }

    /// A direct veth pair, two pods on flannel's bridge, then two pods of ours on one node.
    pub(crate) fn same_node(&self) -> Vec<Contender<'_>> {
        let mut contenders = vec![
            Contender::new("veth", (&self.veth[0], VETH[0]), (&self.veth[1], VETH[1])),
            Contender::of_plain("flannel", &self.flannel[0], &self.flannel[1]),
        ];
        contenders.extend(self.pods.as_ref().map(|[a, b, _]| Contender::of_pods("shunt", a, b)));
        contenders
    }

    /// The bare underlay, the kernel's ways across it, then two pods of ours.
    pub(crate) fn cross_node(&self) -> Vec<Contender<'_>> {
        let mut contenders = vec![
            Contender::new("bare", (&self.lab.bare[0], node_address(5)), (&self.lab.bare[1], node_address(6))),
            Contender::of_plain("routes", &self.routes[0], &self.routes[1]),
            Contender::of_plain("flannel", &self.flannel[0], &self.flannel[2]),
            Contender::of_plain("metadata", &self.metadata[0], &self.metadata[1]),
        ];
        contenders.extend(self.pods.as_ref().map(|[a, _, c]| Contender::of_pods("shunt", a, c)));
        contenders
    }
}
