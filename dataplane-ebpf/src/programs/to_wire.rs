//! TC egress of the underlay and of the node's other wires: what processes of the node answer a Service's clients elsewhere.

use core::ops::ControlFlow;

use aya_ebpf::{macros::classifier, programs::TcContext};
use shunt_common::{event::program, net::V4, verdict::Verdict};

use super::{act, ethertype, skb};
use crate::{
    packet::frame::Frame,
    stages::{Hook, receive},
};

const HOOK: Hook = Hook { program: program::TO_WIRE, egress: true, tunnelled: false };

#[classifier]
#[inline(always)]
fn to_wire(ctx: TcContext) -> i32 {
    let skb = skb(&ctx);
    // What only passes through the node has been translated where it came in: pods' packets, in the tunnel and out of it.
    let is_forwarded = skb.entered_by() != 0;
    let stage = if !is_forwarded && skb.read::<u16>(12) == Some(ethertype::IPV4) {
        receive::from_process::<V4>(skb, HOOK)
    } else {
        ControlFlow::Continue(Verdict::Pass)
    };
    act(skb, HOOK, stage)
}
