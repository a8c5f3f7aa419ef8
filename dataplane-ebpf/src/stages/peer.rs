//! Only nodes may speak through the tunnel.

use core::ops::ControlFlow;

use shunt_common::{
    address::kind,
    net::{Ip4, V4},
    verdict::DropReason,
};

use super::{Stage, dropped};
use crate::maps::FamilyMaps;

/// Whether an outer source is another node's. The underlay is IPv4, whatever the tunnel carries.
#[inline(always)]
pub(crate) fn is_node(addr: Ip4) -> bool {
    // SAFETY: the value is read at once; the agent replaces values whole.
    unsafe { V4::addresses().get(addr) }.is_some_and(|owner| owner.kind == kind::NODE)
}

/// Goes on if an outer source is another node's.
#[inline(always)]
pub(crate) fn check(addr: Ip4) -> Stage<()> {
    if is_node(addr) { ControlFlow::Continue(()) } else { dropped(DropReason::TunnelPeerUnknown) }
}
