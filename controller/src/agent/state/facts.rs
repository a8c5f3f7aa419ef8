//! What the agent says of itself to those who keep the rest of the node in step with it, beside the loop; and the pod range, which
//! most of it is about.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use tokio::sync::watch;

use super::State;
use crate::{
    agent::{health::Subject, health_checks::HealthChecks},
    announce::node::TunnelEnd,
    install::InstallError,
    ipam::IpamError,
    problem::Problem,
    socket::protocol::{Refusal, RefusalReason},
};

/// What is so at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::agent) struct Facts {
    /// Whether pods can be added.
    pub(in crate::agent) can_add_pods: bool,
    /// Once the dataplane is up.
    pub(in crate::agent) tunnel_end: Option<TunnelEnd>,
    /// Why the node is not healthy.
    pub(in crate::agent) reasons: BTreeMap<Subject, String>,
    /// What was refused.
    pub(in crate::agent) problems: Vec<Problem>,
    /// How many Nodes there are.
    pub(in crate::agent) nodes: u64,
}

impl Facts {
    /// Whether the node is a way to Services: the dataplane stands, and holds what the cluster says.
    pub(in crate::agent) fn serves(&self) -> bool {
        let is_well = |subject| !self.reasons.contains_key(&subject);
        self.tunnel_end.is_some() && is_well(Subject::Dataplane) && is_well(Subject::Sync)
    }
}

impl State {
    /// What is so, now and whenever it changes.
    pub(in crate::agent) fn facts(&self) -> watch::Receiver<Facts> {
        self.facts.subscribe()
    }

    /// Tells what is so to those who follow it.
    pub(super) fn publish(&self) {
        let can_add_pods = self.ready().is_ok();
        let tunnel_end = self.up.as_ref().map(|up| TunnelEnd {
            ip: up.dataplane.config.node_ip.into(),
            mac: up.dataplane.config.tunnel_mac,
            vni: up.dataplane.config.vni,
        });
        self.facts.send_if_modified(|facts| {
            let is_same = facts.can_add_pods == can_add_pods
                && facts.tunnel_end == tunnel_end
                && facts.nodes == self.remarks.nodes
                && facts.problems == self.problems
                && facts.reasons == *self.health.by_subject();
            if !is_same {
                let (reasons, problems) = (self.health.by_subject().clone(), self.problems.clone());
                *facts = Facts { can_add_pods, tunnel_end, reasons, problems, nodes: self.remarks.nodes };
            }
            !is_same
        });
    }

    /// What load balancers are to be told, now and whenever a port comes or goes.
    pub(in crate::agent) fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.health_checks.subscribe()
    }

    /// Health checks that nobody can ask for.
    pub(in crate::agent) fn note_mute_health_checks(&mut self, problems: Vec<Problem>) {
        if self.mute != problems {
            self.mute = problems;
            self.note_problems();
        }
    }

    /// The CNI installation, which is kept beside this.
    pub(in crate::agent) fn health_of_installation(&mut self, outcome: Result<Vec<String>, InstallError>) {
        self.health.set(Subject::Installation, &outcome);
        let Ok(notes) = outcome else { return self.publish() };
        for note in notes.iter().filter(|note| !self.installation.contains(note)) {
            tracing::warn!("{note}");
        }
        self.installation = notes;
        self.publish();
    }

    /// Why no pods can be added for the range's sake, if that is so.
    pub(super) fn note_pod_range(&mut self) {
        match self.pod_range() {
            Err(refusal) if self.own.is_some() => self.health.fail(Subject::PodRange, refusal.message),
            _ => self.health.mend(Subject::PodRange),
        }
    }

    /// The range that new pods get addresses of.
    pub(super) fn pod_range(&self) -> Result<Ipv4Net, Refusal> {
        let Some(range) = self.own.and_then(|own| own.pod_cidr) else {
            // Whoever gives out ranges may only not have come to this node yet.
            return Err(Refusal::new(RefusalReason::TryAgain, IpamError::NoRange.to_string()));
        };
        self.ipam.check_range(Some(range))?;
        match self.up.as_ref().and_then(|up| up.sync.refusal_of_own_range(range)) {
            Some(problem) => Err(Refusal::new(RefusalReason::RangeUnusable, format!("pods cannot be added: {problem}"))),
            None => Ok(range),
        }
    }

    /// Pods that were given addresses of a range that the Node no longer has.
    pub(super) fn pods_left_outside(&self) -> Option<Problem> {
        let message = self.ipam.left_outside(self.own?.pod_cidr?)?;
        let object = Some(format!("Node {}", self.options.node_name));
        Some(Problem { object, field: Some("spec.podCIDR".to_owned()), message, ..Problem::default() })
    }
}
