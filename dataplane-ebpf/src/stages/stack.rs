//! Flows that the host's stack translates: those that it translated before we came ("takeover"). Their packets are left to it, as they
//! are and in both directions, until they end.

use shunt_common::conntrack::{CtEntry, takeover, translates};

use super::conntrack;
use crate::{
    maps,
    packet::parse::{Flow, Ip},
};

/// Whether the packet that met this entry is to be left to the host's stack. One that begins another flow on the tuple of one that is
/// over is not.
#[inline(always)]
pub(crate) fn has<F: Ip>(flow: &Flow<F>, entry: &mut CtEntry<F>) -> bool {
    if entry.translates != translates::STACK || flow.is_syn() && conntrack::is_over(entry, flow.tuple.proto) {
        return false;
    }
    conntrack::touch(entry, flow);
    true
}

/// Whether a packet that sets out and belongs to no known flow is left to the host's stack.
#[inline(always)]
pub(crate) fn may_have<F: Ip>(flow: &Flow<F>) -> bool {
    match maps::takeover() {
        takeover::NONE => false,
        takeover::TAKING => !flow.is_syn(),
        _ => true,
    }
}

/// The same for a packet that arrives.
#[inline(always)]
pub(crate) fn may_know_arrival() -> bool {
    maps::takeover() != takeover::NONE
}
