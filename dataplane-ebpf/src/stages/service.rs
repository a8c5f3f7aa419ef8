//! Services: which backend a packet to a virtual IP goes to.

use core::ops::ControlFlow;

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use shunt_common::{
    backend,
    conntrack::{CtEntry, CtKey},
    flow::Tuple,
    net::proto,
    service::{Backend, ServiceKey, flags, state},
    verdict::{Counter, DropReason},
};

use super::{
    Stage, conntrack, done, dropped,
    route::{self, Next},
    snat::{self, Opening, SourcePort},
};
use crate::{
    count::count,
    maps::slot,
    packet::parse::{Flow, Ip},
};

/// Why no backend was chosen, and so how the client hears of it.
#[derive(Clone, Copy)]
pub(crate) enum Nobody {
    /// Refuse at once.
    Refuse(DropReason),
    /// Say nothing.
    Silent(DropReason),
}

/// Who asks, which decides the source that the backend sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// A pod: it keeps its address, except towards itself and towards the outside.
    Pod,
    /// This node: it keeps its address, except towards itself; its port is always one of the node's.
    Host,
}

/// Where a packet to a Service goes: what it must carry, or why not.
#[inline(always)]
pub(crate) fn translate<F: Ip>(flow: &Flow<F>, client: Client) -> Stage<Result<Tuple<F>, Nobody>> {
    let key = CtKey::of(&flow.tuple);
    if let Some(entry) = conntrack::find::<F>(&flow.tuple) {
        if is_still_good(flow, entry) {
            conntrack::touch(entry, flow);
            return ControlFlow::Continue(Ok(entry.translated(flow.tuple.proto)));
        }
        conntrack::forget(&key, entry);
    }
    let frontend = ServiceKey { addr: flow.tuple.dst, port: flow.tuple.dport, proto: flow.tuple.proto, reserved: 0 };
    // SAFETY: the value is read at once; the agent replaces values whole.
    let Some(service) = (unsafe { F::services().get(frontend) }) else {
        return ControlFlow::Continue(Err(Nobody::Refuse(DropReason::ServicePortUndefined)));
    };
    if service.count == 0 {
        return ControlFlow::Continue(Err(if service.flags & flags::DROP_WHEN_EMPTY != 0 {
            Nobody::Silent(DropReason::NoLocalEndpoints)
        } else {
            Nobody::Refuse(DropReason::NoEndpoints)
        }));
    }
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let id = slot(service.base.wrapping_add(backend::pick(random, service.count))).unwrap_or(0);
    let Some(&Backend { addr, port, generation, .. }) = F::backends().get(id).filter(|backend| backend.state != state::FREE)
    else {
        // The run was given to another Service between two look-ups: as good as no endpoint, and the client's next packet finds one.
        return dropped(DropReason::NoEndpoints);
    };
    let mut to = Tuple { dst: addr, dport: port, ..flow.tuple };
    let mut source_port = SourcePort::Keep;
    match client {
        Client::Host => {
            source_port = SourcePort::Allocate;
            to.src = if let Next::Host = route::lookup::<F>(addr) { F::hairpin() } else { F::node_ip() };
        }
        Client::Pod if addr == flow.tuple.src => to.src = F::gateway(),
        Client::Pod => {
            if let Next::Outside = route::lookup::<F>(addr) {
                to.src = F::node_ip();
                source_port = SourcePort::Allocate;
            }
        }
    }
    let mut opening = Opening { backend: id, generation, ..Opening::new(flow.tuple, to, source_port) };
    done(snat::open(&mut opening))?;
    count(Counter::ServiceNewFlow);
    ControlFlow::Continue(Ok(opening.to))
}

/// Whether a known flow may go on as it did.
///
/// A TCP connection stays where it is until it is over; a SYN on a closed one is a new connection. A flow without connections
/// moves as soon as its backend is no longer the one it was given.
#[inline(always)]
pub(crate) fn is_still_good<F: Ip>(flow: &Flow<F>, entry: &CtEntry<F>) -> bool {
    let is_tcp = flow.tuple.proto == proto::TCP;
    if is_tcp && !flow.is_syn() {
        return true;
    }
    let Some(backend) = F::backends().get(entry.backend) else { return false };
    if backend.generation != entry.generation || backend.state == state::FREE {
        return false;
    }
    if !is_tcp {
        return true;
    }
    !conntrack::is_over(entry, proto::TCP) && (backend.state == state::ACTIVE || conntrack::is_answered(entry, proto::TCP))
}
