//! The short way of a flow under way: what was decided for its packets, kept per CPU, so that most of them need no look-up in a table.
//!
//! Made by the packets that went the long way, after their entry in `CONNTRACK` has heard of them; see `shunt_common::shortcut` for how long
//! it holds.

use core::ops::ControlFlow;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_jiffies64};
use shunt_common::{
    conntrack::CtKey,
    flow::Tuple,
    net::proto,
    shortcut::{self, Link, Now, Shortcut},
    verdict::{DropReason, Verdict},
};

use super::{Hook, Stage, deliver, done, dropped, route::Next, service};
use crate::{
    maps::{epoch, last_change},
    packet::{
        parse::{Flow, Ip},
        skb::Skb,
        tunnel::Wrap,
    },
    subprograms::find_link,
};

/// What held when a packet came: taken before any look-up whose outcome may become a shortcut, so that a change in between makes it stale.
#[derive(Clone, Copy)]
pub(crate) struct Before {
    stamp: u32,
    pub(crate) epoch: u32,
}

/// The backend that a decision depends on; id 0 is none.
#[derive(Clone, Copy)]
pub(crate) struct Tenant {
    pub(crate) backend: u32,
    pub(crate) generation: u32,
}

impl Tenant {
    /// No backend's.
    pub(crate) const NONE: Self = Self { backend: 0, generation: 0 };
}

impl Before {
    /// Of this packet.
    #[inline(always)]
    pub(crate) fn of<F: Ip>(flow: &Flow<F>) -> Self {
        Self { stamp: last_change(shortcut::hash(&flow.tuple)), epoch: epoch() }
    }

    /// The same for a packet that came to a program from `ingress`: an interface, or for what came through the tunnel a peer's address.
    #[inline(always)]
    pub(crate) fn now(self, hook: Hook, ingress: u32) -> Now {
        // SAFETY: a helper without arguments.
        let window = shortcut::window(unsafe { bpf_jiffies64() });
        Now { stamp: self.stamp, epoch: self.epoch, window, program: hook.program.into(), ingress }
    }
}

/// This CPU's slot for a packet's shortcut.
#[inline(always)]
fn slot<F: Ip>(flow: &Flow<F>) -> Option<&'static mut Shortcut<F>> {
    let slot = F::shortcuts().get_ptr_mut(shortcut::slot(shortcut::hash(&flow.tuple)))?;
    // SAFETY: a value of this CPU's, where no other program of ours runs before this one has ended.
    Some(unsafe { &mut *slot })
}

/// The shortcut of a plain packet, if there is one that holds.
#[inline(always)]
pub(crate) fn find<F: Ip>(hook: Hook, ingress: u32, flow: &Flow<F>, before: Before) -> Option<&'static mut Shortcut<F>> {
    let shortcut = slot(flow)?;
    if !shortcut.holds(&flow.tuple, &before.now(hook, ingress)) {
        return None;
    }
    if shortcut.backend != 0 && service::tenant::<F>(shortcut.backend, shortcut.generation).is_none() {
        return None;
    }
    Some(shortcut)
}

/// Keeps what was decided for a packet, and the link to its next hop if it goes through the tunnel. What depends on more than a packet's ends
/// is decided anew each time.
#[inline(always)]
pub(crate) fn keep<F: Ip>(skb: Skb, flow: &Flow<F>, now: Now, to: &Tuple<F>, next: Next, tenant: Tenant) {
    if !flow.is_plain() || !matches!(next, Next::Pod { .. } | Next::Tunnel { .. }) {
        return;
    }
    if let Some(slot) = put(flow, now, to, next, tenant)
        && let Next::Tunnel { underlay, .. } = next
    {
        find_link(skb.raw(), underlay.be, &raw mut slot.link);
    }
}

/// Gives a plain packet's slot to what was decided for it, without a link.
#[inline(always)]
pub(crate) fn put<F: Ip>(
    flow: &Flow<F>,
    now: Now,
    to: &Tuple<F>,
    next: Next,
    tenant: Tenant,
) -> Option<&'static mut Shortcut<F>> {
    let slot = slot(flow)?;
    // Field by field: a whole one on the stack, to be copied, would take more of that than there is.
    slot.key = CtKey::of(&flow.tuple);
    slot.program = now.program;
    slot.window = now.window;
    slot.stamp = now.stamp;
    // A TCP connection stays with its backend whatever becomes of that.
    slot.backend = if flow.tuple.proto == proto::TCP { 0 } else { tenant.backend };
    slot.generation = tenant.generation;
    // SAFETY: a helper without arguments.
    slot.id = unsafe { bpf_get_prandom_u32() };
    slot.mending = F::mending(&flow.tuple, to);
    slot.src = to.src;
    slot.dst = to.dst;
    slot.sport = to.sport;
    slot.dport = to.dport;
    slot.hop = next.remember(now.epoch, now.ingress);
    slot.link = Link::NONE;
    Some(slot)
}

/// The identification of the tunnel packet that takes some segments: consecutive, as the receiver's GRO wants them.
#[inline(always)]
pub(crate) fn next_id<F: Ip>(shortcut: &mut Shortcut<F>, segments: u32) -> u16 {
    let id = shortcut.id;
    shortcut.id = id.wrapping_add(segments);
    id as u16
}

/// Sends a packet the short way.
#[inline(always)]
pub(crate) fn take<F: Ip>(skb: Skb, hook: Hook, flow: &Flow<F>, shortcut: &mut Shortcut<F>) -> Stage<Verdict> {
    let to = shortcut.translated();
    done(if to == flow.tuple { F::age(skb) } else { F::rewrite(skb, flow, &to, &shortcut.mending, 1) })?;
    ControlFlow::Continue(match Next::of(&shortcut.hop) {
        Some(Next::Pod { ifindex, mac }) => deliver::to_pod(skb, hook, ifindex, mac),
        Some(Next::Tunnel { underlay, vtep }) => {
            let wrap = Wrap::of(flow, next_id(shortcut, skb.segments()));
            if shortcut.link.is_known() {
                deliver::to_link(skb, hook, wrap, underlay, vtep, shortcut.link)
            } else {
                deliver::to_tunnel(skb, hook, wrap, underlay, vtep)
            }
        }
        _ => return dropped(DropReason::NoRoute),
    })
}
