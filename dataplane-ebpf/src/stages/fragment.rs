//! Fragments: the first one's ports serve them all; a datagram out of order goes to the host's stack to be put together.

use core::ops::ControlFlow;

use shunt_common::{
    fragment::{Fragment, FragmentKey, way},
    verdict::{DropReason, Verdict},
};

use super::{Hook, Stage, conntrack, dropped};
use crate::packet::parse::{Flow, Ip, Part};

/// What to do with a fragment whose ports cannot be known here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Let the host's stack put the datagram together; the caller says how it gets there.
    Reassemble,
    /// It is not ours to judge: let it pass.
    Pass,
    /// Drop it: the stack would not know what the datagram is for.
    Drop,
}

/// What becomes of a fragment, as a subprogram says it; drop reasons have other numbers.
mod outcome {
    pub(super) const ON: u32 = 0;
    pub(super) const REASSEMBLE: u32 = u32::MAX;
    pub(super) const PASS: u32 = u32::MAX - 1;
}

/// Gives a fragment the ports of its datagram. `true` means: to reassembly.
#[inline(always)]
pub(crate) fn resolve<F: Ip>(flow: &mut Flow<F>, hook: Hook, unknown: Unknown) -> Stage<bool> {
    if flow.part == Part::Whole {
        return ControlFlow::Continue(false);
    }
    let drop = hook.egress || unknown == Unknown::Drop;
    let how = u32::from(hook.program) | u32::from(drop) << 8 | u32::from(unknown == Unknown::Pass) << 9;
    match F::resolve_fragment(flow, how) {
        outcome::ON => ControlFlow::Continue(false),
        outcome::REASSEMBLE => ControlFlow::Continue(true),
        outcome::PASS => ControlFlow::Break(Verdict::Pass),
        _ => dropped(DropReason::FragmentWithoutReassembly),
    }
}

/// The body of [`resolve`]: see [`crate::subprograms`]. `how` has the program in its low byte, then one bit each for "drop" and "pass".
#[inline(always)]
pub(crate) fn try_resolve<F: Ip>(flow: &mut Flow<F>, how: u32) -> u32 {
    let (drop, pass) = (how & 1 << 8 != 0, how & 1 << 9 != 0);
    let key = FragmentKey {
        src: flow.tuple.src,
        dst: flow.tuple.dst,
        id: u32::from(flow.id),
        proto_hook: u32::from(flow.tuple.proto) | (how & 0xff) << 8,
    };
    // SAFETY: the value is read at once.
    let known = unsafe { F::fragments().get(key) };
    let now = conntrack::now();
    let known = known.filter(|datagram| datagram.holds(now));
    match known {
        Some(datagram) if datagram.way == way::REASSEMBLE => return outcome::REASSEMBLE,
        Some(datagram) if flow.part == Part::Later => {
            flow.tuple.sport = datagram.sport;
            flow.tuple.dport = datagram.dport;
            return outcome::ON;
        }
        _ => {}
    }
    if flow.part == Part::First {
        let datagram = Fragment { way: way::PORTS_KNOWN, since: now as u16, sport: flow.tuple.sport, dport: flow.tuple.dport };
        // Where even the LRU has no room, the later fragments go to reassembly.
        let _ = F::fragments().insert(key, datagram, 0);
        return outcome::ON;
    }
    if pass {
        return outcome::PASS;
    }
    // On egress too: after reassembly the stack sends them in order, and one that is still unknown has lost its first.
    if drop {
        return DropReason::FragmentWithoutReassembly as u32;
    }
    let datagram = Fragment { way: way::REASSEMBLE, since: now as u16, sport: flow.tuple.sport, dport: flow.tuple.dport };
    let _ = F::fragments().insert(key, datagram, 0);
    outcome::REASSEMBLE
}
