//! Next hops whose MAC programs write themselves: the kernel goes on to look after its entry of one only as long as it is given packets for it.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use shunt_common::neighbour::{is_fresh, slot, used};

use crate::maps::NEIGHBOURS;

/// Whether the kernel was lately given a packet for the next hop of this word.
#[inline(always)]
pub(crate) fn is_looked_after(word: u32) -> bool {
    // SAFETY: a helper without arguments.
    NEIGHBOURS.get(slot(word)).is_some_and(|noted| is_fresh(*noted, word, unsafe { bpf_jiffies64() }))
}

/// Notes that it is given one now.
#[inline(always)]
pub(crate) fn look_after(word: u32) {
    if let Some(noted) = NEIGHBOURS.get_ptr_mut(slot(word)) {
        // SAFETY: a helper without arguments; and a live value of the map, stored whole whatever other CPUs store at the same time.
        unsafe { core::ptr::write_volatile(noted, used(word, bpf_jiffies64())) };
    }
}
