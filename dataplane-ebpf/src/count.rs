//! Counters, and events for whoever listens. No packet is dropped but through [`drop`].

use aya_ebpf::{helpers::bpf_ktime_get_ns, maps::PerCpuArray};
use shunt_common::{
    event::Event,
    verdict::{Counter, DropReason},
};

use crate::{
    maps::{COUNTERS, DROPS, EVENTS, LISTENERS},
    packet::{
        frame::{ETH_LEN, Frame},
        skb::Skb,
    },
};

#[inline(always)]
fn increment(map: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = map.get_ptr_mut(index) {
        // SAFETY: a per-CPU slot. No program that handles a packet is preempted by another of ours on its CPU; one at a process's system
        // call may be by one at another's, and then their two may count as one.
        unsafe { *counter += 1 };
    }
}

/// Counts what was done with a packet.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    increment(&COUNTERS, counter as u32);
}

/// Counts a drop without an event: where there is no skb to tell of.
#[inline(always)]
pub(crate) fn count_drop(reason: DropReason) {
    increment(&DROPS, reason as u32);
}

/// Counts a drop and tells whoever listens. Call it before the packet is changed: the event shows what is there now.
#[inline(always)]
pub(crate) fn drop(skb: Skb, reason: DropReason, program: u8) {
    crate::subprograms::tell_drop(skb.raw(), reason as u32, u32::from(program));
}

/// The body of [`drop`]: see [`crate::subprograms`].
#[inline(always)]
pub(crate) fn tell(skb: Skb, reason: u32, program: u8) {
    increment(&DROPS, reason);
    if LISTENERS.get(0).is_none_or(|listeners| *listeners == 0) {
        return;
    }
    let Some(mut record) = EVENTS.reserve::<Event>(0) else { return };
    let mut event = Event {
        // SAFETY: a helper without arguments.
        time: unsafe { bpf_ktime_get_ns() },
        reason,
        ifindex: skb.ifindex(),
        len: skb.len(),
        src: [0; 16],
        dst: [0; 16],
        sport: [0; 2],
        dport: [0; 2],
        ethertype: 0,
        proto: 0,
        program,
        reserved: 0,
    };
    if let Some(ethertype) = skb.read::<u16>(12) {
        event.ethertype = u16::from_be(ethertype);
    }
    if event.ethertype == 0x0800 {
        if let Some([src, dst]) = skb.read::<[[u8; 4]; 2]>(ETH_LEN + 12) {
            event.src[..4].copy_from_slice(&src);
            event.dst[..4].copy_from_slice(&dst);
        }
        if let (Some(version), Some(proto)) = (skb.read::<u8>(ETH_LEN), skb.read::<u8>(ETH_LEN + 9)) {
            event.proto = proto;
            if let Some([sport, dport]) = skb.read::<[[u8; 2]; 2]>(ETH_LEN + u64::from(version & 0xf) * 4) {
                event.sport = sport;
                event.dport = dport;
            }
        }
    } else if event.ethertype == 0x86dd {
        if let Some([src, dst]) = skb.read::<[[u8; 16]; 2]>(ETH_LEN + 8) {
            event.src = src;
            event.dst = dst;
        }
        if let Some(proto) = skb.read::<u8>(ETH_LEN + 6) {
            event.proto = proto;
        }
    }
    record.write(event);
    record.submit(0);
}
