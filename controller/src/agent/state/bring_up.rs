//! The dataplane set up over what an earlier agent may have left, and the pods that it finds.

use std::collections::BTreeMap;

use super::{State, Up};
use crate::{
    agent::{dataplane::Dataplane, health::Subject, own_node::OwnNode, pods, sync::Sync},
    compile::NodeView,
    kernel::{events::Listeners, step::Kernel as _},
    model::{Model, Name},
    problem::with_causes,
    socket::protocol::SyncReport,
};

impl State {
    /// Sets the dataplane up over what an earlier agent may have left: maps first, programs last.
    pub(super) fn bring_up(&mut self, model: &Model) {
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
        // What programs have remembered since the maps changed was by what the programs before knew of this node.
        dataplane.kernel.begin_epoch()?;
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
    pub(super) fn adopt_late_pods(&mut self) {
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
}
