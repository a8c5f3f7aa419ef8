//! A pod sends from its own address only.

use core::ops::ControlFlow;

use shunt_common::{address::kind, verdict::DropReason};

use super::{Stage, dropped};
use crate::packet::{
    parse::{Flow, Ip},
    skb::Skb,
};

/// Goes on if the source is the pod on this very interface.
#[inline(always)]
pub(crate) fn check<F: Ip>(skb: Skb, flow: &Flow<F>) -> Stage<()> {
    // SAFETY: the value is read once; the agent replaces values whole.
    match unsafe { F::addresses().get(flow.tuple.src) } {
        Some(owner) if owner.kind == kind::POD && owner.ifindex == skb.ifindex() => ControlFlow::Continue(()),
        _ => dropped(DropReason::SourceSpoofed),
    }
}
