//! TC egress of a pod's host-side veth: what the host's stack sends to the pod.

use core::ops::ControlFlow;

use aya_ebpf::{macros::classifier, programs::TcContext};
use shunt_common::{event::program, net::V4, verdict::Verdict};

use super::{act, ethertype, skb};
use crate::{
    packet::frame::Frame,
    stages::{Hook, receive},
};

const HOOK: Hook = Hook { program: program::TO_POD, egress: true, tunnelled: false };

#[classifier]
#[inline(always)]
fn to_pod(ctx: TcContext) -> i32 {
    let skb = skb(&ctx);
    let stage = match skb.read::<u16>(12) {
        Some(ethertype::IPV4) => receive::from_stack::<V4>(skb, HOOK),
        _ => ControlFlow::Continue(Verdict::Pass),
    };
    act(skb, HOOK, stage)
}
