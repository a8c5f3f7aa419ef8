//! Host ports: ports of this node that lead to one pod each.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use shunt_common::{
    net::{Ip4, Port, V4, proto},
    service::{ServiceKey, flags, kind},
};

use super::{
    Compiler,
    claims::Exposer,
    desired::{Frontend, Group, Owner, Patch, Scope, Target, Use},
    held::Held,
    services::shown,
};
use crate::{model::HostPort, problem::Problem};

/// What the pods of this node have in force.
#[derive(Clone, Debug, Default)]
pub(super) struct HostPorts {
    wanted: BTreeSet<HostPort>,
    held: Held,
    pub(super) problems: Vec<Problem>,
}

impl HostPorts {
    /// Port mappings alone.
    pub(super) fn into_wanted(self) -> BTreeSet<HostPort> {
        self.wanted
    }
}

impl Compiler {
    /// Follows a change of the port mappings of this node's pods: these are all of them. No Service minds: whatever it claims, it has
    /// before any pod.
    pub fn set_host_ports(&mut self, wanted: BTreeSet<HostPort>) -> Patch {
        let mut patch = Patch::default();
        let before = std::mem::take(&mut self.host_ports.wanted);
        for gone in before.difference(&wanted) {
            let keys = self.keys_of(gone);
            self.exposed.change(&Exposer::Pod(gone.clone()), &keys, &[]);
        }
        for new in wanted.difference(&before) {
            let keys = self.keys_of(new);
            self.exposed.change(&Exposer::Pod(new.clone()), &[], &keys);
        }
        self.host_ports.wanted = wanted;
        self.resolve_host_ports(&mut patch);
        patch
    }

    /// The port mappings in force.
    #[must_use]
    pub fn host_ports(&self) -> &BTreeSet<HostPort> {
        &self.host_ports.wanted
    }

    /// Where a host port is found: at the address that it is limited to, if that is the node's, else at all of the node's.
    fn keys_of(&self, host_port: &HostPort) -> Vec<ServiceKey<V4>> {
        let own = || self.view.addresses.iter().copied().chain([self.view.ip, LOOPBACK]).collect::<BTreeSet<_>>();
        let addresses = match host_port.host_ip.map(Ip4::from) {
            None => own(),
            Some(addr) if addr.is_loopback() || own().contains(&addr) => [addr].into(),
            Some(_) => BTreeSet::new(),
        };
        let (port, proto) = (Port::from_host(host_port.host_port), host_port.protocol.number());
        addresses.into_iter().map(|addr| ServiceKey { addr, port, proto, reserved: 0 }).collect()
    }

    /// Brings all of them up to date, once claims are settled: a node has few.
    pub(super) fn resolve_host_ports(&mut self, patch: &mut Patch) {
        let mut frontends = BTreeMap::new();
        let mut groups = BTreeMap::new();
        let mut problems = Vec::new();
        for host_port in &self.host_ports.wanted {
            let keys = self.keys_of(host_port);
            let mut refuse = |message: String| {
                let object = Some(format!("Pod {}", host_port.pod));
                let problem = Problem { object, field: Some("hostPort".to_owned()), message, ..Problem::default() };
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            };
            if host_port.protocol.number() == proto::SCTP && host_port.host_port != host_port.pod_port {
                let (from, to) = (host_port.host_port, host_port.pod_port);
                refuse(format!("{from} leads to port {to}; SCTP is forwarded only where the two ports are equal"));
                continue;
            }
            if let (Some(addr), []) = (host_port.host_ip, &*keys) {
                refuse(format!("{addr} is no address of this node; correct hostIP, or leave it out"));
                continue;
            }
            for key in keys {
                match self.exposed.owner(&key) {
                    Some(Exposer::Pod(owner)) if owner == host_port => {}
                    owner => {
                        let owner = owner.map(ToString::to_string).unwrap_or_default();
                        refuse(format!("{} is {owner}'s already; give one of the two another port", shown(&key)));
                        continue;
                    }
                }
                let frontend = frontend(host_port);
                let [group, _] = frontend.groups(key.proto);
                let target = Target { addr: host_port.pod_ip.into(), port: Port::from_host(host_port.pod_port) };
                let backends = [(target, Use { draining: false, local: true })].into();
                groups.entry(group).or_insert(Group { backends, maglev: false });
                frontends.insert(key, frontend);
            }
        }
        let mut held = std::mem::take(&mut self.host_ports.held);
        self.replace(&mut held, frontends, groups, |owner| matches!(owner, Owner::Pod(_)), patch);
        self.host_ports.held = held;
        self.host_ports.problems = problems;
    }
}

const LOOPBACK: Ip4 = Ip4::new(127, 0, 0, 1);

fn frontend(host_port: &HostPort) -> Frontend {
    let scope = Scope::HostPort(host_port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED).into());
    Frontend {
        owner: Owner::Pod(host_port.pod.clone()),
        port: Port::from_host(host_port.host_port),
        cluster: scope,
        outside: scope,
        flags: flags::EXTERNAL | flags::KEEP_SOURCE | kind::HOST_PORT << flags::KIND_SHIFT,
        affinity_secs: 0,
        at_node: true,
    }
}
