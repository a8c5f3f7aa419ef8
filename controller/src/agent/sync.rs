//! Cluster state into force: compile, diff, carry out.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use ipnet::Ipv4Net;
use tokio::sync::watch;

use super::health_checks::HealthChecks;
use crate::{
    compile::{Compiler, NodeView, desired::Patch},
    diff::{
        Capacities, Differ, Plan,
        audit::{Audit, Finding},
    },
    kernel::{
        bpf::{BpfError, BpfKernel},
        step::{Actual, Kernel as _},
    },
    model::{Changes, HostPort, Model},
    problem::Problem,
    socket::{protocol::SyncReport, server::unix_ms},
};

/// Plans that make room for what found none are followed by another; a bound, for nothing ever needs more than a few.
const ROUNDS: usize = 8;

/// What the kernel should hold, and what it is known to hold.
#[derive(Debug)]
pub(super) struct Sync {
    compiler: Compiler,
    /// `None` when carrying out has failed and it is not certain any more what the kernel holds.
    differ: Option<Differ>,
    /// What load balancers are told: what the kernel holds, and never before it does.
    health_checks: watch::Sender<HealthChecks>,
    /// Ports of those that have changed since.
    untold: BTreeSet<u16>,
}

impl Sync {
    /// The aim for a node with the host ports of its pods, and nothing carried out yet.
    pub(super) fn new(
        view: NodeView,
        model: &Model,
        host_ports: BTreeSet<HostPort>,
        health_checks: watch::Sender<HealthChecks>,
    ) -> Self {
        let mut compiler = Compiler::new(view);
        compiler.set_host_ports(host_ports);
        let mut untold = compiler.update(model, &Changes::all(model)).health_checks;
        untold.extend(health_checks.borrow().ports());
        Self { compiler, differ: None, health_checks, untold }
    }

    /// Follows a change of the cluster.
    pub(super) fn follow(&mut self, model: &Model, changes: &Changes, kernel: &mut BpfKernel) -> Result<SyncReport, BpfError> {
        let start = Instant::now();
        let patch = self.compiler.update(model, changes);
        self.untold.extend(&patch.health_checks);
        self.bring_into_force(&patch, kernel, start)
    }

    /// Follows a change of this node's pods: these are all host ports there are. `None` if they are the same, and in force.
    pub(super) fn set_host_ports(
        &mut self,
        host_ports: BTreeSet<HostPort>,
        kernel: &mut BpfKernel,
    ) -> Option<Result<SyncReport, BpfError>> {
        if self.is_certain() && *self.compiler.host_ports() == host_ports {
            return None;
        }
        let start = Instant::now();
        let patch = self.compiler.set_host_ports(host_ports);
        Some(self.bring_into_force(&patch, kernel, start))
    }

    fn bring_into_force(&mut self, patch: &Patch, kernel: &mut BpfKernel, start: Instant) -> Result<SyncReport, BpfError> {
        match self.differ.take() {
            Some(mut differ) => {
                let plan = differ.plan(self.compiler.desired(), patch);
                self.carry_out(differ, plan, kernel, start)
            }
            None => {
                let actual = kernel.read_back()?;
                self.reconcile(&actual, kernel)
            }
        }
    }

    /// Brings the kernel from what was read back to the aim.
    pub(super) fn reconcile(&mut self, actual: &Actual, kernel: &mut BpfKernel) -> Result<SyncReport, BpfError> {
        let start = Instant::now();
        let mut differ = Differ::new(actual, Capacities::default());
        let plan = differ.reconcile(self.compiler.desired());
        self.carry_out(differ, plan, kernel, start)
    }

    fn carry_out(
        &mut self,
        mut differ: Differ,
        mut plan: Plan,
        kernel: &mut BpfKernel,
        start: Instant,
    ) -> Result<SyncReport, BpfError> {
        self.differ = None;
        let mut steps = 0;
        for _ in 0..ROUNDS {
            kernel.carry_out(&plan.steps).map_err(|(_, error)| error)?;
            steps += plan.steps.len();
            if !plan.again {
                break;
            }
            plan = differ.plan(self.compiler.desired(), &Patch::default());
        }
        self.differ = Some(differ);
        self.tell_balancers();
        let duration_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(SyncReport { at_unix_ms: unix_ms(), duration_us, steps: steps as u64 })
    }

    fn tell_balancers(&mut self) {
        let (addresses, desired) = (self.compiler.node_port_addresses(), &self.compiler.desired().health_checks);
        let untold = std::mem::take(&mut self.untold);
        self.health_checks.send_if_modified(|told| told.follow(addresses, desired, &untold));
    }

    /// Goes on with an audit; `None` while it is not certain what the kernel should hold.
    pub(super) fn audit(&self, audit: &mut Audit<BpfKernel>, kernel: &BpfKernel) -> Option<Result<Finding, BpfError>> {
        self.differ.as_ref().map(|differ| audit.step(differ, kernel))
    }

    /// Host routes that are missing from those listed, or too many; `None` while that is not certain.
    pub(super) fn different_host_routes(&self, listed: &BTreeSet<Ipv4Net>) -> Option<BTreeSet<Ipv4Net>> {
        self.differ.as_ref().map(|differ| differ.host_routes() ^ listed)
    }

    /// Another's plan for `model` was carried out in part, and this goes on: with the same aim, since changes may have gone by, and with nothing
    /// certain of what the kernel holds.
    pub(super) fn resume(&mut self, model: &Model) {
        let view = self.compiler.view().clone();
        self.untold.extend(self.compiler.set_view(view, model).health_checks);
        self.doubt();
    }

    /// What the kernel holds is not certain any more: whatever comes next reads it back.
    pub(super) fn doubt(&mut self) {
        self.differ = None;
    }

    /// Whether the kernel is known to hold what it should, as far as it fits.
    pub(super) fn is_certain(&self) -> bool {
        self.differ.is_some()
    }

    /// Why a pod range of this node is not believed, if it is not.
    pub(super) fn refusal_of_own_range(&self, range: Ipv4Net) -> Option<&Problem> {
        self.compiler.refusal_of_own_range(range)
    }

    /// Contradictions between objects, and what found no room.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = self.compiler.problems();
        problems.extend(self.differ.iter().flat_map(Differ::problems));
        problems
    }

    /// Each map with the entries in use, pods' excepted, and those that fit; nothing while that is not certain.
    pub(super) fn fill(&self) -> impl Iterator<Item = (&'static str, u32, u32)> {
        self.differ.iter().flat_map(Differ::fill)
    }

    /// `NODE_PORTS` as it should be: ports that are a Service's, a bit each.
    pub(super) fn node_ports(&self) -> &BTreeMap<u32, u64> {
        &self.compiler.desired().node_ports
    }

    /// Frontends, and backends of all groups that they share.
    pub(super) fn counts(&self) -> (u64, u64) {
        let desired = self.compiler.desired();
        (desired.frontends.len() as u64, desired.groups.values().map(|group| group.backends.len() as u64).sum())
    }
}
