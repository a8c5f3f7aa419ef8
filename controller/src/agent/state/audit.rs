//! What the audit beside the loop asks of the state, a bit at a time.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::Ipv4Net;
use tokio::sync::Notify;

use super::State;
use crate::{
    diff::audit::{Audit, Finding},
    kernel::{bpf::BpfKernel, routes::Via},
};

impl State {
    /// Told when pods ([`mend_pod`](Self::mend_pod)) and what the kernel holds ([`audit`](Self::audit)) are to be looked over.
    pub(in crate::agent) fn audit_due(&self) -> Arc<Notify> {
        self.audit_due.clone()
    }

    /// Goes on looking over what the maps hold: all is mended if something is not as it was left. `None` if there is nothing to be found out.
    pub(in crate::agent) fn audit(&mut self, audit: &mut Audit<BpfKernel>) -> Option<Finding> {
        let up = self.up.as_ref()?;
        let finding = up.sync.audit(audit, &up.dataplane.kernel)?;
        if !matches!(finding, Ok(Finding::GoesOn | Finding::AsKnown)) {
            self.mend();
        }
        // What cannot be read has just been tried again, and is in the health.
        finding.ok()
    }

    /// Where host routes lead, once the dataplane is up.
    pub(in crate::agent) fn via(&self) -> Option<Via> {
        self.up.as_ref().map(|up| up.dataplane.kernel.via())
    }

    /// Host routes that are missing from those listed, or too many, those apart where somebody else has one; `None` while that is not certain.
    pub(in crate::agent) fn different_host_routes(&self, listed: &BTreeSet<Ipv4Net>) -> Option<BTreeSet<Ipv4Net>> {
        let up = self.up.as_ref()?;
        let mut different = up.sync.different_host_routes(listed)?;
        different.retain(|prefix| !up.dataplane.kernel.contested().contains_key(prefix));
        Some(different)
    }

    /// Reads back all that the kernel holds and mends it, whatever that takes.
    pub(in crate::agent) fn mend(&mut self) {
        self.reconcile();
        self.note_problems();
    }
}
