//! Connect-time translation: a TCP socket that is to be connected to a Service is connected to the backend instead, and its packets need
//! no translation.
//!
//! This only ever gives a backend. Who is to be refused or dropped, and whatever is not known for certain, keeps the address that it
//! named: its packets meet [`super::service`], which refuses, counts and tells.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use shunt_common::{
    connect::{Frontend, kind},
    flow::Tuple,
    net::{Ip4, Port, proto},
    verdict::Counter,
};

use super::service::{self, Client};
use crate::{
    count::count,
    packet::parse::Ip,
    socket::{Form, Socket},
};

/// At `connect()`.
#[inline(always)]
pub(crate) fn translate<F: Ip<Addr = Ip4>, A: Form>(socket: &Socket<A>) {
    if socket.proto() != u32::from(proto::TCP) {
        return;
    }
    // SAFETY: the value is read at once; the agent replaces values whole.
    let Some(client) = (unsafe { F::clients().get(socket.netns()) }) else { return };
    let is_translated = socket.peer().is_some_and(|(addr, port)| {
        let (who, src) = match client.kind {
            // What the host has at its loopback is none of a pod's, which has one of its own.
            kind::POD if addr.is_loopback() => return false,
            kind::POD => (Client::Pod, client.addr),
            _ => (Client::Host, F::node_ip()),
        };
        // The port is not chosen yet: any will do to spread connections where its hash decides.
        // SAFETY: a helper without arguments.
        let sport = Port { be: unsafe { bpf_get_prandom_u32() } as u16 };
        let flow = Tuple { src, dst: addr, sport, dport: port, proto: proto::TCP };
        give_backend::<F, A>(socket, &flow, who)
    });
    if !is_translated {
        // It may have been connected to a Service before.
        // SAFETY: the socket of the context.
        let _ = unsafe { F::connected().delete(socket.raw()) };
    }
}

/// Connects a socket to a backend of the Service that it names; whether it did.
#[inline(always)]
fn give_backend<F: Ip<Addr = Ip4>, A: Form>(socket: &Socket<A>, flow: &Tuple<F>, who: Client) -> bool {
    // A socket that chose its own end may have chosen the same for two Services, which one backend cannot tell apart; and an address of its
    // choice may not be one that the backend's answers find.
    if socket.is_bound() {
        return false;
    }
    let Ok(choice) = service::choose(flow, who as u32) else { return false };
    let mut frontend = Frontend { addr: flow.dst, port: flow.dport, reserved: 0 };
    // SAFETY: the socket of the context.
    let kept = unsafe { F::connected().get_or_insert_ptr_mut(socket.context(), Some(&mut frontend)) };
    // SAFETY: null as checked, or this socket's own value.
    let Some(kept) = (unsafe { kept.as_mut() }) else { return false };
    *kept = frontend;
    socket.set_peer(choice.backend.addr, choice.backend.port);
    count(Counter::ServiceConnect);
    true
}

/// At `getpeername()`: the peer is whom the socket's program named.
#[inline(always)]
pub(crate) fn name_peer<F: Ip<Addr = Ip4>, A: Form>(socket: &Socket<A>) {
    // SAFETY: the socket of the context; null as checked, or its own value.
    if let Some(frontend) = unsafe { F::connected().get_ptr_mut(socket.context()).as_ref() } {
        socket.set_peer(frontend.addr, frontend.port);
    }
}
