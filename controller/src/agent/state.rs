//! Everything the agent knows and does, behind one lock: cluster state and requests come in, the kernel is written. No waiting here.

mod audit;
mod facts;
mod host_ports;
mod mending;
mod outside;
mod reservation;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use shunt_common::net::Mac;
use tokio::sync::{Notify, broadcast, watch};

use crate::{
    attachment::{AttachmentKey, Pod},
    cluster::{Receptions, Source},
    compile::NodeView,
    config::AgentOptions,
    install::Record,
    ipam::Ipam,
    kernel::{events::Listeners, pins::PinDir, step::Kernel as _, watch::Change},
    metrics::instruments::Instruments,
    model::{Changes, Model, Name},
    problem::{Problem, with_causes},
    socket::{
        protocol::{
            Happening, MonitorEvent, PodAdd, PodAdded, PodAttach, PodCheck, PodGc, PodGcDone, Refusal, RefusalReason,
            SyncReport,
        },
        server::unix_ms,
    },
};

pub(super) use self::facts::Facts;
use self::reservation::Reservation;
use super::{
    dataplane::{Dataplane, Found, OwnNode},
    health::{Health, Subject},
    health_checks::HealthChecks,
    pods::{self, Attached},
    sync::Sync,
    takeover::Takeover,
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

    /// Sets the dataplane up over what an earlier agent may have left: maps first, programs last.
    fn bring_up(&mut self, model: &Model) {
        let Some(own) = self.own else { return };
        let outcome = self.try_bring_up(model, &own);
        self.health.set(Subject::Dataplane, &outcome);
        if outcome.is_err()
            && let Some(up) = &mut self.up
        {
            up.dataplane.kernel.look_anew();
            up.sync.resume(model);
        }
        if let Ok(report) = outcome {
            self.health.mend(Subject::Sync);
            self.in_force();
            self.synced(report);
            if let Some(up) = &self.up {
                let (services, backends) = up.sync.counts();
                tracing::info!(
                    node_ip = %own.ip, underlay = up.dataplane.underlay, mtu = up.dataplane.config.mtu, pods = up.pods.len(),
                    services, backends, "the dataplane is up"
                );
                for note in &up.dataplane.notes {
                    tracing::warn!("{note}");
                }
            }
        }
    }

    fn try_bring_up(&mut self, model: &Model, own: &OwnNode) -> Result<SyncReport, pods::PodError> {
        self.takeover.begin(&self.options, own, &mut self.ipam, &self.record)?;
        let mut dataplane = Dataplane::prepare(&self.options, own, &self.record)?;
        let _hurried = self.takeover.hurry();
        self.takeover.hold_back(&mut dataplane)?;
        let view = NodeView {
            name: Name::from(self.options.node_name.as_str()),
            ip: own.ip.into(),
            subnet: dataplane.subnet(),
            addresses: dataplane.addresses.clone(),
            non_masquerade: self.options.config.non_masquerade_cidrs.iter().copied().collect(),
            node_port_addresses: self.options.config.node_port_addresses.clone(),
            node_port: self.options.config.node_port,
            load_balancer: self.options.config.load_balancer,
        };
        let actual = dataplane.kernel.read_back()?;
        let survivors = pods::survivors(dataplane.kernel.netlink(), self.ipam.pods().values())?;
        let host_ports = survivors.iter().flat_map(|(pod, _)| pod.host_ports()).collect();
        let mut sync = Sync::new(view, model, host_ports, self.health_checks.clone());
        pods::restore(&mut dataplane, &survivors, &actual.addresses)?;
        let report = sync.reconcile(&actual, &mut dataplane.kernel)?;
        let interfaces: BTreeMap<String, u32> =
            survivors.iter().map(|(pod, ifindex)| (pod.host_interface.clone(), *ifindex)).collect();
        dataplane.take_over(&interfaces)?;
        for (pod, ifindex) in &survivors {
            pods::open(&mut dataplane, pod, *ifindex)?;
        }
        self.takeover.complete(&mut dataplane, &self.dir)?;
        let listeners = Listeners::adopt(&self.dir)?;
        listeners.set(self.listening())?;
        let pods = survivors.into_iter().map(|(pod, ifindex)| (pod.attachment.clone(), (pod.clone(), ifindex))).collect();
        self.up = Some(Up { dataplane, sync, pods, listeners });
        self.adopt_late_pods();
        Ok(report)
    }

    /// Pods that came to a bridge that was taken over, by whose plugin they were made.
    fn adopt_late_pods(&mut self) {
        let (Some(own), Some(up)) = (&self.own, &mut self.up) else { return };
        let outcome = self.takeover.look_again(own, &self.options, &mut self.ipam);
        self.health.set(Subject::Takeover, &outcome);
        for pod in outcome.unwrap_or_default() {
            match pods::attach(&mut up.dataplane, &pod, None) {
                Ok(ifindex) => {
                    tracing::info!(pod = %pod.attachment, address = %pod.address, "a pod of flannel's was adopted");
                    up.pods.insert(pod.attachment.clone(), (pod, ifindex));
                }
                Err(error) => self.health.fail(Subject::Takeover, format!("pod {}: {}", pod.attachment, with_causes(&error))),
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

    fn not_ready(&self) -> Refusal {
        let reason =
            [Subject::Node, Subject::Dataplane, Subject::Source].into_iter().find_map(|subject| self.health.reason(subject));
        let reason = reason.unwrap_or("the agent is starting");
        Refusal::new(RefusalReason::NotReady, format!("the node's dataplane is not up: {reason}"))
    }

    pub(super) fn ready(&self) -> Result<(), Refusal> {
        if self.own.is_none() || self.up.is_none() {
            return Err(self.not_ready());
        }
        self.pod_range().map(drop)
    }

    pub(super) fn pods(&self) -> Vec<Pod> {
        self.ipam.pods().values().cloned().collect()
    }

    pub(super) fn pod_add(&mut self, request: &PodAdd) -> Result<PodAdded, Refusal> {
        let Some(up) = &self.up else { return Err(self.not_ready()) };
        // A pod that has its address keeps it, whatever became of the range.
        let range = if self.ipam.pods().contains_key(&request.attachment) { None } else { Some(self.pod_range()?) };
        let addresses = &up.dataplane.kernel.maps().addresses;
        let taken = |address: Ipv4Addr| self.takeover.holds(address) || !matches!(addresses.get(&address.into()), Ok(None));
        let pod = self.ipam.allocate(request, range, taken, SystemTime::now())?;
        Ok(added(&pod, up.dataplane.config.mtu, self.takeover.gateway_of(&pod)))
    }

    pub(super) fn pod_attach(&mut self, request: &PodAttach) -> Result<(), Refusal> {
        let key = &request.attachment;
        let Some(pod) = self.ipam.pods().get(key).cloned() else { return Err(unknown(key)) };
        let Some(up) = &mut self.up else { return Err(self.not_ready()) };
        let ifindex = pods::attach(&mut up.dataplane, &pod, request.netns_cookie).map_err(|error| failed(&error))?;
        up.pods.insert(key.clone(), (pod.clone(), ifindex));
        self.follow_host_ports(None)?;
        tracing::debug!(pod = %key, address = %pod.address, "pod attached");
        self.tell(Happening::PodAttached(pod));
        Ok(())
    }

    pub(super) fn pod_check(&mut self, request: &PodCheck) -> Result<PodAdded, Refusal> {
        let Some(pod) = self.ipam.pods().get(&request.attachment).cloned() else { return Err(unknown(&request.attachment)) };
        if pod.address != request.address {
            let text = format!("{} has the address {}, not {}", request.attachment, pod.address, request.address);
            return Err(Refusal::new(RefusalReason::CheckFailed, text));
        }
        let Some(up) = &mut self.up else { return Err(self.not_ready()) };
        pods::check(&mut up.dataplane, &pod).map_err(|error| {
            Refusal::new(RefusalReason::CheckFailed, format!("{}: delete and add the pod", with_causes(&error)))
        })?;
        Ok(added(&pod, up.dataplane.config.mtu, self.takeover.gateway_of(&pod)))
    }

    pub(super) fn pod_delete(&mut self, key: &AttachmentKey) -> Result<(), Refusal> {
        // What leads to the pod goes before the pod does.
        self.follow_host_ports(Some(key))?;
        let pod = self.ipam.pods().get(key).cloned();
        let interface = pod.as_ref().map_or_else(|| key.host_interface(), |pod| pod.host_interface.clone());
        let dataplane = self.up.as_mut().map(|up| &mut up.dataplane);
        pods::remove(dataplane, &self.dir, &interface, pod.as_ref()).map_err(|error| failed(&error))?;
        if let Some(up) = &mut self.up {
            up.pods.remove(key);
        }
        // The address comes back last: nothing answers for it any more.
        if let Some(pod) = self.ipam.release(key, SystemTime::now())? {
            tracing::debug!(pod = %key, address = %pod.address, "pod removed");
            self.takeover.release(&pod);
            self.tell(Happening::PodDeleted(pod));
        }
        Ok(())
    }

    pub(super) fn pod_gc(&mut self, request: &PodGc) -> Result<PodGcDone, Refusal> {
        let pods = self.ipam.pods().values();
        let stale: Vec<AttachmentKey> = pods
            .filter(|pod| pod.network == request.network && !request.valid.contains(&pod.attachment))
            .map(|pod| pod.attachment.clone())
            .collect();
        for key in &stale {
            self.pod_delete(key)?;
        }
        Ok(PodGcDone { removed: stale })
    }

    pub(super) fn monitor(&mut self) -> Result<broadcast::Receiver<MonitorEvent>, Refusal> {
        let receiver = self.events.subscribe();
        if let Some(up) = &self.up {
            up.listeners.set(self.listening()).map_err(|error| failed(&error))?;
        }
        Ok(receiver)
    }
}

fn added(pod: &Pod, mtu: u32, (gateway, host_mac): (Ipv4Addr, Mac)) -> PodAdded {
    PodAdded { address: pod.address, gateway, mtu, host_interface: pod.host_interface.clone(), host_mac, pod_mac: pod.mac }
}

fn unknown(key: &AttachmentKey) -> Refusal {
    Refusal::new(RefusalReason::Unknown, format!("{key} is not known on this node: add it first"))
}

fn failed(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(RefusalReason::Failed, with_causes(error))
}
