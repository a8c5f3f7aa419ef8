//! One hook a file: parse, walk the stages, and say the verdict in the hook's own terms.

use core::ops::ControlFlow;

use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    programs::TcContext,
};
use shunt_common::verdict::{DropReason, Verdict};

use crate::{
    count,
    packet::skb::Skb,
    stages::{Hook, Stage},
};

mod connect4;
mod connect6;
mod from_host;
mod from_loopback;
mod from_pod;
mod from_wire;
mod from_wire_xdp;
mod getpeername4;
mod getpeername6;
mod sock_release;
mod to_pod;
mod to_wire;

/// EtherTypes that programs tell apart, as loaded.
mod ethertype {
    pub(super) const IPV4: u16 = 0x0800u16.to_be();
    pub(super) const ARP: u16 = 0x0806u16.to_be();
    pub(super) const IPV6: u16 = 0x86ddu16.to_be();
}

/// What programs at a system call answer: it goes on, with what they made of its address.
const PROCEED: i32 = 1;

/// The packet of a TC context.
#[inline(always)]
fn skb(ctx: &TcContext) -> Skb {
    Skb::new(ctx.as_ptr().cast())
}

/// A verdict as TCX takes it. What we pass goes on to other programs at the hook.
#[inline(always)]
fn act(skb: Skb, hook: Hook, stage: Stage<Verdict>) -> i32 {
    let (ControlFlow::Continue(verdict) | ControlFlow::Break(verdict)) = stage;
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Redirect => TC_ACT_REDIRECT,
        Verdict::Counted => TC_ACT_SHOT,
        Verdict::Drop(reason) => {
            count::drop(skb, reason, hook.program);
            TC_ACT_SHOT
        }
    }
}

/// What a pod or the host may not send through us, by EtherType.
#[inline(always)]
fn unsupported(ethertype: Option<u16>) -> DropReason {
    match ethertype {
        Some(ethertype::IPV6) => DropReason::Ipv6Unsupported,
        Some(_) => DropReason::ProtocolUnsupported,
        None => DropReason::Malformed,
    }
}
