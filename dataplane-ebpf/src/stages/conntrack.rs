//! Tracked flows: finding, refreshing, opening and forgetting them.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_coarse_ns};
use shunt_common::{
    conntrack::{CtEntry, CtKey, believes_reset, seen, translates},
    flow::Tuple,
    net::proto,
    shortcut, timeout,
};

use crate::{
    maps::{node, note_change},
    packet::{
        parse::{Flow, Ip, Part, tcp},
        skb::Skb,
    },
};

/// Why a flow could not be opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// A live flow already uses the tuple of the answer.
    Collision,
    /// The table is full.
    Full,
}

/// EEXIST of a failed insertion.
const EEXIST: i32 = -17;

/// The present tick.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: a helper without arguments.
    timeout::tick(unsafe { bpf_ktime_get_coarse_ns() })
}

/// The entry of a packet, if it belongs to a known flow.
#[inline(always)]
pub(crate) fn find<F: Ip>(tuple: &Tuple<F>) -> Option<&'static mut CtEntry<F>> {
    // SAFETY: a value of the map lives as long as the program runs. Programs on other CPUs write `last_seen` and `seen` of the same
    // entry; each is one store, and losing one of two at the same time does no harm.
    F::conntrack().get_ptr_mut(CtKey::of(tuple)).map(|entry| unsafe { &mut *entry })
}

/// Notes that a packet met its entry.
#[inline(always)]
pub(crate) fn touch<F: Ip>(entry: &mut CtEntry<F>, flow: &Flow<F>) {
    F::note_packet(entry, u32::from(flow.tcp_flags) | u32::from(flow.sequence) << 8);
}

/// The body of [`touch`]: see [`crate::subprograms`]. `tcp` has the packet's flags in its low byte, then [`Flow::sequence`]. Writes only what
/// changes, so that a busy flow's entry stays shared between CPUs.
#[inline(always)]
pub(crate) fn try_note<F: Ip>(entry: &mut CtEntry<F>, tcp: u32) -> u32 {
    let (flags, sequence) = (tcp as u8, (tcp >> 8) as u8);
    let now = now();
    if entry.last_seen != now {
        entry.last_seen = now;
    }
    // A packet after a reset shows that the reset was not believed.
    let mut bits = (entry.seen & !(seen::RST | seen::STRAY_RST)) | seen::ANY;
    if flags & tcp::RST != 0 {
        // SAFETY: read at once, see `find`.
        let receiver = unsafe { F::conntrack().get(entry.peer(proto::TCP)) };
        let is_stray =
            receiver.is_some_and(|receiver| receiver.seen & seen::ACK != 0 && !believes_reset(receiver.acknowledged, sequence));
        bits |= if is_stray { seen::STRAY_RST } else { seen::RST };
    } else if flags & tcp::ACK != 0 {
        bits |= seen::ACK;
        if entry.acknowledged != sequence {
            entry.acknowledged = sequence;
        }
    }
    if flags & tcp::FIN != 0 {
        bits |= seen::FIN;
    }
    // What another connection of the same ends acknowledged is no measure. Of a flow that is seen one way this tells that it stands.
    if flags & (tcp::SYN | tcp::ACK) == tcp::SYN && entry.translates != translates::THERE {
        bits &= !seen::ACK;
    }
    if entry.seen != bits {
        entry.seen = bits;
    }
    0
}

/// Notes that the packets under an entry come with whole checksums, so that the program at XDP may mend them: it doesn't see whether they are.
#[inline(always)]
pub(crate) fn note_whole<F: Ip>(entry: &mut CtEntry<F>, flow: &Flow<F>, skb: Skb) {
    // Who cuts a datagram into fragments finishes its checksum, and leaves the next to a device all the same.
    if flow.part == Part::Whole && node!(xdp_forwards) != 0 && entry.seen & seen::WHOLE == 0 && skb.has_whole_checksum() {
        entry.seen |= seen::WHOLE;
    }
}

/// Whether the flow of an entry is over, so that its tuples may serve another.
#[inline(always)]
pub(crate) fn is_over<F: Ip>(entry: &CtEntry<F>, protocol: u8) -> bool {
    is_over_with(entry, &entry.peer(protocol), protocol)
}

/// The same, given the key of the flow's other entry: there is no stack for more than one.
#[inline(always)]
fn is_over_with<F: Ip>(entry: &CtEntry<F>, peer: &CtKey<F>, protocol: u8) -> bool {
    // SAFETY: read at once, see `find`.
    let peer = unsafe { F::conntrack().get(peer) };
    if protocol == proto::TCP && entry.is_closed(peer.map_or(0, |peer| peer.seen)) {
        return true;
    }
    entry.is_expired(peer, protocol, now())
}

/// Whether the other end of an entry's flow has been heard of.
#[inline(always)]
pub(crate) fn is_answered<F: Ip>(entry: &CtEntry<F>, protocol: u8) -> bool {
    if entry.translates == translates::THERE {
        return entry.seen & seen::ACK != 0;
    }
    // SAFETY: read at once, see `find`.
    unsafe { F::conntrack().get(entry.peer(protocol)) }.is_some_and(|peer| peer.seen != 0)
}

/// Removes both halves of a flow, given one of them.
#[inline(always)]
pub(crate) fn forget<F: Ip>(key: &CtKey<F>, entry: &CtEntry<F>) {
    remove(&entry.peer(key.proto as u8));
    remove(key);
}

/// Removes one entry; absence is what is wanted.
#[inline(always)]
fn remove<F: Ip>(key: &CtKey<F>) {
    let _ = F::conntrack().remove(key);
    changed(key);
}

/// Makes stale what any CPU has decided by the entry of this key, or by its absence. Comes after the change itself: who reads the stamp
/// and then finds the old entry has read the old stamp.
#[inline(always)]
fn changed<F: Ip>(key: &CtKey<F>) {
    note_change(shortcut::hash(&key.tuple()));
}

/// Puts the reply half of a flow in, under the tuple that the other end will answer with: first of the two, so that no packet is sent whose
/// answer is not known.
#[inline(always)]
pub(crate) fn reserve<F: Ip>(key: &CtKey<F>, entry: &CtEntry<F>) -> Result<(), Refused> {
    F::conntrack()
        .insert(key, entry, BPF_NOEXIST as u64)
        .map_err(|error| if error == EEXIST { Refused::Collision } else { Refused::Full })?;
    changed(key);
    Ok(())
}

/// Frees the key of an answer if its holder is over.
#[inline(always)]
pub(crate) fn reclaim_over<F: Ip>(answer: &CtKey<F>) {
    free_if(answer, |holder, peer| is_over_with(holder, peer, answer.proto as u8));
}

/// Frees the key of a flow's answer if its holder is the same flow's past.
#[inline(always)]
pub(crate) fn reclaim_past<F: Ip>(original: &Tuple<F>, answer: &CtKey<F>) {
    free_if(answer, |_, peer| peer.tuple() == *original);
}

/// Frees the key of a flow's answer if its holder is the same flow's past, or is over.
#[inline(always)]
pub(crate) fn reclaim<F: Ip>(original: &Tuple<F>, answer: &CtKey<F>) {
    free_if(answer, |holder, peer| peer.tuple() == *original || is_over_with(holder, peer, original.proto));
}

#[inline(always)]
fn free_if<F: Ip>(answer: &CtKey<F>, may_go: impl FnOnce(&CtEntry<F>, &CtKey<F>) -> bool) {
    if let Some(holder) = F::conntrack().get_ptr_mut(answer)
        // SAFETY: as for `find`.
        && let holder = unsafe { &*holder }
        && let peer = holder.peer(answer.proto as u8)
        && may_go(holder, &peer)
    {
        remove(&peer);
        remove(answer);
    }
}

/// Puts the other half in, after [`reserve`]; on failure takes the first half back, so that there is never half a flow.
#[inline(always)]
pub(crate) fn commit<F: Ip>(key: &CtKey<F>, entry: &CtEntry<F>) -> Result<(), Refused> {
    if F::conntrack().insert(key, entry, 0).is_err() {
        remove(&entry.peer(key.proto as u8));
        return Err(Refused::Full);
    }
    changed(key);
    Ok(())
}
