//! The cells of the table: every Service that there can be, by every way in, from everywhere.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use serde_json::{Value, json};
use shunt_lab::{
    service::{PORT, TARGET},
    topology::{OUTSIDE, node_address},
    traffic::probe::{Protocol, Question},
    translation::Translation,
};

/// Tries where several backends may answer: enough to see most of them. What was not seen is asked for again.
const TRIES: usize = 12;
const FIRST_NODE_PORT: u16 = 30_000;

/// Where a client or a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A pod of n1 that is nobody's backend.
    A,
    /// A pod of n1 that is a backend.
    B,
    /// A pod of n2 that is a backend.
    C,
    /// A pod of n2 that is nobody's backend.
    D,
    /// A process of n1, or one in a pod on its host network.
    N1,
    /// The same of n2.
    N2,
    /// A host outside.
    Outside,
}

impl Place {
    pub(crate) const ALL: [Self; 7] = [Self::A, Self::B, Self::C, Self::D, Self::N1, Self::N2, Self::Outside];
    /// Where servers are.
    pub(crate) const SERVERS: [Self; 5] = [Self::B, Self::C, Self::N1, Self::N2, Self::Outside];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
            Self::D => "d",
            Self::N1 => "n1",
            Self::N2 => "n2",
            Self::Outside => "outside",
        }
    }

    /// The node that it is on, or is.
    pub(crate) fn node(self) -> Option<Self> {
        match self {
            Self::A | Self::B | Self::N1 => Some(Self::N1),
            Self::C | Self::D | Self::N2 => Some(Self::N2),
            Self::Outside => None,
        }
    }

    pub(crate) fn is_pod(self) -> bool {
        matches!(self, Self::A | Self::B | Self::C | Self::D)
    }

    pub(crate) fn is_node(self) -> bool {
        matches!(self, Self::N1 | Self::N2)
    }
}

/// What becomes of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// It serves what it has and is going away.
    Terminating,
    /// It doesn't serve, or not yet.
    NotReady,
}

/// Whom an endpoint is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    Node(&'static str),
    Zone(&'static str),
}

/// One endpoint.
pub(crate) type Endpoint = (Place, State, Option<Hint>);

const fn ready(place: Place) -> Endpoint {
    (place, State::Ready, None)
}

const fn terminating(place: Place) -> Endpoint {
    (place, State::Terminating, None)
}

const fn not_ready(place: Place) -> Endpoint {
    (place, State::NotReady, None)
}

const fn hinted(place: Place, hint: Hint) -> Endpoint {
    (place, State::Ready, Some(hint))
}

const ONE_ON_EACH: &[Endpoint] = &[ready(Place::B), ready(Place::C)];

/// Who is behind a Service. n1 and n2 are in the zones z1 and z2.
const BEHIND: &[&[Endpoint]] = &[
    &[],
    &[ready(Place::B)],
    &[ready(Place::C)],
    &[ready(Place::N1)],
    &[ready(Place::N2)],
    &[ready(Place::Outside)],
    ONE_ON_EACH,
    &[ready(Place::B), ready(Place::N1), ready(Place::C), ready(Place::N2)],
    &[terminating(Place::B)],
    &[terminating(Place::B), terminating(Place::C)],
    &[terminating(Place::B), ready(Place::C)],
    &[not_ready(Place::B)],
    &[not_ready(Place::B), ready(Place::C)],
    &[not_ready(Place::B), terminating(Place::C)],
    &[hinted(Place::B, Hint::Node("n1")), hinted(Place::C, Hint::Node("n2"))],
    &[hinted(Place::B, Hint::Node("n2")), hinted(Place::C, Hint::Node("n2"))],
    &[hinted(Place::B, Hint::Zone("z1")), hinted(Place::C, Hint::Zone("z2"))],
    &[hinted(Place::B, Hint::Zone("z2")), hinted(Place::C, Hint::Zone("z3"))],
    &[hinted(Place::B, Hint::Zone("z1")), ready(Place::C)],
];

/// Who may ask at a load balancer's address, of those that the table asks from: an outside host, pods, nodes.
const RANGES: &[&[&str]] = &[&["203.0.113.0/24"], &["10.244.0.0/16"], &["192.0.2.0/24"], &["192.0.2.0/24", "0.0.0.0/0"]];

/// A Service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Service {
    index: u8,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) behind: &'static [Endpoint],
    pub(crate) ranges: &'static [&'static str],
}

/// All of them: each with every policy.
pub(crate) fn services() -> Vec<Service> {
    let policies = [(false, false), (false, true), (true, false), (true, true)];
    let with_anybody = BEHIND.iter().map(|behind| (*behind, &[][..]));
    let with_ranges = RANGES.iter().map(|ranges| (ONE_ON_EACH, *ranges));
    let shapes = with_anybody.chain(with_ranges);
    let all = shapes.flat_map(|shape| policies.map(|policy| (shape, policy)));
    (1..)
        .zip(all)
        .map(|(index, ((behind, ranges), (internal_local, external_local)))| Service {
            index,
            internal_local,
            external_local,
            behind,
            ranges,
        })
        .collect()
}

impl Service {
    fn name(&self) -> String {
        format!("cell-{}", self.index)
    }

    fn node_port(&self) -> u16 {
        FIRST_NODE_PORT + u16::from(self.index)
    }

    fn cluster_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 1, self.index)
    }

    fn load_balancer_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, self.index)
    }

    fn external_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 101, self.index)
    }

    /// Whether nobody serves it anywhere.
    pub(crate) fn is_nobodys(&self) -> bool {
        self.behind.iter().all(|(_, state, _)| *state == State::NotReady)
    }

    /// It and its slice, as the API has them; `address` says where places are.
    pub(crate) fn objects(&self, address: impl Fn(Place) -> Ipv4Addr) -> [Value; 2] {
        let policy = |is_local| if is_local { "Local" } else { "Cluster" };
        let protocols = [("tcp", "TCP"), ("udp", "UDP")];
        let ports = protocols.map(|(name, protocol)| {
            json!({ "name": name, "protocol": protocol, "port": PORT, "targetPort": TARGET, "nodePort": self.node_port() })
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": self.name(), "namespace": "default" },
            "spec": {
                "type": "LoadBalancer", "clusterIP": self.cluster_ip(), "clusterIPs": [self.cluster_ip()],
                "externalIPs": [self.external_ip()], "selector": { "app": self.name() }, "ports": ports,
                "internalTrafficPolicy": policy(self.internal_local), "externalTrafficPolicy": policy(self.external_local),
                "loadBalancerSourceRanges": self.ranges,
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": self.load_balancer_ip() }] } },
        });
        let endpoints: Vec<_> = self
            .behind
            .iter()
            .map(|(place, state, hint)| {
                let mut endpoint = json!({
                    "addresses": [address(*place)],
                    "conditions": {
                        "ready": *state == State::Ready, "serving": *state != State::NotReady, "terminating": *state == State::Terminating,
                    },
                });
                if let Some(node) = place.node() {
                    endpoint["nodeName"] = json!(node.name());
                }
                match hint {
                    Some(Hint::Node(node)) => endpoint["hints"] = json!({ "forNodes": [{ "name": node }] }),
                    Some(Hint::Zone(zone)) => endpoint["hints"] = json!({ "forZones": [{ "name": zone }] }),
                    None => {}
                }
                endpoint
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-1", self.name()), "namespace": "default",
                "labels": { "kubernetes.io/service-name": self.name() },
            },
            "addressType": "IPv4",
            "ports": protocols.map(|(name, protocol)| json!({ "name": name, "protocol": protocol, "port": TARGET })),
            "endpoints": endpoints,
        });
        [service, slice]
    }
}

/// The way in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp,
    LoadBalancerIp,
    ExternalIp,
    NodePort(Place),
}

impl Kind {
    /// Frontends of a Service port that one node has.
    pub(crate) const PER_NODE: usize = 4;
    const ALL: [Self; 5] =
        [Self::ClusterIp, Self::LoadBalancerIp, Self::ExternalIp, Self::NodePort(Place::N1), Self::NodePort(Place::N2)];
}

/// One cell.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) service: Service,
    pub(crate) kind: Kind,
    pub(crate) protocol: Protocol,
    pub(crate) from: Place,
    /// How ours translates.
    translation: Translation,
}

/// All of them.
pub(crate) fn cells(translation: Translation) -> Vec<Cell> {
    let mut all = Vec::new();
    for service in services() {
        for kind in Kind::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                all.extend(Place::ALL.map(|from| Cell { service, kind, protocol, from, translation }));
            }
        }
    }
    all
}

impl Cell {
    /// What to ask; `insistently` if it was not clear at first.
    pub(crate) fn question(&self, insistently: bool) -> Question {
        let service = &self.service;
        let to = match self.kind {
            Kind::ClusterIp => SocketAddrV4::new(service.cluster_ip(), PORT),
            Kind::LoadBalancerIp => SocketAddrV4::new(service.load_balancer_ip(), PORT),
            Kind::ExternalIp => SocketAddrV4::new(service.external_ip(), PORT),
            Kind::NodePort(place) => {
                SocketAddrV4::new(node_address(if place == Place::N1 { 1 } else { 2 }), service.node_port())
            }
        };
        let times = match (service.behind.len(), insistently) {
            (0 | 1, false) => 1,
            (0 | 1, true) => 3,
            (_, false) => TRIES,
            (_, true) => 4 * TRIES,
        };
        Question { protocol: self.protocol, to, times }
    }

    /// The node whose dataplane chooses a backend: what is for a virtual address is served where it sets out, or by n1 where that is outside.
    pub(crate) fn served_by(&self) -> Place {
        match self.kind {
            Kind::NodePort(node) => node,
            _ => self.from.node().unwrap_or(Place::N1),
        }
    }

    /// Whether that is the client's own node.
    pub(crate) fn is_served_by_own_node(&self) -> bool {
        self.from.node() == Some(self.served_by())
    }

    /// Whether ours connects the client's socket to a backend.
    pub(crate) fn is_connected(&self) -> bool {
        self.translation == Translation::Connect && self.protocol == Protocol::Tcp && self.is_served_by_own_node()
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = |is_local| if is_local { "Local" } else { "Cluster" };
        let Service { internal_local, external_local, behind, ranges, .. } = self.service;
        write!(
            f,
            "{} -> {:?} {:?}, iTP {}, eTP {}, behind it [",
            self.from.name(),
            self.kind,
            self.protocol,
            policy(internal_local),
            policy(external_local)
        )?;
        for (i, (place, state, hint)) in behind.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, place.name())?;
            if *state != State::Ready {
                write!(f, " {state:?}")?;
            }
            if let Some(hint) = hint {
                write!(f, " for {hint:?}")?;
            }
        }
        write!(f, "]")?;
        if !ranges.is_empty() {
            write!(f, ", from {ranges:?}")?;
        }
        Ok(())
    }
}

/// The address of a place that has the same in every lab.
pub(crate) fn fixed_address(place: Place) -> Option<Ipv4Addr> {
    match place {
        Place::N1 => Some(node_address(1)),
        Place::N2 => Some(node_address(2)),
        Place::Outside => Some(OUTSIDE),
        _ => None,
    }
}
