//! Which endpoints serve a Service's port: kube-proxy's rules (pkg/proxy/topology.go, endpointslicecache.go).

use std::{collections::BTreeMap, net::IpAddr};

use shunt_common::{net::Port, service::flags};

use super::desired::{Draining, Target};
use crate::model::{EndpointSlice, Service, ServicePort};

/// What all slices together say of one target.
#[derive(Clone, Copy)]
struct Candidate {
    ready: bool,
    serving: bool,
    terminating: bool,
    local: bool,
}

impl Candidate {
    fn is_usable(&self) -> bool {
        self.ready || self.outlives()
    }

    /// Gone from the Service, but still answering.
    fn outlives(&self) -> bool {
        self.serving && self.terminating
    }
}

/// Flags and backends of one port, as seen from the node `here`.
pub(super) fn backends<'a>(
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    here: &str,
) -> (u32, BTreeMap<Target, Draining>) {
    let candidates = candidates(service, port, slices, here);
    let is_eligible = |candidate: &Candidate| !service.internal_local || candidate.local;
    let anyone_ready = candidates.values().any(|candidate| is_eligible(candidate) && candidate.ready);

    let backends: BTreeMap<Target, Draining> = candidates
        .iter()
        .filter(|(_, candidate)| is_eligible(candidate) && candidate.is_usable())
        .map(|(&target, candidate)| (target, anyone_ready && !candidate.ready))
        .collect();
    let served_elsewhere = backends.is_empty() && candidates.values().any(Candidate::is_usable);
    (if served_elsewhere { flags::DROP_WHEN_EMPTY } else { 0 }, backends)
}

/// Targets of all slices that have a port of this name and protocol. One that several name is as good as the best of them says: a pod
/// that moves between slices is for a while in both.
fn candidates<'a>(
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    here: &str,
) -> BTreeMap<Target, Candidate> {
    let mut candidates = BTreeMap::new();
    for slice in slices {
        for target_port in slice.ports.iter().filter(|it| it.name == port.name && it.protocol == port.protocol) {
            for endpoint in &slice.endpoints {
                let IpAddr::V4(addr) = endpoint.address else { continue };
                let found = Candidate {
                    ready: endpoint.ready || service.publish_not_ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                    local: endpoint.node.as_deref() == Some(here),
                };
                candidates
                    .entry(Target { addr: addr.into(), port: Port::from_host(target_port.port) })
                    .and_modify(|known: &mut Candidate| {
                        known.ready |= found.ready;
                        known.serving |= found.serving;
                        known.terminating &= found.terminating;
                        known.local |= found.local;
                    })
                    .or_insert(found);
            }
        }
    }
    candidates
}
