//! What leads packets somewhere: addresses, routes, host routes, the bits of node ports.

use super::{Batch, Capacities, Differ, Refused, full};
use crate::{
    compile::desired::{Desired, Patch},
    kernel::step::Step,
};

impl Differ {
    pub(super) fn lead(&mut self, desired: &Desired, patch: &Patch, batch: &mut Batch) {
        let Patch { addresses, routes, host_routes, .. } = patch;
        self.open_node_ports(desired, patch, batch);
        let room = self.capacities.addresses.saturating_sub(Capacities::PODS);
        for &addr in addresses {
            let Some(&address) = desired.addresses.get(&addr) else { continue };
            if !self.addresses.contains_key(&addr) && self.addresses.len() >= room as usize {
                let problem = full("ADDRESSES", room, 1, format!("address {addr}"));
                self.refused.insert(Refused::Address(addr), problem);
            } else if self.addresses.insert(addr, address) != Some(address) {
                batch.lead_to.push(Step::PutAddress { addr, address });
            }
        }
        for &prefix in routes {
            let Some(&route) = desired.routes.get(&prefix) else { continue };
            if !self.routes.contains_key(&prefix) && self.routes.len() >= self.capacities.routes as usize {
                let problem = full("ROUTES", self.capacities.routes, 1, format!("route {}/{}", prefix.addr, prefix.len));
                self.refused.insert(Refused::Route(prefix), problem);
            } else if self.routes.insert(prefix, route) != Some(route) {
                batch.lead_to.push(Step::PutRoute { prefix, route });
            }
        }
        for &prefix in host_routes {
            if desired.host_routes.contains(&prefix) && self.host_routes.insert(prefix) {
                batch.lead_to.push(Step::AddHostRoute { prefix });
            }
        }
        for &prefix in host_routes {
            if !desired.host_routes.contains(&prefix) && self.host_routes.remove(&prefix) {
                batch.lead_away.push(Step::RemoveHostRoute { prefix });
            }
        }
        for &prefix in routes {
            if !desired.routes.contains_key(&prefix) && self.routes.remove(&prefix).is_some() {
                batch.lead_away.push(Step::DeleteRoute { prefix });
            }
        }
        for &addr in addresses {
            if !desired.addresses.contains_key(&addr) && self.addresses.remove(&addr).is_some() {
                batch.lead_away.push(Step::DeleteAddress { addr });
            }
        }
    }

    /// Bits are set once the frontends are there, and cleared before they go.
    fn open_node_ports(&mut self, desired: &Desired, patch: &Patch, batch: &mut Batch) {
        for &index in &patch.node_ports {
            let before = self.node_ports.remove(&index).unwrap_or_default();
            let wanted = desired.node_ports.get(&index).copied().unwrap_or_default();
            if before | wanted != before {
                batch.lead_to.push(Step::PutNodePorts { index, ports: before | wanted });
            }
            if before | wanted != wanted {
                batch.lead_away.push(Step::PutNodePorts { index, ports: wanted });
            }
            if wanted != 0 {
                self.node_ports.insert(index, wanted);
            }
        }
    }
}
