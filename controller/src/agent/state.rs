//! Everything the agent knows and does, behind one lock: cluster state and requests come in, the kernel is written. No waiting here.

mod audit;
mod bring_up;
mod facts;
mod host_ports;
mod mending;
mod outside;
mod requests;
mod reservation;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::{Notify, broadcast, watch};

pub(super) use self::facts::Facts;
use self::reservation::Reservation;
use super::{
    dataplane::{Dataplane, Found},
    health::{Health, Subject},
    health_checks::HealthChecks,
    own_node::OwnNode,
    pods::Attached,
    sync::Sync,
    takeover::Takeover,
};
use crate::{
    cluster::{Receptions, Source},
    config::AgentOptions,
    install::Record,
    ipam::Ipam,
    kernel::{events::Listeners, pins::PinDir, step::Kernel as _, watch::Change},
    metrics::instruments::Instruments,
    model::{Changes, Model},
    problem::{Problem, with_causes},
    socket::{
        protocol::{Happening, MonitorEvent, SyncReport},
        server::unix_ms,
    },
};

/// Events that a slow listener may lag behind before it loses some.
const BACKLOG: usize = 4096;

/// Changes whose latency is remembered while they cannot be brought into force.
const TRIGGERS: usize = 10_000;

/// What is there while the dataplane is up.
#[derive(Debug)]
struct Up {
    dataplane: Dataplane,
    sync: Sync,
    pods: Attached,
    listeners: Listeners,
}

/// What the cluster state says besides its model.
#[derive(Debug, Default)]
struct Remarks {
    /// As of which revision of the source.
    revision: Option<u64>,
    problems: Vec<Problem>,
    notices: Vec<Problem>,
    nodes: u64,
}

/// The agent.
#[derive(Debug)]
pub(super) struct State {
    options: AgentOptions,
    dir: PinDir,
    ipam: Ipam,
    reservation: Reservation,
    record: Record,
    takeover: Takeover,
    health: Health,
    own: Option<OwnNode>,
    up: Option<Up>,
    receptions: Receptions,
    remarks: Remarks,
    problems: Vec<Problem>,
    /// Told when pods and what the kernel holds are to be looked over.
    audit_due: Arc<Notify>,
    /// When what is not in force yet happened.
    triggers: Vec<SystemTime>,
    last_sync: Option<SyncReport>,
    events: broadcast::Sender<MonitorEvent>,
    instruments: Arc<Instruments>,
    facts: watch::Sender<Facts>,
    health_checks: watch::Sender<HealthChecks>,
    /// Health checks that nobody can ask for.
    mute: Vec<Problem>,
    /// What an operator should know of the CNI installation.
    installation: Vec<String>,
}

impl State {
    pub(super) fn new(
        options: AgentOptions,
        ipam: Ipam,
        record: Record,
        takeover: Takeover,
        receptions: Receptions,
        instruments: Arc<Instruments>,
    ) -> Self {
        Self {
            dir: PinDir::new(&options.pin_dir),
            options,
            ipam,
            reservation: Reservation::new(record.clone()),
            record,
            takeover,
            health: Health::default(),
            own: None,
            up: None,
            receptions,
            remarks: Remarks::default(),
            problems: Vec::new(),
            audit_due: Arc::default(),
            triggers: Vec::new(),
            last_sync: None,
            events: broadcast::Sender::new(BACKLOG),
            instruments,
            facts: watch::Sender::default(),
            health_checks: watch::Sender::default(),
            mute: Vec::new(),
            installation: Vec::new(),
        }
    }

    /// Where listeners' events go.
    pub(super) fn events(&self) -> broadcast::Sender<MonitorEvent> {
        self.events.clone()
    }

    /// Whether something that happened may be to devices that the dataplane depends on.
    pub(super) fn is_concerned_by(&self, change: &Change) -> bool {
        let Some(up) = &self.up else { return true };
        let is_pods = |name: &str| up.pods.values().any(|(pod, _)| pod.host_interface == name);
        change.concerns_node(|name| up.dataplane.is_wire(name), is_pods)
    }

    /// The underlay's name, once known.
    pub(super) fn underlay(&self) -> Option<&str> {
        self.up.as_ref().map(|up| up.dataplane.underlay.as_str())
    }

    /// Whether everything is as it should be: nothing to be tried again.
    pub(super) fn is_settled(&self) -> bool {
        let is_settled = |subject| self.health.reason(subject).is_none();
        [Subject::Dataplane, Subject::Sync, Subject::Pods].into_iter().all(is_settled)
    }

    /// What runs beside this.
    pub(super) fn note(&mut self, subject: Subject, outcome: &Result<(), impl std::error::Error>) {
        self.health.set(subject, outcome);
        self.publish();
    }

    /// Follows a change of the cluster state.
    pub(super) fn cluster_changed(&mut self, source: &Source, changes: &Changes) {
        self.note_source(source);
        if !source.is_complete() {
            return self.note_problems();
        }
        let room = TRIGGERS.saturating_sub(self.triggers.len());
        self.triggers.extend(changes.triggers.iter().take(room));
        let before = self.own;
        self.note_own_node(source.model());
        let is_same_node = before.zip(self.own).is_some_and(|(before, own)| own.has_same_tunnel_end(&before));
        match &mut self.up {
            // News of the source alone.
            Some(up) if is_same_node && changes.is_empty() && up.sync.is_certain() => {}
            Some(up) if is_same_node => {
                let report = up.sync.follow(source.model(), changes, &mut up.dataplane.kernel);
                self.note_sync(&report);
                if let Ok(report) = report {
                    self.synced(report);
                }
            }
            _ => self.bring_up(source.model()),
        }
        self.note_problems();
    }

    /// Looks at the node's devices and programs, and has pods, maps and routes looked over beside the loop. Mends what is not as it should be,
    /// and tries again what failed.
    pub(super) fn check(&mut self, source: &Source) {
        self.note_source(source);
        if !source.is_complete() {
            return self.note_problems();
        }
        self.note_own_node(source.model());
        let (Some(own), Some(up)) = (self.own, &mut self.up) else {
            self.bring_up(source.model());
            return self.note_problems();
        };
        match up.dataplane.check(&self.options, &own, &self.record) {
            Ok(Found::AsItWas) => self.health.mend(Subject::Dataplane),
            Ok(Found::Changed) => {
                tracing::info!("a device, an address or a link of the node has changed: the dataplane is set up anew");
                self.bring_up(source.model());
                return self.note_problems();
            }
            Err(error) => return self.health.fail(Subject::Dataplane, with_causes(&error)),
        }
        if let Err(error) = up.dataplane.kernel.contend_again() {
            tracing::warn!("all routes are looked over: {}", with_causes(&error));
            up.sync.doubt();
        }
        if !up.sync.is_certain() {
            self.reconcile();
        }
        self.audit_due.notify_one();
        // If that fails, it is in the health and will be tried again.
        let _ = self.follow_host_ports(None);
        self.adopt_late_pods();
        self.reservation.look_again();
        self.reserve_node_ports();
        self.note_problems();
    }

    /// Keeps the ports of Services from sockets of the node.
    fn reserve_node_ports(&mut self) {
        let Some(up) = &self.up else { return };
        let outcome = self.reservation.keep(up.sync.node_ports());
        self.health.set(Subject::ReservedPorts, &outcome);
    }

    /// Reads back what the kernel holds and mends it.
    fn reconcile(&mut self) {
        let Some(up) = &mut self.up else { return };
        let was_certain = up.sync.is_certain();
        let actual = match up.dataplane.kernel.read_back() {
            Ok(actual) => actual,
            Err(error) => {
                up.sync.doubt();
                return self.health.fail(Subject::Sync, with_causes(&error));
            }
        };
        let report = up.sync.reconcile(&actual, &mut up.dataplane.kernel);
        self.note_sync(&report);
        if let Ok(report) = report {
            if was_certain && report.steps > 0 {
                tracing::warn!(steps = report.steps, "maps or routes were changed by someone else, and are mended");
            }
            if report.steps > 0 {
                self.synced(report);
            }
        }
    }

    fn note_own_node(&mut self, model: &Model) {
        let name = self.options.node_name.as_str();
        let Some(node) = model.nodes().get(name) else {
            // A Node that is gone for a moment takes nothing down; pods of this node still run.
            let reason = format!("there is no Node {name} in the cluster state: add it, or correct --node-name");
            return self.health.fail(Subject::Node, reason);
        };
        match OwnNode::of(node) {
            Some(own) => {
                self.health.mend(Subject::Node);
                self.own = Some(own);
            }
            None => {
                let reason = format!("Node {name} has no IPv4 address: give it an InternalIP in status.addresses");
                self.health.fail(Subject::Node, reason);
            }
        }
    }

    fn note_source(&mut self, source: &Source) {
        self.remarks.nodes = source.model().nodes().len() as u64;
        if self.remarks.revision != Some(source.revision()) {
            self.remarks.revision = Some(source.revision());
            self.remarks.problems = source.problems();
            self.remarks.notices = source.notices();
        }
        match source.trouble() {
            Some(trouble) => self.health.fail(Subject::Source, trouble),
            None => self.health.mend(Subject::Source),
        }
    }

    /// Logs and tells of problems that are new, or gone.
    fn note_problems(&mut self) {
        let mut problems = self.remarks.problems.clone();
        problems.extend(self.up.iter().flat_map(|up| up.sync.problems()));
        let contested = self.up.iter().flat_map(|up| up.dataplane.kernel.contested());
        problems.extend(contested.map(|(prefix, contested)| contested.problem(*prefix)));
        problems.extend(self.pods_left_outside());
        problems.extend_from_slice(&self.mute);
        problems.sort();
        problems.dedup();
        self.note_pod_range();
        for problem in problems.iter().filter(|problem| self.problems.binary_search(problem).is_err()) {
            tracing::warn!("refused: {problem}");
            self.tell(Happening::Problem(problem.clone()));
        }
        for problem in self.problems.iter().filter(|problem| problems.binary_search(problem).is_err()) {
            tracing::info!("no longer refused: {problem}");
        }
        self.problems = problems;
        self.publish();
    }

    fn note_sync(&mut self, report: &Result<SyncReport, impl std::error::Error>) {
        self.health.set(Subject::Sync, report);
        match report {
            Ok(_) => self.in_force(),
            Err(_) => self.instruments.sync_failed(),
        }
    }

    /// All that was heard is in the maps.
    fn in_force(&mut self) {
        let now = SystemTime::now();
        self.triggers.drain(..).for_each(|trigger| self.instruments.programmed(trigger, now));
    }

    fn synced(&mut self, report: SyncReport) {
        self.instruments.synced(Duration::from_micros(report.duration_us), report.steps, SystemTime::now());
        tracing::debug!(steps = report.steps, duration_us = report.duration_us, "cluster state is in force");
        self.last_sync = Some(report);
        self.reserve_node_ports();
        self.tell(Happening::Synced(report));
    }

    fn tell(&self, what: Happening) {
        if self.events.receiver_count() > 0 {
            // An error only says that the last listener has just left.
            let _ = self.events.send(MonitorEvent { unix_ms: unix_ms(), what });
        }
    }

    /// How many listen to events.
    fn listening(&self) -> u32 {
        u32::try_from(self.events.receiver_count()).unwrap_or(u32::MAX)
    }
}
