//! ICMP errors about translated flows, and the errors that refuse a packet.

use core::ops::ControlFlow;

use shunt_common::{
    conntrack::{kind, translates},
    event::program,
    flow::Tuple,
    verdict::{Counter, DropReason, Verdict},
};

use super::{Hook, Stage, conntrack, deliver, dropped};
use crate::{
    count::{self, count},
    packet::{
        parse::{Flow, Icmp, Ip, Part},
        skb::Skb,
    },
};

/// Turns an error about a translated flow into one about the flow as the receiver knows it, and says whether it did; then `flow` has the
/// ends that the packet carries now.
///
/// The quoted packet's answer, were there one, would meet an entry that says what the two ends look like on the other side.
#[inline(always)]
pub(crate) fn translate<F: Ip>(skb: Skb, flow: &mut Flow<F>) -> Stage<bool> {
    match settle(skb, flow)? {
        About::Untranslated => ControlFlow::Continue(false),
        About::Ours => ControlFlow::Continue(true),
        About::Theirs => dropped(DropReason::IcmpErrorUnmatched),
    }
}

/// What an error is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// No translated flow; or it is no error.
    Untranslated,
    /// A flow that we translate: done with the error too.
    Ours,
    /// A flow that its backend's node translates: `flow` has the backend for its destination, and the packet is as it came.
    Theirs,
}

/// [`translate`], for whoever can have errors about flows that are translated elsewhere.
#[inline(always)]
pub(crate) fn settle<F: Ip>(skb: Skb, flow: &mut Flow<F>) -> Stage<About> {
    if flow.icmp != Icmp::Error {
        return ControlFlow::Continue(About::Untranslated);
    }
    match F::translate_error(skb.raw(), flow) {
        0 => ControlFlow::Continue(About::Untranslated),
        TRANSLATED => ControlFlow::Continue(About::Ours),
        OF_PEER => ControlFlow::Continue(About::Theirs),
        OF_STACK => ControlFlow::Break(Verdict::Pass),
        reason => dropped(DropReason::from_number(reason).unwrap_or(DropReason::RewriteFailed)),
    }
}

/// What [`try_translate`] returns when it did; no drop reason has this number.
const TRANSLATED: u32 = u32::MAX;

/// What it returns for an error about a flow that the host's stack translates: it does so with the error too.
const OF_STACK: u32 = u32::MAX - 1;

/// What it returns for an error about a flow that its backend's node translates.
const OF_PEER: u32 = u32::MAX - 3;

/// The body of [`settle`]: [`TRANSLATED`], [`OF_STACK`], [`OF_PEER`], the number of a drop reason, or 0 if there is nothing to translate.
/// Errors are rare: see [`crate::subprograms`].
#[inline(always)]
pub(crate) fn try_translate<F: Ip>(skb: Skb, flow: &mut Flow<F>) -> u32 {
    let Some(quoted) = F::quoted(skb, flow) else { return 0 };
    let Some(entry) = conntrack::find::<F>(&quoted.reversed()) else { return 0 };
    match entry.translates {
        translates::NOTHING => return 0,
        translates::STACK => return OF_STACK,
        translates::THERE if entry.kind == kind::ORIGINAL => {
            flow.tuple.dst = entry.dst;
            flow.tuple.dport = entry.dport;
            return OF_PEER;
        }
        translates::THERE => return 0,
        _ => {}
    }
    let answer = entry.translated(quoted.proto);
    // Its source stays a router's address, but becomes the other side's name for the end that it claims to be.
    let src = if flow.tuple.src == quoted.dst { answer.src } else { flow.tuple.src };
    let outer = Tuple { src, dst: answer.dst, ..flow.tuple };
    if let Err(reason) = F::requote(skb, flow, &quoted, &answer.reversed())
        .and_then(|()| F::rewrite(skb, flow, &outer, &F::mending(&flow.tuple, &outer), 0))
    {
        return reason as u32;
    }
    flow.tuple = outer;
    TRANSLATED
}

/// Drops a packet and tells its sender, through the interface it came from. That leads nowhere for what came out of the tunnel.
#[inline(always)]
pub(crate) fn refuse<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, reason: DropReason, what: u16, mtu: u16) -> Verdict {
    // Neither an error nor a later fragment is answered with an error (RFC 1122, 3.2.2).
    if flow.icmp == Icmp::Error || flow.part == Part::Later || hook.tunnelled {
        return Verdict::Drop(reason);
    }
    count::drop(skb, reason, hook.program);
    if F::make_error(skb.raw(), u32::from(what) << 16 | u32::from(mtu)) != 0 {
        return Verdict::Counted;
    }
    count(Counter::Refused);
    match hook.program {
        // `lo` takes nothing from the node's own addresses that did not go out there.
        program::FROM_LOOPBACK => deliver::to_host(skb, true),
        _ if hook.egress => skb.redirect_ingress(skb.ifindex()),
        _ => skb.redirect(skb.ifindex()),
    }
}
