//! A packet before an skb exists: all of it in one piece, for a program that knows no fragments gets none (`xdp_has_frags`).

use core::ffi::c_void;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_meta},
};
use shunt_common::{
    checksum::{self, Mending},
    verdict::DropReason,
    vxlan,
};

use super::frame::{Changed, ETH_LEN, Frame};

/// A packet in a driver's buffer.
#[derive(Clone, Copy)]
pub(crate) struct Xdp {
    raw: *mut xdp_md,
    /// Bytes in front that are not looked at.
    skip: usize,
}

/// Reads a context field.
macro_rules! field {
    ($xdp:expr, $field:ident) => {{
        // SAFETY: the kernel passes a valid context; the verifier checks the offset.
        unsafe { (*$xdp.raw).$field as usize }
    }};
}

impl Frame for Xdp {
    #[inline(always)]
    fn context(self) -> *mut c_void {
        self.raw.cast()
    }

    #[inline(always)]
    fn bounds(self) -> (usize, usize) {
        (field!(self, data) + self.skip, field!(self, data_end))
    }

    #[inline(always)]
    fn len(self) -> u32 {
        let (start, end) = (field!(self, data), field!(self, data_end));
        ((end - start) as u32).wrapping_sub(self.skip as u32)
    }

    #[inline(always)]
    fn gso_size(self) -> u32 {
        0
    }

    /// What the packet's own device has left to the device that sends it (`CHECKSUM_PARTIAL`) doesn't show here: who calls knows that it is whole.
    #[inline(always)]
    fn fix_l4(self, offset: u64, mending: &Mending, udp: bool) -> Changed {
        self.change(offset, |check| checksum::mend_whole(check, mending.all, udp))
    }
}

impl Xdp {
    /// Out of an interface: the action that this takes.
    #[inline(always)]
    pub(crate) fn redirect(self, ifindex: u32) -> u32 {
        // SAFETY: only notes where the packet goes.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }

    /// The packet of a program's context.
    #[inline(always)]
    pub(crate) fn new(raw: *mut xdp_md) -> Self {
        Self { raw, skip: 0 }
    }

    /// The packet inside of the tunnel's headers, with the inner Ethernet header in front.
    #[inline(always)]
    pub(crate) fn inner(self) -> Self {
        Self { skip: vxlan::OVERHEAD as usize, ..self }
    }

    /// Makes room for the tunnel's headers and another Ethernet header, of which nothing is written but the EtherType: the present one becomes the
    /// inner one. A driver may have no room; then the packet is as it was.
    #[inline(always)]
    pub(crate) fn push(self) -> Changed {
        self.adjust_head(-(vxlan::OVERHEAD as i32))?;
        self.write(ETH_LEN - 2, 0x0800u16.to_be())
    }

    /// Cuts the tunnel's headers off: the inner Ethernet header becomes the outer one.
    #[inline(always)]
    pub(crate) fn pop(self) -> Changed {
        self.adjust_head(vxlan::OVERHEAD as i32)
    }

    #[inline(always)]
    fn adjust_head(self, by: i32) -> Changed {
        // SAFETY: a valid context; the helper checks the bounds.
        if unsafe { bpf_xdp_adjust_head(self.raw, by) } == 0 { Ok(()) } else { Err(DropReason::RewriteFailed) }
    }

    /// Puts a `T` in front of the packet, for the TC program that takes it over. A driver may not carry that along; then nothing happens.
    #[inline(always)]
    pub(crate) fn put_meta<T>(self, value: T) -> Changed {
        // SAFETY: a valid context; the helper checks the bounds.
        if unsafe { bpf_xdp_adjust_meta(self.raw, -(size_of::<T>() as i32)) } != 0 {
            return Err(DropReason::RewriteFailed);
        }
        let meta = field!(self, data_meta);
        if meta + size_of::<T>() > field!(self, data) {
            return Err(DropReason::RewriteFailed);
        }
        // SAFETY: within the metadata as checked.
        unsafe { (meta as *mut T).write(value) };
        Ok(())
    }
}
