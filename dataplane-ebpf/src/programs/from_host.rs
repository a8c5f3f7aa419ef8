//! TC egress of `shunt0`: what the host's routes send to virtual IPs and to other nodes' pods.

use core::ops::ControlFlow;

use aya_ebpf::{macros::classifier, programs::TcContext};
use shunt_common::{event::program, net::V4, verdict::Verdict};

use super::{act, ethertype, skb, unsupported};
use crate::{
    packet::frame::Frame,
    stages::{Hook, forward},
};

const HOOK: Hook = Hook { program: program::FROM_HOST, egress: true, tunnelled: false };

#[classifier]
#[inline(always)]
fn from_host(ctx: TcContext) -> i32 {
    let skb = skb(&ctx);
    let stage = match skb.read::<u16>(12) {
        Some(ethertype::IPV4) => forward::run::<V4>(skb, HOOK),
        other => ControlFlow::Continue(Verdict::Drop(unsupported(other))),
    };
    act(skb, HOOK, stage)
}
