//! What is asked over the agent's socket: by the CNI plugin of pods, and by who wants to hear what happens.

use std::{net::Ipv4Addr, time::SystemTime};

use shunt_common::net::Mac;
use tokio::sync::broadcast;

use super::State;
use crate::{
    agent::{health::Subject, pods},
    attachment::{AttachmentKey, Pod},
    problem::with_causes,
    socket::protocol::{
        Happening, MonitorEvent, PodAdd, PodAdded, PodAttach, PodCheck, PodGc, PodGcDone, Refusal, RefusalReason,
    },
};

impl State {
    fn not_ready(&self) -> Refusal {
        let reason =
            [Subject::Node, Subject::Dataplane, Subject::Source].into_iter().find_map(|subject| self.health.reason(subject));
        let reason = reason.unwrap_or("the agent is starting");
        Refusal::new(RefusalReason::NotReady, format!("the node's dataplane is not up: {reason}"))
    }

    pub(in crate::agent) fn ready(&self) -> Result<(), Refusal> {
        if self.own.is_none() || self.up.is_none() {
            return Err(self.not_ready());
        }
        self.pod_range().map(drop)
    }

    pub(in crate::agent) fn pods(&self) -> Vec<Pod> {
        self.ipam.pods().values().cloned().collect()
    }

    pub(in crate::agent) fn pod_add(&mut self, request: &PodAdd) -> Result<PodAdded, Refusal> {
        let Some(up) = &self.up else { return Err(self.not_ready()) };
        // A pod that has its address keeps it, whatever became of the range.
        let range = if self.ipam.pods().contains_key(&request.attachment) { None } else { Some(self.pod_range()?) };
        let addresses = &up.dataplane.kernel.maps().addresses;
        let taken = |address: Ipv4Addr| self.takeover.holds(address) || !matches!(addresses.get(&address.into()), Ok(None));
        let pod = self.ipam.allocate(request, range, taken, SystemTime::now())?;
        Ok(added(&pod, up.dataplane.config.mtu, self.takeover.gateway_of(&pod)))
    }

    pub(in crate::agent) fn pod_attach(&mut self, request: &PodAttach) -> Result<(), Refusal> {
        let key = &request.attachment;
        let Some(pod) = self.ipam.pods().get(key).cloned() else { return Err(unknown(key)) };
        let Some(up) = &mut self.up else { return Err(self.not_ready()) };
        let ifindex = pods::attach(&mut up.dataplane, &pod, request.netns_cookie).map_err(|error| failed(&error))?;
        up.pods.insert(key.clone(), (pod.clone(), ifindex));
        // A pod without any has no part in what holds others up.
        if pod.has_host_ports() {
            self.follow_host_ports(None)?;
        }
        tracing::debug!(pod = %key, address = %pod.address, "pod attached");
        self.tell(Happening::PodAttached(pod));
        Ok(())
    }

    pub(in crate::agent) fn pod_check(&mut self, request: &PodCheck) -> Result<PodAdded, Refusal> {
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

    pub(in crate::agent) fn pod_delete(&mut self, key: &AttachmentKey) -> Result<(), Refusal> {
        // What leads to the pod goes before the pod does.
        if self.ipam.pods().get(key).is_some_and(Pod::has_host_ports) {
            self.follow_host_ports(Some(key))?;
        }
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

    pub(in crate::agent) fn pod_gc(&mut self, request: &PodGc) -> Result<PodGcDone, Refusal> {
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

    pub(in crate::agent) fn monitor(&mut self) -> Result<broadcast::Receiver<MonitorEvent>, Refusal> {
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

pub(super) fn failed(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(RefusalReason::Failed, with_causes(error))
}
