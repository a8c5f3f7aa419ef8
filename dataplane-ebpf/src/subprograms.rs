//! Functions that the kernel verifies once and on their own ("global functions", Documentation/bpf/verifier.rst), instead of anew on
//! every path that leads to a call: what runs once a flow, or for packets that are not the rule.
//!
//! The price is that nothing is known of their arguments: a pointer may be null, a number anything.

use aya_ebpf::bindings::__sk_buff;
use shunt_common::{
    conntrack::CtEntry,
    net::{Family, Ip4, V4},
    shortcut::Link,
};

use crate::{
    count,
    packet::{parse::Flow, refuse::Refusal, skb::Skb},
    stages::{
        conntrack, deliver, direct, fragment, icmp, service,
        snat::{self, Opening},
    },
};

/// The subprograms of one address family.
pub(crate) trait Subprograms: Family
where
    Self: Sized,
{
    /// [`snat::try_open`].
    fn open_flow(opening: &mut Opening<Self>) -> u32
    where
        Self: crate::packet::parse::Ip;

    /// [`icmp::try_translate`].
    fn translate_error(skb: *mut __sk_buff, flow: &mut Flow<Self>) -> u32;

    /// [`fragment::try_resolve`].
    fn resolve_fragment(flow: &mut Flow<Self>, how: u32) -> u32;

    /// [`Refusal::refuse`]: 0 if it did.
    fn make_error(skb: *mut __sk_buff, what_mtu: u32) -> u32;

    /// [`direct::try_resume`].
    fn resume_named(flow: &mut Flow<Self>, opening: &mut Opening<Self>) -> u32
    where
        Self: crate::packet::parse::Ip;

    /// [`service::try_choose`].
    fn choose_backend(opening: &mut Opening<Self>, client: u32) -> u32
    where
        Self: crate::packet::parse::Ip;

    /// [`conntrack::try_note`].
    fn note_packet(entry: &mut CtEntry<Self>, tcp: u32) -> u32
    where
        Self: crate::packet::parse::Ip;

    /// [`snat::try_choose_source`].
    fn choose_source(skb: *mut __sk_buff, opening: &mut Opening<Self>) -> u32
    where
        Self: crate::packet::parse::Ip;
}

impl Subprograms for V4 {
    #[inline(always)]
    fn open_flow(opening: &mut Opening<V4>) -> u32 {
        open_flow_v4(opening)
    }

    #[inline(always)]
    fn translate_error(skb: *mut __sk_buff, flow: &mut Flow<V4>) -> u32 {
        translate_error_v4(skb, flow)
    }

    #[inline(always)]
    fn resolve_fragment(flow: &mut Flow<V4>, how: u32) -> u32 {
        resolve_fragment_v4(flow, how)
    }

    #[inline(always)]
    fn make_error(skb: *mut __sk_buff, what_mtu: u32) -> u32 {
        make_error_v4(skb, what_mtu)
    }

    #[inline(always)]
    fn resume_named(flow: &mut Flow<V4>, opening: &mut Opening<V4>) -> u32 {
        resume_named_v4(flow, opening)
    }

    #[inline(always)]
    fn choose_backend(opening: &mut Opening<V4>, client: u32) -> u32 {
        choose_backend_v4(opening, client)
    }

    #[inline(always)]
    fn note_packet(entry: &mut CtEntry<V4>, tcp: u32) -> u32 {
        note_packet_v4(entry, tcp)
    }

    #[inline(always)]
    fn choose_source(skb: *mut __sk_buff, opening: &mut Opening<V4>) -> u32 {
        choose_source_v4(skb, opening)
    }
}

/// What a subprogram returns for a null pointer, which no caller passes: no number that one of them returns otherwise.
const NULL: u32 = u32::MAX - 2;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn open_flow_v4(opening: *mut Opening<V4>) -> u32 {
    // SAFETY: not null as checked; the verifier holds the caller to a whole, initialised `Opening`.
    unsafe { opening.as_mut() }.map_or(NULL, snat::try_open)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate_error_v4(skb: *mut __sk_buff, flow: *mut Flow<V4>) -> u32 {
    // SAFETY: as above.
    unsafe { flow.as_mut() }.map_or(NULL, |flow| icmp::try_translate(Skb::new(skb), flow))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn resolve_fragment_v4(flow: *mut Flow<V4>, how: u32) -> u32 {
    // SAFETY: as above.
    unsafe { flow.as_mut() }.map_or(NULL, |flow| fragment::try_resolve(flow, how))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_error_v4(skb: *mut __sk_buff, what_mtu: u32) -> u32 {
    V4::refuse(Skb::new(skb), (what_mtu >> 16) as u16, what_mtu as u16).is_err() as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn resume_named_v4(flow: *mut Flow<V4>, opening: *mut Opening<V4>) -> u32 {
    // SAFETY: as above.
    unsafe { flow.as_ref().zip(opening.as_mut()) }.map_or(NULL, |(flow, opening)| direct::try_resume(flow, opening))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_backend_v4(opening: *mut Opening<V4>, client: u32) -> u32 {
    // SAFETY: as above.
    unsafe { opening.as_mut() }.map_or(NULL, |opening| service::try_choose(opening, client))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note_packet_v4(entry: *mut CtEntry<V4>, tcp: u32) -> u32 {
    // SAFETY: as above.
    unsafe { entry.as_mut() }.map_or(NULL, |entry| conntrack::try_note(entry, tcp))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose_source_v4(skb: *mut __sk_buff, opening: *mut Opening<V4>) -> u32 {
    // SAFETY: as above.
    unsafe { opening.as_mut() }.map_or(NULL, |opening| snat::try_choose_source(Skb::new(skb), opening))
}

/// [`deliver::look_for_link`]. Whoever asks goes on to send by [`deliver::to_tunnel`], so that the kernel keeps its neighbour entry alive and
/// fresh.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn find_link(skb: *mut __sk_buff, underlay: u32, link: *mut Link) -> u32 {
    // SAFETY: as above.
    unsafe { link.as_mut() }.map_or(NULL, |link| {
        *link = deliver::look_for_link(Skb::new(skb), Ip4 { be: underlay });
        0
    })
}

/// [`count::tell`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tell_drop(skb: *mut __sk_buff, reason: u32, program: u32) -> u32 {
    count::tell(Skb::new(skb), reason, program as u8);
    0
}
