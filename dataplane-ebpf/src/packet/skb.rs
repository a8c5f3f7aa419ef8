//! A packet in an skb, and the helpers that change it.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::generated::{
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_change_type, bpf_skb_pull_data,
    },
};
use shunt_common::{
    checksum::{self, Mending},
    config::{SkbLayout, ip_summed},
    verdict::{DropReason, Verdict},
};

use super::frame::{Changed, ETH_LEN, Frame};
use crate::maps::skb_layout;

/// The address family in helper arguments.
pub(crate) const AF_INET: u8 = 2;

/// What kind of frame it was that a packet came in: to us (include/uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;
/// To another's address.
const PACKET_OTHERHOST: u32 = 3;

/// A packet.
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    raw: *mut __sk_buff,
}

/// Reads a context field.
macro_rules! field {
    ($skb:expr, $field:ident) => {{
        // SAFETY: the kernel passes a valid context; the verifier checks the offset.
        unsafe { (*$skb.raw).$field }
    }};
}

impl Frame for Skb {
    #[inline(always)]
    fn context(self) -> *mut c_void {
        self.raw.cast()
    }

    /// The linear part, which the kernel has made private where a packet is written.
    #[inline(always)]
    fn bounds(self) -> (usize, usize) {
        (field!(self, data) as usize, field!(self, data_end) as usize)
    }

    #[inline(always)]
    fn len(self) -> u32 {
        field!(self, len)
    }

    #[inline(always)]
    fn gso_size(self) -> u32 {
        field!(self, gso_size)
    }

    /// While it is left to the device only the addresses matter, which its pseudo header has.
    #[inline(always)]
    fn fix_l4(self, offset: u64, mending: &Mending, udp: bool) -> Changed {
        match self.ip_summed() {
            Some(ip_summed::PARTIAL) => self.change(offset, |check| checksum::mend_partial(check, mending.addresses)),
            Some(ip_summed::NONE | ip_summed::UNNECESSARY) => {
                self.change(offset, |check| checksum::mend_whole(check, mending.all, udp))
            }
            // The sum beside a packet changes too where its check field alone does: the helper keeps both.
            _ => {
                if mending.addresses != 0 {
                    self.replace_l4(offset, mending.addresses, true, udp)?;
                }
                self.replace_l4(offset, checksum::fold32(u64::from(mending.all) + u64::from(!mending.addresses)), false, udp)
            }
        }
    }
}

impl Skb {
    /// The packet of a program's context.
    #[inline(always)]
    pub(crate) fn new(raw: *mut __sk_buff) -> Self {
        Self { raw }
    }

    /// The context as helpers take it.
    #[inline(always)]
    pub(crate) fn raw(self) -> *mut __sk_buff {
        self.raw
    }

    /// Whether a VLAN's tag is kept beside the packet. One that says a priority alone is of no VLAN (IEEE 802.1Q).
    #[inline(always)]
    pub(crate) fn is_tagged(self) -> bool {
        const VLAN_ID: u32 = 0xfff;
        field!(self, vlan_present) != 0 && field!(self, vlan_tci) & VLAN_ID != 0
    }

    /// The interface whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        field!(self, ifindex)
    }

    /// The interface that the host's stack took it in by; 0 if the host made it.
    #[inline(always)]
    pub(crate) fn entered_by(self) -> u32 {
        field!(self, ingress_ifindex)
    }

    /// Whether its frame is addressed to this machine, and not only overheard.
    #[inline(always)]
    pub(crate) fn is_addressed_to_us(self) -> bool {
        field!(self, pkt_type) == PACKET_HOST
    }

    /// Packets that it leaves as.
    #[inline(always)]
    pub(crate) fn segments(self) -> u32 {
        field!(self, gso_segs).max(1)
    }

    /// What an XDP program left in front of the packet, if it is a `T`.
    #[inline(always)]
    pub(crate) fn meta<T: Copy>(self) -> Option<T> {
        let start = field!(self, data_meta) as usize;
        let end = field!(self, data) as usize;
        if start + size_of::<T>() > end {
            return None;
        }
        // SAFETY: within the metadata as checked.
        Some(unsafe { (start as *const T).read() })
    }

    /// Who is to finish the transport checksum: one of [`ip_summed`], if this kernel lets us see.
    #[inline(always)]
    fn ip_summed(self) -> Option<u8> {
        let layout = skb_layout();
        if layout.known == 0 {
            return None;
        }
        // SAFETY: not this function but an instruction that the loader replaces: see `SkbLayout::CAST`. It only computes a pointer.
        let cast: extern "C" fn(*mut __sk_buff) -> *const u8 = unsafe { core::mem::transmute(SkbLayout::CAST as usize) };
        // SAFETY: within the kernel's `struct sk_buff`, by the kernel's own description, and checked again by the verifier.
        let byte = unsafe { cast(self.raw).add(layout.ip_summed_byte as usize).read() };
        Some(byte >> layout.ip_summed_shift & 3)
    }

    /// Whether its transport checksum is known to stand in it, whole.
    #[inline(always)]
    pub(crate) fn has_whole_checksum(self) -> bool {
        self.ip_summed().is_some_and(|state| state != ip_summed::PARTIAL)
    }

    /// Makes the first `len` bytes linear.
    #[inline(always)]
    pub(crate) fn pull(self, len: u32) -> Changed {
        // SAFETY: a valid context.
        check(unsafe { bpf_skb_pull_data(self.raw, len) })
    }

    /// Adds `diff` to the transport checksum at `offset`, by the kernel's own means.
    #[inline(always)]
    fn replace_l4(self, offset: u64, diff: u32, pseudo: bool, udp: bool) -> Changed {
        let pseudo = if pseudo { BPF_F_PSEUDO_HDR as u64 } else { 0 };
        let udp = if udp { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        // SAFETY: a valid context; the helper checks the offset.
        check(unsafe { bpf_l4_csum_replace(self.raw, offset as u32, 0, diff as u64, pseudo | udp) })
    }

    /// Makes room for a VXLAN header between Ethernet and network header.
    #[inline(always)]
    pub(crate) fn push(self, len: u32) -> Changed {
        let flags = BPF_F_ADJ_ROOM_FIXED_GSO as u64
            | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
            // The length of the inner Ethernet header (BPF_F_ADJ_ROOM_ENCAP_L2, include/uapi/linux/bpf.h).
            | (ETH_LEN << 56);
        // SAFETY: a valid context.
        check(unsafe { bpf_skb_adjust_room(self.raw, len as i32, BPF_ADJ_ROOM_MAC, flags) })
    }

    /// Makes room for a VXLAN header where one was popped: the packet may still say of itself that it has one (`encapsulation`, the kind of
    /// segmentation, where the inner headers begin), and then the kernel refuses to make room for another (EALREADY), the packet being as it was.
    #[inline(always)]
    pub(crate) fn push_again(self, len: u32) -> Changed {
        // SAFETY: a valid context.
        check(unsafe { bpf_skb_adjust_room(self.raw, len as i32, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO as u64) })
    }

    /// Removes `len` bytes that follow the Ethernet header.
    #[inline(always)]
    pub(crate) fn pop(self, len: u32) -> Changed {
        // SAFETY: a valid context.
        check(unsafe { bpf_skb_adjust_room(self.raw, -(len as i32), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO as u64) })
    }

    /// Makes plain room after the Ethernet header, for a packet that is about to become another.
    #[inline(always)]
    pub(crate) fn prepend(self, len: u32) -> Changed {
        // SAFETY: a valid context.
        check(unsafe { bpf_skb_adjust_room(self.raw, len as i32, BPF_ADJ_ROOM_MAC, 0) })
    }

    /// Cuts the packet to `len` bytes.
    #[inline(always)]
    pub(crate) fn truncate(self, len: u32) -> Changed {
        // SAFETY: a valid context.
        check(unsafe { bpf_skb_change_tail(self.raw, len, 0) })
    }

    /// Swaps source and destination MAC.
    #[inline(always)]
    pub(crate) fn swap_macs(self) -> Changed {
        let dst_head = self.read::<u32>(0).ok_or(DropReason::Malformed)?;
        let dst_tail = self.read::<u16>(4).ok_or(DropReason::Malformed)?;
        let src_head = self.read::<u32>(6).ok_or(DropReason::Malformed)?;
        let src_tail = self.read::<u16>(10).ok_or(DropReason::Malformed)?;
        self.write(0, src_head)?;
        self.write(4, src_tail)?;
        self.write(6, dst_head)?;
        self.write(10, dst_tail)
    }

    /// Into the namespace at the other end of a veth, from an ingress hook.
    ///
    /// A frame to another's address, as one to a bridge's is on the bridge's port, would be nobody's there before Linux 6.16, which
    /// scrubs what it redirects.
    #[inline(always)]
    pub(crate) fn redirect_peer(self, ifindex: u32) -> Verdict {
        if field!(self, pkt_type) == PACKET_OTHERHOST {
            // SAFETY: a valid context. On failure the kernel of the other end decides.
            unsafe { bpf_skb_change_type(self.raw, PACKET_HOST) };
        }
        // SAFETY: a helper on values.
        unsafe { bpf_redirect_peer(ifindex, 0) };
        Verdict::Redirect
    }

    /// Out of an interface, with the Ethernet header as it stands.
    #[inline(always)]
    pub(crate) fn redirect(self, ifindex: u32) -> Verdict {
        // SAFETY: a helper on values.
        unsafe { bpf_redirect(ifindex, 0) };
        Verdict::Redirect
    }

    /// In at an interface, as if received there.
    #[inline(always)]
    pub(crate) fn redirect_ingress(self, ifindex: u32) -> Verdict {
        // SAFETY: a helper on values.
        unsafe { bpf_redirect(ifindex, BPF_F_INGRESS as u64) };
        Verdict::Redirect
    }

    /// Out of an interface to an on-link next hop of an address family (an IPv4 address is the first word); the kernel writes the Ethernet header, resolving the neighbour if it must.
    #[inline(always)]
    pub(crate) fn redirect_neigh(self, ifindex: u32, family: u8, next_hop: [u32; 4]) -> Verdict {
        let mut params =
            bpf_redir_neigh { nh_family: family as u32, __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: next_hop } };
        // SAFETY: the parameters live on the stack and have the length given.
        unsafe { bpf_redirect_neigh(ifindex, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0) };
        Verdict::Redirect
    }

    /// Out of an interface, the next hop looked up in the routing table by the packet's destination.
    #[inline(always)]
    pub(crate) fn redirect_routed(self, ifindex: u32) -> Verdict {
        // SAFETY: no parameters: the helper looks the next hop up.
        unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) };
        Verdict::Redirect
    }
}

/// A helper's return value as a result.
#[inline(always)]
fn check(ret: i64) -> Changed {
    if ret == 0 { Ok(()) } else { Err(DropReason::RewriteFailed) }
}
