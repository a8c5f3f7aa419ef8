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
    socket::{Closed, Form, Socket},
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
        forget::<F>(socket.cookie());
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
    // One of the kernel's own meets no program at its end, and has no process that asks for its peer.
    if !socket.is_kernels() {
        let frontend = Frontend { addr: flow.dst, port: flow.dport, reserved: 0 };
        let has_room = F::connected().insert(socket.cookie(), frontend, 0).is_ok();
        // Packets to the loopback meet nobody who translates them: better served without the name.
        if !has_room && !flow.dst.is_loopback() {
            return false;
        }
    }
    socket.set_peer(choice.backend.addr, choice.backend.port);
    count(Counter::ServiceConnect);
    true
}

/// At `getpeername()`: the peer is whom the socket's program named.
#[inline(always)]
pub(crate) fn name_peer<F: Ip<Addr = Ip4>, A: Form>(socket: &Socket<A>) {
    if socket.proto() != u32::from(proto::TCP) {
        return;
    }
    // SAFETY: the value is read at once.
    if let Some(frontend) = unsafe { F::connected().get(socket.cookie()) } {
        socket.set_peer(frontend.addr, frontend.port);
    }
}

/// At the last `close()`, of whatever socket.
#[inline(always)]
pub(crate) fn end<F: Ip>(socket: &Closed) {
    if socket.proto() == u32::from(proto::TCP) {
        forget::<F>(socket.cookie());
    }
}

/// Forgets what a socket was connected to.
#[inline(always)]
fn forget<F: Ip>(cookie: u64) {
    // Of most sockets there is nothing to forget, which a look tells without the lock that removing takes.
    // SAFETY: the value is not read.
    if unsafe { F::connected().get(cookie) }.is_some() {
        let _ = F::connected().remove(cookie);
    }
}
