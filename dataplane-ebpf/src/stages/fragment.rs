//! Fragments: the first one's ports serve them all; a datagram out of order goes to the host's stack to be put together.

use core::ops::ControlFlow;

use shunt_common::{
    fragment::{Fragment, FragmentKey, way},
    verdict::{DropReason, Verdict},
};

use super::{Hook, Stage, dropped};
use crate::packet::parse::{Flow, Ip, Part};

/// What to do with a fragment whose ports cannot be known here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Let the host's stack put the datagram together; the caller says how it gets there.
    Reassemble,
    /// It is not ours to judge: let it pass.
    Pass,
}

/// Gives a fragment the ports of its datagram. `true` means: to reassembly.
#[inline(always)]
pub(crate) fn resolve<F: Ip>(flow: &mut Flow<F>, hook: Hook, unknown: Unknown) -> Stage<bool> {
    if flow.part == Part::Whole {
        return ControlFlow::Continue(false);
    }
    let key = FragmentKey {
        src: flow.tuple.src,
        dst: flow.tuple.dst,
        id: flow.id as u32,
        proto_hook: flow.tuple.proto as u32 | (hook.program as u32) << 8,
    };
    // SAFETY: the value is read at once.
    let known = unsafe { F::fragments().get(key) };
    match (known, flow.part) {
        (Some(datagram), _) if datagram.way == way::REASSEMBLE => ControlFlow::Continue(true),
        (Some(datagram), Part::Later) => {
            flow.tuple.sport = datagram.sport;
            flow.tuple.dport = datagram.dport;
            ControlFlow::Continue(false)
        }
        (_, Part::First) => {
            let datagram = Fragment { way: way::PORTS_KNOWN, sport: flow.tuple.sport, dport: flow.tuple.dport };
            // Where even the LRU has no room, the later fragments go to reassembly.
            let _ = F::fragments().insert(key, datagram, 0);
            ControlFlow::Continue(false)
        }
        _ if unknown == Unknown::Pass => ControlFlow::Break(Verdict::Pass),
        // After reassembly the stack sends them in order: one that is still unknown has lost its first.
        _ if hook.egress => dropped(DropReason::FragmentWithoutReassembly),
        _ => {
            let datagram = Fragment { way: way::REASSEMBLE, sport: flow.tuple.sport, dport: flow.tuple.dport };
            let _ = F::fragments().insert(key, datagram, 0);
            ControlFlow::Continue(true)
        }
    }
}
