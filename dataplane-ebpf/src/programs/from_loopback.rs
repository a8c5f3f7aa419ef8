//! TC egress of `lo`: what the host sends to its own addresses, for it may ask a Service at a node port.

use core::ops::ControlFlow;

use aya_ebpf::{macros::classifier, programs::TcContext};
use shunt_common::{event::program, net::V4, verdict::Verdict};

use super::{act, ethertype, skb};
use crate::{
    packet::frame::Frame,
    stages::{Hook, forward},
};

const HOOK: Hook = Hook { program: program::FROM_LOOPBACK, egress: true, tunnelled: false };

#[classifier]
#[inline(always)]
fn from_loopback(ctx: TcContext) -> i32 {
    let skb = skb(&ctx);
    let stage = match skb.read::<u16>(12) {
        Some(ethertype::IPV4) => forward::to_self::<V4>(skb, HOOK),
        _ => ControlFlow::Continue(Verdict::Pass),
    };
    act(skb, HOOK, stage)
}
