//! What happens to a packet, in packet order, generic over the address family. Only programs name kernel verdicts.
//!
//! A stage that ends a packet's way breaks with the verdict; otherwise the packet goes on to the next stage.

use core::ops::ControlFlow;

use shunt_common::verdict::{DropReason, Verdict};

pub(crate) mod antispoof;
pub(crate) mod connect;
pub(crate) mod conntrack;
pub(crate) mod deliver;
pub(crate) mod direct;
pub(crate) mod forward;
pub(crate) mod fragment;
pub(crate) mod icmp;
pub(crate) mod neighbour;
pub(crate) mod peer;
pub(crate) mod receive;
pub(crate) mod route;
pub(crate) mod service;
pub(crate) mod shortcut;
pub(crate) mod snat;
pub(crate) mod stack;
pub(crate) mod turn_back;

/// A stage's outcome: go on with a `T`, or the packet's way ends here.
pub(crate) type Stage<T> = ControlFlow<Verdict, T>;

/// A drop, as a stage says it.
#[inline(always)]
pub(crate) fn dropped<T>(reason: DropReason) -> Stage<T> {
    ControlFlow::Break(Verdict::Drop(reason))
}

/// Goes on if the kernel did what was asked of it.
#[inline(always)]
pub(crate) fn done<T>(result: Result<T, DropReason>) -> Stage<T> {
    match result {
        Ok(value) => ControlFlow::Continue(value),
        Err(reason) => dropped(reason),
    }
}

/// The hook that a packet is at, as far as stages care.
#[derive(Clone, Copy)]
pub(crate) struct Hook {
    /// Which program: one of `shunt_common::event::program`.
    pub(crate) program: u8,
    /// Whether the packet is on its way out of an interface: then it cannot be put into a peer namespace directly.
    pub(crate) egress: bool,
    /// Whether the packet came out of the tunnel: then its sender is not where the interface leads.
    pub(crate) tunnelled: bool,
}
