//! What the state says of itself at a look from outside: status, readiness, values for a scrape. Cheap, for the lock is held meanwhile.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use super::State;
use crate::{
    agent::{
        clients,
        connect::Connect,
        health::{Subject, Weight},
        xdp::Xdp,
    },
    cluster::Reception,
    config::SourceOptions,
    http::Readiness,
    ipam::book::Tally,
    metrics::{self, exposition::Exposition},
    problem::Problem,
    socket::protocol::{ConnectStatus, Counts, SourceStatus, Status, XdpStatus},
};

impl State {
    /// Whether the node can serve pods: the dataplane stands, cluster state came into force, and there is a range to give addresses of.
    pub(in crate::agent) fn readiness(&self) -> Readiness {
        if self.up.is_none() {
            return Readiness { withheld: self.reasons(), besides: Vec::new() };
        }
        Readiness { withheld: self.health.reasons_of(Weight::Withholds), besides: self.health.reasons_of(Weight::Besides) }
    }

    /// Why the node is not healthy.
    fn reasons(&self) -> Vec<String> {
        let mut reasons = self.health.reasons();
        if self.up.is_none() && reasons.is_empty() {
            reasons.push("the agent is starting".to_owned());
        }
        reasons
    }

    pub(in crate::agent) fn status(&self) -> Status {
        let (services, backends) = self.up.as_ref().map(|up| up.sync.counts()).unwrap_or_default();
        let mut notes: Vec<String> = self.up.iter().flat_map(|up| up.dataplane.notes.iter().cloned()).collect();
        let native = !self.options.config.non_masquerade_cidrs.is_empty();
        notes.extend(self.up.iter().flat_map(|up| up.dataplane.wires.notes(native)));
        notes.extend(self.takeover.notes());
        notes.extend(self.remarks.notices.iter().map(ToString::to_string));
        notes.extend(self.installation.iter().cloned());
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node: self.options.node_name.clone(),
            reasons: self.reasons(),
            node_ip: self.own.map(|own| own.ip),
            pod_cidr: self.own.and_then(|own| own.pod_cidr),
            underlay: self.underlay().map(str::to_owned),
            wires: self.up.iter().flat_map(|up| up.dataplane.wires.served().map(|(name, _)| name.to_owned())).collect(),
            left_out: self.up.iter().flat_map(|up| up.dataplane.wires.left_out().map(str::to_owned)).collect(),
            mtu: self.up.as_ref().map(|up| up.dataplane.config.mtu),
            pin_dir: self.options.pin_dir.clone(),
            state_dir: self.options.state_dir.clone(),
            source: Some(self.source_status()),
            http: self.options.config.http_listen,
            connect: self.connect_status(),
            xdp: self.xdp_status(),
            counts: Counts {
                nodes: self.remarks.nodes,
                pods: self.up.as_ref().map_or(0, |up| up.pods.len() as u64),
                services,
                backends,
            },
            last_sync: self.last_sync,
            problems: self.problems.clone(),
            notes,
        }
    }

    fn connect_status(&self) -> Option<ConnectStatus> {
        let dataplane = &self.up.as_ref()?.dataplane;
        Some(match &dataplane.connect {
            Connect::At(cgroup) => ConnectStatus::Active {
                cgroup: cgroup.path().to_owned(),
                pods: clients::pods(&dataplane.kernel.maps().clients).unwrap_or_default(),
            },
            Connect::Off => ConnectStatus::Off,
            Connect::Unavailable(reason) => ConnectStatus::Unavailable(reason.clone()),
        })
    }

    fn xdp_status(&self) -> Option<XdpStatus> {
        match self.up.as_ref()?.dataplane.xdp.clone() {
            Xdp::Off => None,
            Xdp::Forwards(_) => Some(XdpStatus::Forwards),
            Xdp::Pops(reason) => Some(XdpStatus::Pops(reason)),
            Xdp::Unavailable(reason) => Some(XdpStatus::Unavailable(reason)),
        }
    }

    fn source_status(&self) -> SourceStatus {
        let from = match &self.options.source {
            SourceOptions::Files(dir) => format!("files in {}", dir.display()),
            SourceOptions::Kubeconfig(path) => format!("API server by {}", path.display()),
            SourceOptions::InCluster => "API server by the pod's service account".to_owned(),
        };
        let receptions = self.receptions.now();
        // The kind that was silent longest: each brings a bookmark now and then.
        let heard = receptions.iter().map(|reception| reception.heard_at).min().flatten();
        SourceStatus {
            from,
            connected: receptions.iter().all(is_connected) && self.health.reason(Subject::Source).is_none(),
            heard_at_unix_ms: heard.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_millis() as u64),
        }
    }

    fn measure_api(&self, exposition: &mut Exposition) {
        for reception in self.receptions.now() {
            let kind = reception.kind.name();
            exposition.put(metrics::API_CONNECTED, &[kind], is_connected(&reception));
            if let Some(at) = reception.heard_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
                exposition.put(metrics::API_HEARD, &[kind], at.as_secs_f64());
            }
            exposition.put(metrics::API_EVENTS, &[kind], reception.events);
            exposition.put(metrics::API_LISTS, &[kind], reception.lists);
            exposition.put(metrics::API_REQUESTS, &[kind], reception.requests);
            let refused: u64 = reception.refusals.values().sum();
            exposition.put(metrics::API_ERRORS, &[kind, "none"], reception.failures.saturating_sub(refused));
            for (code, count) in &reception.refusals {
                exposition.put(metrics::API_ERRORS, &[kind, &code.to_string()], *count);
            }
        }
    }

    /// Puts what the state knows into a scrape.
    pub(in crate::agent) fn measure(&self, exposition: &mut Exposition) {
        exposition.put(metrics::READY, &[], self.readiness().withheld.is_empty());
        for subject in Subject::ALL {
            exposition.put(metrics::UNHEALTHY, &[subject.name()], self.health.reason(*subject).is_some());
        }
        for (kind, count) in by_kind(&self.problems) {
            exposition.put(metrics::REFUSED_OBJECTS, &[kind], count);
        }
        self.measure_api(exposition);
        exposition.put(metrics::NODES, &[], self.remarks.nodes);
        if let Some(up) = &self.up {
            let (services, backends) = up.sync.counts();
            exposition.put(metrics::PODS, &[], up.pods.len());
            exposition.put(metrics::SERVICES, &[], services);
            exposition.put(metrics::BACKENDS, &[], backends);
            for (map, entries, capacity) in up.sync.fill() {
                let pods = if map == shunt_common::maps::ADDRESSES.name { up.pods.len() as u64 } else { 0 };
                let map = map.to_lowercase();
                exposition.put(metrics::MAP_ENTRIES, &[&map], u64::from(entries) + pods);
                exposition.put(metrics::MAP_CAPACITY, &[&map], capacity);
            }
        }
        let range = self.own.and_then(|own| own.pod_cidr);
        if let Some(Tally { used, cooling, free }) = self.ipam.tally(range, SystemTime::now()) {
            for (state, count) in [("used", used), ("cooling", cooling), ("free", free)] {
                exposition.put(metrics::IPAM_ADDRESSES, &[state], count);
            }
        }
    }
}

fn is_connected(reception: &Reception) -> bool {
    reception.is_complete && reception.failure.is_none()
}

/// Kinds that can be refused are always there, so that a first refusal is seen as a change.
fn by_kind(problems: &[Problem]) -> BTreeMap<&str, u64> {
    let mut counts: BTreeMap<&str, u64> = ["Node", "Service", "EndpointSlice", "none"].map(|kind| (kind, 0)).into();
    for problem in problems {
        let kind = problem.object.as_deref().and_then(|object| object.split_once(' ')).map(|(kind, _)| kind);
        // Addresses and routes that found no room are objects of ours, written small.
        let kind = kind.filter(|kind| kind.starts_with(|first: char| first.is_ascii_uppercase())).unwrap_or("none");
        *counts.entry(kind).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_by_kind() {
        let of = |object: Option<&str>| Problem { object: object.map(str::to_owned), ..Problem::default() };
        let problems =
            [of(Some("Service a/b")), of(Some("Service a/c")), of(Some("Pod a/p")), of(Some("route 10.0.0.0/8")), of(None)];
        let counts: Vec<(&str, u64)> = by_kind(&problems).into_iter().collect();
        assert_eq!(counts, [("EndpointSlice", 0), ("Node", 0), ("Pod", 1), ("Service", 2), ("none", 2)]);
    }
}
