//! The contenders, side by side in one lab.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::{
    Options,
    report::{Figure, Goal, Report, median},
};
use crate::{
    lab::Lab,
    netns::Netns,
    plain::PlainPod,
    pod::Pod,
    topology::{Fabric, Kind, NodeSpec, Topology, Wire, node_address},
};

const fn node(name: &'static str, kind: Kind) -> NodeSpec {
    NodeSpec { name, kind }
}

const ARENA: Topology = Topology {
    nodes: &[
        node("n1", Kind::Shunt),
        node("n2", Kind::Shunt),
        node("f1", Kind::PlainVxlan),
        node("f2", Kind::PlainVxlan),
        node("b1", Kind::Bare),
        node("b2", Kind::Bare),
    ],
    fabric: Fabric::Cables,
    wire: Wire::Offloaded,
};

const VETH: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];

/// A lab with every contender.
pub(crate) struct Arena {
    pub(crate) lab: Lab,
    veth: [Netns; 2],
    plain: [PlainPod; 2],
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
    pub(crate) server_address: Ipv4Addr,
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
        let plain = [lab.plain[0].pod("a", 10)?, lab.plain[1].pod("b", 10)?];
        let pods =
            if options.rivals_only { None } else { Some([lab.pod("n1", "a")?, lab.pod("n1", "b")?, lab.pod("n2", "c")?]) };
        Ok(Self { lab, veth, plain, pods })
    }

    /// A direct veth pair, then two pods of ours on one node.
    pub(crate) fn same_node(&self) -> Vec<Contender<'_>> {
        let mut contenders = vec![Contender {
            name: "veth",
            client: &self.veth[0],
            client_address: VETH[0],
            server: &self.veth[1],
            server_address: VETH[1],
        }];
        contenders.extend(self.pods.as_ref().map(|[a, b, _]| of_pods(a, b)));
        contenders
    }

    /// The bare underlay, flannel's way, then two pods of ours.
    pub(crate) fn cross_node(&self) -> Vec<Contender<'_>> {
        let [one, other] = &self.plain;
        let mut contenders = vec![
            Contender {
                name: "bare",
                client: &self.lab.bare[0],
                client_address: node_address(5),
                server: &self.lab.bare[1],
                server_address: node_address(6),
            },
            Contender {
                name: "flannel",
                client: &one.netns,
                client_address: one.address,
                server: &other.netns,
                server_address: other.address,
            },
        ];
        contenders.extend(self.pods.as_ref().map(|[a, _, c]| of_pods(a, c)));
        contenders
    }
}

fn of_pods<'a>(client: &'a Pod, server: &'a Pod) -> Contender<'a> {
    Contender {
        name: "shunt",
        client: &client.netns,
        client_address: client.address,
        server: &server.netns,
        server_address: server.address,
    }
}

/// Samples of each contender, in the contenders' order.
pub(crate) struct Samples {
    names: Vec<&'static str>,
    values: Vec<Vec<f64>>,
}

impl Samples {
    /// Lets contenders take turns for some rounds, after one that doesn't count.
    pub(crate) fn take(
        rounds: usize,
        contenders: &[Contender<'_>],
        mut sample: impl FnMut(&Contender<'_>) -> Result<f64>,
    ) -> Result<Self> {
        let mut values = vec![Vec::new(); contenders.len()];
        for round in 0..=rounds {
            for (contender, values) in contenders.iter().zip(&mut values) {
                let value = sample(contender).with_context(|| contender.name)?;
                if round > 0 {
                    values.push(value);
                }
            }
        }
        Ok(Self { names: contenders.iter().map(|contender| contender.name).collect(), values })
    }

    fn of(&self, name: &str) -> Option<&[f64]> {
        let index = self.names.iter().position(|known| *known == name)?;
        Some(&self.values[index])
    }

    /// A row: ours over a rival's.
    pub(crate) fn row(&self, report: &mut Report, name: &str, ours: &str, rival: &str, goal: Goal, unit: &str) {
        let (Some(our), Some(their)) = (self.of(ours), self.of(rival)) else { return };
        let detail = format!("{ours} {:.1} {unit}, {rival} {:.1} {unit}", median(our), median(their));
        report.row(name, goal, "", Figure::ratio(our, their), detail);
    }
}
