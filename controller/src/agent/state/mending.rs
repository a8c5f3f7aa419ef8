//! Pods' host sides, looked after one at a time beside the loop: a node has hundreds, and a change of the cluster waits for one at most.

use super::State;
use crate::{
    agent::{
        health::Subject,
        pods::{self, PodError},
    },
    attachment::AttachmentKey,
    problem::with_causes,
};

impl State {
    /// The pods that are attached.
    pub(in crate::agent) fn attached(&self) -> Vec<AttachmentKey> {
        self.up.iter().flat_map(|up| up.pods.keys().cloned()).collect()
    }

    /// Attaches a pod again whose host side is not as it should be, and forgets one whose interface is gone.
    ///
    /// # Errors
    /// Why it can be neither, in words.
    pub(in crate::agent) fn mend_pod(&mut self, key: &AttachmentKey) -> Result<(), String> {
        let Some(up) = &mut self.up else { return Ok(()) };
        // One that is being deleted, or made, is somebody's who is at it.
        let Some((pod, _)) = up.pods.get(key).cloned() else { return Ok(()) };
        let failed = |error: &PodError| format!("pod {key}: {}", with_causes(error));
        match pods::check(&mut up.dataplane, &pod) {
            Ok(_) => {}
            Err(PodError::NoInterface(_) | PodError::NoVeth(_)) => {
                tracing::info!(pod = %key, address = %pod.address, "the pod's interface is gone");
                pods::remove(Some(&mut up.dataplane), &self.dir, &pod.host_interface, Some(&pod))
                    .map_err(|error| failed(&error))?;
                up.pods.remove(key);
                // If that fails, it is in the health and will be tried again.
                let _ = self.follow_host_ports(None);
            }
            Err(wrong) => {
                tracing::warn!(pod = %key, "{}; it is attached again", with_causes(&wrong));
                let ifindex = pods::attach(&mut up.dataplane, &pod, None).map_err(|error| failed(&error))?;
                up.pods.insert(key.clone(), (pod, ifindex));
            }
        }
        Ok(())
    }

    /// All pods were looked after.
    pub(in crate::agent) fn pods_are_mended(&mut self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.health.mend(Subject::Pods),
            Err(reason) => self.health.fail(Subject::Pods, reason),
        }
        self.publish();
    }
}
