//! TC ingress of a pod's host-side veth.

use core::ops::ControlFlow;

use aya_ebpf::{macros::classifier, programs::TcContext};
use shunt_common::{
    event::program,
    net::V4,
    verdict::{DropReason, Verdict},
};

use super::{act, ethertype, skb, unsupported};
use crate::{
    packet::frame::Frame,
    stages::{Hook, Stage, dropped, forward},
};

const HOOK: Hook = Hook { program: program::FROM_POD, egress: false, tunnelled: false };

#[classifier]
#[inline(always)]
fn from_pod(ctx: TcContext) -> i32 {
    let skb = skb(&ctx);
    let stage: Stage<Verdict> = match skb.read::<u16>(12) {
        Some(ethertype::IPV4) => forward::run::<V4>(skb, HOOK),
        // For the gateway's neighbour entry, should it be flushed: the stack answers as a proxy.
        Some(ethertype::ARP) => ControlFlow::Continue(Verdict::Pass),
        other => ControlFlow::Continue(Verdict::Drop(unsupported(other))),
    };
    // It would keep the tag wherever it goes, on a trunk into a network of the pod's choice. Asked last: any question before the walk has the
    // compiler leave a register of `Next` unset that the verifier sees read.
    let stage = if skb.is_tagged() { dropped(DropReason::ProtocolUnsupported) } else { stage };
    act(skb, HOOK, stage)
}
