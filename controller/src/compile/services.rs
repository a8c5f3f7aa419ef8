//! What a Service's ports become: frontends, groups of backends, the data of its health check.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use shunt_common::{
    net::{Ip4, Port, V4, proto},
    service::{ServiceKey, flags, kind},
};

use super::{
    Affected, Compiler, Subject,
    claims::{Claimant, Exposer, Rank, VirtualIp},
    desired::{Frontend, Group, GroupKey, Owner, Patch, Scope, Target, Use},
    endpoints::{Endpoints, Here},
    health::HealthCheck,
    held::Held,
};
use crate::{
    config::{LoadBalancer, NodePortMode},
    model::{Exposure, Model, ObjectName, Service, ServicePort},
    problem::Problem,
};

/// What a Service has in force, or says it should have.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceClaims {
    created: i64,
    addresses: Vec<(Ip4, VirtualIp)>,
    /// Frontends and where its health check is asked, in ascending order.
    exposed: Vec<ServiceKey<V4>>,
    health_check: Option<u16>,
    /// The port of its health check that is in force.
    answered: Option<u16>,
    held: Held,
}

impl ServiceClaims {
    fn is_empty(&self) -> bool {
        let no_health_check = self.health_check.is_none() && self.answered.is_none();
        self.addresses.is_empty() && self.exposed.is_empty() && self.held.is_empty() && no_health_check
    }
}

/// A frontend that a Service asks for beyond its ClusterIP.
#[derive(Clone, Copy)]
struct Exposed {
    /// Index of the Service's port.
    port: usize,
    /// One of [`kind`].
    kind: u32,
    at_node: bool,
}

/// What one Service comes to.
#[derive(Default)]
struct Outcome {
    frontends: BTreeMap<ServiceKey<V4>, Frontend>,
    groups: BTreeMap<GroupKey, Group>,
    health_check: Option<(u16, HealthCheck)>,
    problems: Vec<Problem>,
}

/// The groups of one port, made when first asked for.
struct PortGroups<'a> {
    endpoints: &'a Endpoints,
    owner: Owner,
    port: Port,
    proto: u8,
    maglev: bool,
}

impl PortGroups<'_> {
    /// Sees to it that the group is there. Whether it has nobody although others could serve.
    fn ensure(&self, scope: Scope, groups: &mut BTreeMap<GroupKey, Group>) -> bool {
        let key = GroupKey { owner: self.owner.clone(), port: self.port, proto: self.proto, scope };
        let group = groups.entry(key).or_insert_with(|| Group { backends: self.backends(scope), maglev: self.maglev });
        group.backends.is_empty() && self.endpoints.any()
    }

    fn backends(&self, scope: Scope) -> BTreeMap<Target, Use> {
        if scope == Scope::Local { self.endpoints.of_node() } else { self.endpoints.of_cluster() }
    }
}

fn rank(service: &Service) -> Rank {
    Rank { created: service.created, name: service.name.clone() }
}

fn v4(ips: &[IpAddr]) -> impl Iterator<Item = Ip4> {
    ips.iter().filter_map(|ip| match ip {
        IpAddr::V4(ip) => Some(Ip4::from(*ip)),
        IpAddr::V6(_) => None,
    })
}

/// Those of a load balancer that apply to IPv4. With ranges of the other family alone everybody is let in, as by kube-proxy.
fn source_ranges(exposure: &Exposure) -> BTreeSet<Ipv4Net> {
    let ranges = exposure.source_ranges.iter().filter_map(|range| match range {
        IpNet::V4(range) => Some(*range),
        IpNet::V6(_) => None,
    });
    ranges.collect()
}

/// Every address that a Service says is its, with what it is to it.
fn addresses(service: &Service) -> Vec<(Ip4, VirtualIp)> {
    let cluster = v4(&service.cluster_ips).map(|ip| (ip, VirtualIp::Cluster));
    let exposure = service.exposure.iter();
    let outside = exposure.flat_map(|exposure| {
        let balancers = v4(&exposure.load_balancer_ips).map(|ip| (ip, VirtualIp::LoadBalancer));
        balancers.chain(v4(&exposure.external_ips).map(|ip| (ip, VirtualIp::External)))
    });
    cluster.chain(outside).collect()
}

impl Compiler {
    /// Takes back the addresses that a Service claimed before and takes down those it claims now.
    pub(super) fn claim_service(&mut self, service: Option<&Service>, name: &ObjectName, affected: &mut Affected) {
        affected.services.insert(name.clone());
        let now = service.map(addresses).unwrap_or_default();
        let created = service.map_or(0, |service| service.created);
        let mut claims = self.services.remove(name).unwrap_or_default();
        if claims.created != created || claims.addresses != now {
            let before = Rank { created: claims.created, name: name.clone() };
            for (addr, role) in std::mem::take(&mut claims.addresses) {
                let claimant = Claimant::Service { rank: before.clone(), role };
                self.addresses.remove(addr, &claimant);
                self.problems.remove(&Subject::Address(addr, claimant));
                affected.addresses.insert(addr);
            }
            let rank = Rank { created, name: name.clone() };
            for &(addr, role) in &now {
                self.addresses.add(addr, Claimant::Service { rank: rank.clone(), role });
                affected.addresses.insert(addr);
            }
            if claims.created != created {
                self.withdraw_claims(&before, &mut claims, affected);
            }
            claims.addresses = now;
            claims.created = created;
        }
        if !claims.is_empty() {
            self.services.insert(name.clone(), claims);
        }
    }

    /// Takes down which frontends at outside addresses a Service asks for, once addresses are settled.
    pub(super) fn claim_frontends(&mut self, model: &Model, name: &ObjectName, affected: &mut Affected) {
        let service = model.services().get(name);
        let exposure = service.and_then(|service| service.exposure.as_deref());
        let health_check = exposure.and_then(|exposure| exposure.health_check_port);
        let mut exposed: BTreeSet<_> = service.map(|service| self.exposed(service).into_keys().collect()).unwrap_or_default();
        exposed.extend(health_check.into_iter().flat_map(|port| self.health_check_keys(port)));
        let exposed = exposed.into_iter().collect();
        let mut claims = self.services.remove(name).unwrap_or_default();
        claims.created = service.map_or(claims.created, |service| service.created);
        let rank = Rank { created: claims.created, name: name.clone() };
        self.change_claims(&rank, &mut claims, exposed, health_check, affected);
        if !claims.is_empty() {
            self.services.insert(name.clone(), claims);
        }
    }

    fn withdraw_claims(&mut self, rank: &Rank, claims: &mut ServiceClaims, affected: &mut Affected) {
        self.change_claims(rank, claims, Vec::new(), None, affected);
    }

    fn change_claims(
        &mut self,
        rank: &Rank,
        claims: &mut ServiceClaims,
        exposed: Vec<ServiceKey<V4>>,
        health_check: Option<u16>,
        affected: &mut Affected,
    ) {
        let others = self.exposed.change(&Exposer::Service(rank.clone()), &claims.exposed, &exposed);
        affected.contend(others);
        let (before, now) = (claims.health_check.as_slice(), health_check.as_slice());
        let others = self.health_ports.change(rank, before, now);
        affected.contending.extend(others.into_iter().map(|rank| rank.name));
        claims.exposed = exposed;
        claims.health_check = health_check;
    }

    /// Where a Service's health check is asked: at the addresses that node ports are at, where no frontend can be besides.
    fn health_check_keys(&self, port: u16) -> impl Iterator<Item = ServiceKey<V4>> {
        let port = Port::from_host(port);
        self.node_port_addresses.iter().map(move |&addr| ServiceKey { addr, port, proto: proto::TCP, reserved: 0 })
    }

    /// What a Service asks for beyond its ClusterIP. Where one frontend is asked for twice, a load balancer's stands: it may be limited.
    fn exposed(&self, service: &Service) -> BTreeMap<ServiceKey<V4>, Exposed> {
        let mut exposed = BTreeMap::new();
        let Some(exposure) = &service.exposure else { return exposed };
        let rank = rank(service);
        let key = |addr, port, protocol: &ServicePort| ServiceKey {
            addr,
            port: Port::from_host(port),
            proto: protocol.protocol.number(),
            reserved: 0,
        };
        let virtual_ips = [
            (&exposure.load_balancer_ips, VirtualIp::LoadBalancer, kind::LOAD_BALANCER),
            (&exposure.external_ips, VirtualIp::External, kind::EXTERNAL_IP),
        ];
        for (ips, role, kind) in virtual_ips {
            for addr in v4(ips).filter(|&addr| self.is_served(addr, &rank, role)) {
                let at_node = self.is_of_node(addr);
                for (i, port) in service.ports.iter().enumerate() {
                    exposed.entry(key(addr, port.port, port)).or_insert(Exposed { port: i, kind, at_node });
                }
            }
        }
        for (i, port) in service.ports.iter().enumerate() {
            if let Some(node_port) = port.node_port {
                for &addr in &self.node_port_addresses {
                    let it = Exposed { port: i, kind: kind::NODE_PORT, at_node: true };
                    exposed.entry(key(addr, node_port, port)).or_insert(it);
                }
            }
        }
        exposed
    }

    /// Brings a Service's part of the aim up to date, once claims are settled.
    pub(super) fn resolve_service(&mut self, model: &Model, name: &ObjectName, patch: &mut Patch) {
        let service = model.services().get(name);
        for (_, slice) in service.map_or(&[][..], |_| model.slices_of(name)) {
            self.endpoints_seen.extend(slice.endpoints.iter().flat_map(|it| v4(std::slice::from_ref(&it.address))));
        }
        let outcome = service.map(|service| self.outcome(model, service)).unwrap_or_default();
        let Outcome { frontends, groups, health_check, problems } = outcome;
        let answered = health_check.as_ref().map(|(port, _)| *port);
        if let Some((port, health_check)) = health_check {
            self.desired.set_health_check(port, Some(health_check), patch);
        }
        if problems.is_empty() {
            self.service_problems.remove(name);
        } else {
            self.service_problems.insert(name.clone(), problems);
        }
        let is_limited = frontends.values().any(Frontend::is_limited);
        let exposure = service.and_then(|service| service.exposure.as_deref()).filter(|_| is_limited);
        self.desired.set_source_ranges(name, exposure.map(source_ranges), patch);

        let mut claims = self.services.remove(name).unwrap_or_default();
        let gone = std::mem::replace(&mut claims.answered, answered).filter(|port| answered != Some(*port));
        if let Some(port) = gone.filter(|port| self.desired.health_checks.get(port).is_some_and(|it| it.service == *name)) {
            self.desired.set_health_check(port, None, patch);
        }
        let owner = Owner::Service(name.clone());
        self.replace(&mut claims.held, frontends, groups, |other| *other == owner, patch);
        if !claims.is_empty() {
            self.services.insert(name.clone(), claims);
        }
    }

    fn outcome(&self, model: &Model, service: &Service) -> Outcome {
        let mut outcome = Outcome::default();
        let here = Here { node: &self.view.name, zone: self.zone.as_deref() };
        let rank = rank(service);
        self.refuse_virtual_endpoints(model, service, &mut outcome.problems);
        let owned: Vec<Ip4> =
            v4(&service.cluster_ips).filter(|&addr| self.is_served(addr, &rank, VirtualIp::Cluster)).collect();
        let exposed = self.exposed(service);
        let mut of_port = vec![Vec::new(); service.ports.len()];
        for (&key, &it) in &exposed {
            of_port[it.port].push((key, it));
        }
        let mut ready = BTreeSet::new();
        let mut is_terminating = false;
        for ((i, port), exposed) in service.ports.iter().enumerate().zip(of_port) {
            let endpoints = Endpoints::of(service, port, model.slices_of(&service.name), here, |addr| self.is_virtual(addr));
            is_terminating |= endpoints.health(&mut ready);
            let groups = PortGroups {
                endpoints: &endpoints,
                owner: Owner::Service(service.name.clone()),
                port: Port::from_host(port.port),
                proto: port.protocol.number(),
                maglev: self.view.load_balancer == LoadBalancer::Maglev && service.affinity_secs.is_none(),
            };
            for &addr in &owned {
                let key = ServiceKey { addr, port: groups.port, proto: groups.proto, reserved: 0 };
                let it = Exposed { port: i, kind: kind::CLUSTER_IP, at_node: false };
                self.add_frontend(service, key, it, &groups, &mut outcome);
            }
            for (key, it) in exposed {
                match self.exposed.owner(&key) {
                    Some(Exposer::Service(owner)) if *owner == rank => {
                        self.add_frontend(service, key, it, &groups, &mut outcome);
                    }
                    Some(owner) => {
                        let message =
                            format!("{} is {owner}'s already; give one of the two another port or address", shown(&key));
                        outcome.problems.push(problem(service, field(i, it.kind), message));
                    }
                    None => {}
                }
            }
        }
        let exposure = service.exposure.as_deref();
        if let Some(port) = exposure.and_then(|exposure| exposure.health_check_port) {
            match self.who_forbids(port, &rank, &exposed) {
                Some(message) => outcome.problems.push(problem(service, "spec.healthCheckNodePort".to_owned(), message)),
                None => {
                    let health_check = HealthCheck {
                        service: service.name.clone(),
                        local_ready: ready.len() as u32,
                        only_terminating: ready.is_empty() && is_terminating,
                    };
                    outcome.health_check = Some((port, health_check));
                }
            }
        }
        outcome
    }

    /// Why a Service cannot have its health check at a port, if it cannot.
    fn who_forbids(&self, port: u16, rank: &Rank, exposed: &BTreeMap<ServiceKey<V4>, Exposed>) -> Option<String> {
        if let Some(owner) = self.health_ports.owner(&port).filter(|owner| *owner != rank) {
            return Some(format!("{port} is Service {}'s already; give one of the two another port", owner.name));
        }
        self.health_check_keys(port).find_map(|key| match self.exposed.owner(&key) {
            Some(Exposer::Service(owner)) if owner == rank => {
                let own =
                    || format!("{} leads to this Service's endpoints already; give one of the two another port", shown(&key));
                exposed.contains_key(&key).then(own)
            }
            owner => owner.map(|owner| format!("{} is {owner}'s already; give one of the two another port", shown(&key))),
        })
    }

    /// The frontend with its groups; none of SCTP where the port would have to be translated, which would take a new checksum over the
    /// whole packet.
    fn add_frontend(
        &self,
        service: &Service,
        key: ServiceKey<V4>,
        it: Exposed,
        groups: &PortGroups<'_>,
        outcome: &mut Outcome,
    ) {
        if key.proto == proto::SCTP
            && let Some(target) = groups.endpoints.of_cluster().keys().find(|target| target.port != key.port)
        {
            let message = format!(
                "{} leads to port {} of its endpoints; SCTP is forwarded only where the two ports are equal",
                shown(&key),
                target.port
            );
            outcome.problems.push(problem(service, field(it.port, it.kind), message));
            return;
        }
        let is_exposed = it.kind != kind::CLUSTER_IP;
        let exposure = service.exposure.as_deref().filter(|_| is_exposed);
        let keeps_local = exposure.is_some_and(|exposure| exposure.local);
        let scope = |is_local| if is_local { Scope::Local } else { Scope::Cluster };
        let cluster = scope(!is_exposed && service.internal_local);
        let outside = if is_exposed { scope(keeps_local) } else { cluster };
        let is_limited = it.kind == kind::LOAD_BALANCER
            && exposure.is_some_and(|exposure| exposure.source_ranges.iter().any(|range| matches!(range, IpNet::V4(_))));
        let is_direct = it.kind == kind::NODE_PORT && outside == Scope::Cluster && self.view.node_port == NodePortMode::Dsr;
        let bits = [
            (groups.ensure(cluster, &mut outcome.groups), flags::DROP_WHEN_EMPTY),
            (groups.ensure(outside, &mut outcome.groups), flags::DROP_OUTSIDE_WHEN_EMPTY),
            (cluster == Scope::Local, flags::LOCAL),
            (outside == Scope::Local, flags::OUTSIDE_LOCAL),
            // What answers by itself sees the client; so does a pod of this node, that it makes no difference.
            (keeps_local || is_direct, flags::KEEP_SOURCE),
            (is_direct, flags::DIRECT_RETURN),
            (is_exposed, flags::EXTERNAL),
            (service.affinity_secs.is_some(), flags::AFFINITY),
            (is_limited, flags::SOURCE_RANGES),
            (groups.maglev, flags::MAGLEV),
        ];
        let flags = bits.iter().filter(|(applies, _)| *applies).fold(it.kind << flags::KIND_SHIFT, |all, (_, bit)| all | bit);
        let frontend = Frontend {
            owner: groups.owner.clone(),
            port: groups.port,
            cluster,
            outside,
            flags,
            affinity_secs: service.affinity_secs.unwrap_or(0),
            at_node: it.at_node,
        };
        outcome.frontends.insert(key, frontend);
    }

    /// What goes to a virtual IP is translated once: an endpoint there leads nowhere.
    fn refuse_virtual_endpoints(&self, model: &Model, service: &Service, problems: &mut Vec<Problem>) {
        for (name, slice) in model.slices_of(&service.name) {
            for (i, endpoint) in slice.endpoints.iter().enumerate() {
                let Some(addr) = v4(std::slice::from_ref(&endpoint.address)).find(|&addr| self.is_virtual(addr)) else {
                    continue;
                };
                problems.push(Problem {
                    object: Some(format!("EndpointSlice {}/{name}", service.name.namespace)),
                    field: Some(format!("endpoints[{i}].addresses[0]")),
                    message: format!(
                        "{addr} is the virtual IP of a Service, where nobody answers; give the address of a pod or host"
                    ),
                    ..Problem::default()
                });
            }
        }
    }
}

fn field(port: usize, kind: u32) -> String {
    format!("spec.ports[{port}].{}", if kind == kind::NODE_PORT { "nodePort" } else { "port" })
}

fn problem(service: &Service, field: String, message: String) -> Problem {
    Problem { object: Some(format!("Service {}", service.name)), field: Some(field), message, ..Problem::default() }
}

/// A frontend, for people.
pub(super) fn shown(key: &ServiceKey<V4>) -> String {
    let protocol = match key.proto {
        proto::TCP => "TCP",
        proto::UDP => "UDP",
        _ => "SCTP",
    };
    format!("{}:{}/{protocol}", Ipv4Addr::from(key.addr), key.port)
}
