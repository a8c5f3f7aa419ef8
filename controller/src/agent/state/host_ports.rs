//! The ports of the node that lead to its pods, in step with the pods that are there.

use super::{State, requests::failed};
use crate::{attachment::AttachmentKey, socket::protocol::Refusal};

impl State {
    /// Brings the ports of the node that lead to its pods into force, those of one pod excepted.
    pub(super) fn follow_host_ports(&mut self, leaving: Option<&AttachmentKey>) -> Result<(), Refusal> {
        let Some(up) = &mut self.up else { return Ok(()) };
        let is_there = |key: &AttachmentKey| Some(key) != leaving && up.pods.contains_key(key);
        let pods = self.ipam.pods().iter().filter(|(key, _)| is_there(key));
        let host_ports = pods.flat_map(|(_, pod)| pod.host_ports()).collect();
        let Some(report) = up.sync.set_host_ports(host_ports, &mut up.dataplane.kernel) else { return Ok(()) };
        self.note_sync(&report);
        self.note_problems();
        self.synced(report.map_err(|error| failed(&error))?);
        Ok(())
    }
}
