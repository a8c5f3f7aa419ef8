//! Frontends and groups that one owner has in force: replaced as a whole, whoever the owner is.

use std::collections::BTreeMap;

use shunt_common::{net::V4, service::ServiceKey};

use super::{
    Compiler, Patch,
    desired::{Frontend, Group, GroupKey, Owner},
};

/// Their keys.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    frontends: Vec<ServiceKey<V4>>,
    groups: Vec<GroupKey>,
}

impl Held {
    /// Whether there is no frontend; groups go with these.
    pub(super) fn is_empty(&self) -> bool {
        self.frontends.is_empty()
    }
}

impl Compiler {
    /// Brings what an owner has in force to what it should have. A frontend that another owner has taken over within this very update is
    /// left alone.
    pub(super) fn replace(
        &mut self,
        held: &mut Held,
        frontends: BTreeMap<ServiceKey<V4>, Frontend>,
        groups: BTreeMap<GroupKey, Group>,
        is_ours: impl Fn(&Owner) -> bool,
        patch: &mut Patch,
    ) {
        for key in std::mem::replace(&mut held.frontends, frontends.keys().copied().collect()) {
            let is_still_ours = self.desired.frontends.get(&key).is_some_and(|frontend| is_ours(&frontend.owner));
            if is_still_ours && !frontends.contains_key(&key) {
                self.put_frontend(key, None, patch);
            }
        }
        for key in std::mem::replace(&mut held.groups, groups.keys().cloned().collect()) {
            if !groups.contains_key(&key) {
                self.desired.set_group(key, None, patch);
            }
        }
        for (key, group) in groups {
            self.desired.set_group(key, Some(group), patch);
        }
        for (key, frontend) in frontends {
            self.put_frontend(key, Some(frontend), patch);
        }
    }

    /// Sets or removes a frontend, and what follows from it for the node's ports.
    fn put_frontend(&mut self, key: ServiceKey<V4>, frontend: Option<Frontend>, patch: &mut Patch) {
        let was_at_node = self.desired.frontends.get(&key).is_some_and(|frontend| frontend.at_node);
        let is_at_node = frontend.as_ref().is_some_and(|frontend| frontend.at_node);
        if was_at_node != is_at_node {
            let users = self.node_port_users.entry((key.proto, key.port)).or_default();
            *users = if is_at_node { *users + 1 } else { users.saturating_sub(1) };
            let is_used = *users > 0;
            if !is_used {
                self.node_port_users.remove(&(key.proto, key.port));
            }
            self.desired.set_node_port(key.proto, key.port, is_used, patch);
        }
        self.desired.set_frontend(key, frontend, patch);
    }
}
