//! Which endpoints serve a Service's port: kube-proxy's rules (pkg/proxy/topology.go, endpointslicecache.go).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use shunt_common::net::{Ip4, Port};

use super::desired::{Target, Use};
use crate::model::{Endpoint, EndpointSlice, Name, Service, ServicePort};

/// From where endpoints are looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Here<'a> {
    pub(super) node: &'a str,
    pub(super) zone: Option<&'a str>,
}

/// Endpoints of one port.
pub(super) struct Endpoints {
    candidates: BTreeMap<Target, Candidate>,
}

/// What all slices together say of one target.
#[derive(Clone, Copy)]
struct Candidate {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
    zone: Hint,
    node: Hint,
}

/// Whether an endpoint is meant for the place that looks at it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hint {
    /// For nowhere in particular.
    None,
    Elsewhere,
    Here,
}

impl Hint {
    fn of(places: Option<&[Name]>, here: Option<&str>) -> Self {
        match places {
            None | Some([]) => Self::None,
            Some(places) if places.iter().any(|place| Some(&**place) == here) => Self::Here,
            Some(_) => Self::Elsewhere,
        }
    }
}

impl Candidate {
    fn of(endpoint: &Endpoint, service: &Service, here: Here<'_>) -> Self {
        let hints = endpoint.hints.as_ref();
        Self {
            ready: endpoint.ready || service.publish_not_ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            local: endpoint.node.as_deref() == Some(here.node),
            zone: Hint::of(hints.map(|hints| &*hints.zones), here.zone),
            node: Hint::of(hints.map(|hints| &*hints.nodes), Some(here.node)),
        }
    }

    /// As good as the better of the two: a pod that moves between slices is for a while in both.
    fn merge(&mut self, other: Self) {
        self.ready |= other.ready;
        self.serving |= other.serving;
        self.terminating &= other.terminating;
        self.local |= other.local;
        self.zone = self.zone.max(other.zone);
        self.node = self.node.max(other.node);
    }

    fn is_usable(&self) -> bool {
        self.ready || self.outlives()
    }

    /// Gone from the Service, but still answering.
    fn outlives(&self) -> bool {
        self.serving && self.terminating
    }
}

impl Endpoints {
    /// Targets of all slices that have a port of this name and protocol, without those at an address that `is_refused`.
    pub(super) fn of(
        service: &Service,
        port: &ServicePort,
        slices: &[(Name, EndpointSlice)],
        here: Here<'_>,
        is_refused: impl Fn(Ip4) -> bool,
    ) -> Self {
        let mut candidates: BTreeMap<Target, Candidate> = BTreeMap::new();
        for (_, slice) in slices {
            for target_port in slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol) {
                for endpoint in &slice.endpoints {
                    let IpAddr::V4(addr) = endpoint.address else { continue };
                    let addr = Ip4::from(addr);
                    if is_refused(addr) {
                        continue;
                    }
                    let found = Candidate::of(endpoint, service, here);
                    candidates
                        .entry(Target { addr, port: Port::from_host(target_port.port) })
                        .and_modify(|known| known.merge(found))
                        .or_insert(found);
                }
            }
        }
        Self { candidates }
    }

    /// Those of the whole cluster, as far as their hints allow.
    pub(super) fn of_cluster(&self) -> BTreeMap<Target, Use> {
        let ready = || self.candidates.values().filter(|candidate| candidate.ready);
        let decides = |hint: fn(&Candidate) -> Hint| {
            ready().all(|candidate| hint(candidate) != Hint::None) && ready().any(|candidate| hint(candidate) == Hint::Here)
        };
        let is_meant: fn(&Candidate) -> bool = if decides(|candidate| candidate.node) {
            |candidate| candidate.node == Hint::Here
        } else if decides(|candidate| candidate.zone) {
            |candidate| candidate.zone == Hint::Here
        } else {
            |_| true
        };
        self.choose(|candidate| !candidate.ready || is_meant(candidate))
    }

    /// Those of this node.
    pub(super) fn of_node(&self) -> BTreeMap<Target, Use> {
        self.choose(|candidate| candidate.local)
    }

    /// Ready ones; where there are none, those that are on their way out and still answer.
    fn choose(&self, is_eligible: impl Fn(&Candidate) -> bool) -> BTreeMap<Target, Use> {
        let anyone_ready = self.candidates.values().any(|candidate| is_eligible(candidate) && candidate.ready);
        let chosen = self.candidates.iter().filter(|(_, candidate)| is_eligible(candidate) && candidate.is_usable());
        chosen
            .map(|(&target, candidate)| (target, Use { draining: anyone_ready && !candidate.ready, local: candidate.local }))
            .collect()
    }

    /// Whether any of the cluster's could serve.
    pub(super) fn any(&self) -> bool {
        self.candidates.values().any(Candidate::is_usable)
    }

    /// Addresses of this node's that are ready, and whether any of this node's is on its way out.
    pub(super) fn health(&self, ready: &mut BTreeSet<Ip4>) -> bool {
        let local = || self.candidates.iter().filter(|(_, candidate)| candidate.local);
        ready.extend(local().filter(|(_, candidate)| candidate.ready).map(|(target, _)| target.addr));
        local().any(|(_, candidate)| !candidate.ready && candidate.outlives())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointPort, Hints, Protocol};

    const HERE: Here<'static> = Here { node: "n1", zone: Some("z1") };

    /// `1 ready n1 zone=z1`: last octet, condition, node, hints.
    fn endpoint(text: &str) -> Endpoint {
        let words: Vec<_> = text.split(' ').collect();
        let hints =
            |key: &str| -> Box<[Name]> { words.iter().filter_map(|word| word.strip_prefix(key)).map(Name::from).collect() };
        let hints = Hints { zones: hints("zone="), nodes: hints("node=") };
        Endpoint {
            address: IpAddr::from([10, 0, 0, words[0].parse().unwrap()]),
            ready: words[1] == "ready",
            serving: words[1] != "down",
            terminating: words[1] == "terminating",
            node: Some(words[2].into()),
            hints: (hints != Hints::default()).then(|| hints.into()),
        }
    }

    fn endpoints(texts: &[&str], here: Here<'_>) -> Endpoints {
        let slice = EndpointSlice {
            ports: [EndpointPort { name: "".into(), port: 80, protocol: Protocol::Tcp }].into(),
            endpoints: texts.iter().map(|text| endpoint(text)).collect(),
        };
        let port = ServicePort { name: "".into(), port: 80, node_port: None, protocol: Protocol::Tcp };
        Endpoints::of(&Service::default(), &port, &[("a".into(), slice)], here, |_| false)
    }

    /// Last octets; those that drain in parentheses.
    fn shown(backends: &BTreeMap<Target, Use>) -> String {
        let mut shown: Vec<_> = backends
            .iter()
            .map(|(target, it)| (target.addr.to_host() & 0xff, it.draining))
            .map(|(host, draining)| if draining { format!("({host})") } else { host.to_string() })
            .collect();
        shown.sort();
        shown.join(" ")
    }

    #[test]
    fn hints_count_if_all_ready_have_one_and_one_matches() {
        for (case, given, expected) in [
            ("no hints", &["1 ready n1", "2 ready n2"][..], "1 2"),
            ("this zone's", &["1 ready n1 zone=z1", "2 ready n2 zone=z2", "3 ready n3 zone=z1"], "1 3"),
            ("one without a hint", &["1 ready n1 zone=z1", "2 ready n2"], "1 2"),
            ("no zone of ours", &["1 ready n2 zone=z2", "2 ready n3 zone=z3"], "1 2"),
            ("several zones", &["1 ready n2 zone=z2 zone=z1", "2 ready n3 zone=z3"], "1"),
            ("the node before the zone", &["1 ready n1 zone=z1 node=n1", "2 ready n2 zone=z1 node=n2"], "1"),
            ("no node of ours: the zone", &["1 ready n2 zone=z1 node=n2", "2 ready n3 zone=z2 node=n3"], "1"),
            ("a node hint is missing: the zone", &["1 ready n1 zone=z1 node=n1", "2 ready n2 zone=z1"], "1 2"),
            ("who is not ready needs none", &["1 ready n1 zone=z1", "2 down n2", "3 ready n2 zone=z2"], "1"),
            ("a matching one that is not ready doesn't count", &["1 down n1 zone=z1", "2 ready n2 zone=z2"], "2"),
            ("none ready: all that still answer", &["1 terminating n1 zone=z1", "2 terminating n2 zone=z2"], "1 2"),
            ("some ready: the others drain", &["1 ready n1 zone=z1", "2 terminating n2 zone=z2"], "(2) 1"),
        ] {
            assert_eq!(shown(&endpoints(given, HERE).of_cluster()), expected, "{case}");
        }
        let nowhere = Here { node: "n1", zone: None };
        assert_eq!(shown(&endpoints(&["1 ready n1 zone=z1", "2 ready n2 zone=z2"], nowhere).of_cluster()), "1 2", "no zone");
    }

    #[test]
    fn terminating_ones_are_a_last_resort_among_the_local() {
        for (case, given, expected, any) in [
            ("nobody", &[][..], "", false),
            ("elsewhere", &["1 ready n2"], "", true),
            ("elsewhere on its way out", &["1 terminating n2"], "", true),
            ("here", &["1 ready n1", "2 ready n2"], "1", true),
            ("here on its way out, ready elsewhere", &["1 terminating n1", "2 ready n2"], "1", true),
            ("here both", &["1 terminating n1", "2 ready n1"], "(1) 2", true),
            ("here down", &["1 down n1"], "", false),
            ("hints don't limit the local", &["1 ready n1 zone=z2", "2 ready n2 zone=z1"], "1", true),
        ] {
            let endpoints = endpoints(given, HERE);
            assert_eq!((shown(&endpoints.of_node()), endpoints.any()), (expected.to_owned(), any), "{case}");
        }
    }

    #[test]
    fn health_is_ready_addresses_of_this_node() {
        let mut ready = BTreeSet::new();
        let all = ["1 ready n1", "1 ready n1", "2 ready n2", "3 terminating n1", "4 down n1"];
        assert!(endpoints(&all, HERE).health(&mut ready));
        assert_eq!(ready, [Ip4::new(10, 0, 0, 1)].into());
        assert!(!endpoints(&all[..3], HERE).health(&mut ready));
    }
}
