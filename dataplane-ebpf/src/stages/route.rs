//! Where an address is reached from here.

use shunt_common::{
    address::{kind, route},
    net::{Ip4, Mac},
};

use crate::packet::parse::Ip;

/// The next stop of a packet.
#[derive(Clone, Copy)]
pub(crate) enum Next {
    /// A pod of this node.
    Pod { ifindex: u32, mac: Mac },
    /// This node itself.
    Host,
    /// Another node, or a pod there.
    Tunnel { underlay: Ip4, vtep: Mac },
    /// A virtual IP: not a place, but a Service.
    Service,
    /// In this node's pod range, but nobody's.
    Nobody,
    /// Outside, reached by the host's routing and with the pod's own address.
    Native,
    /// Outside, reached with the node's address.
    Outside,
}

/// Looks an address up: exactly first, then by prefix.
#[inline(always)]
pub(crate) fn lookup<F: Ip>(addr: F::Addr) -> Next {
    // SAFETY: the value is read at once; the agent replaces values whole.
    if let Some(owner) = unsafe { F::addresses().get(addr) } {
        return match owner.kind {
            kind::POD => Next::Pod { ifindex: owner.ifindex, mac: owner.mac },
            kind::HOST => Next::Host,
            kind::NODE => Next::Tunnel { underlay: owner.underlay, vtep: owner.mac },
            _ => Next::Service,
        };
    }
    match F::route(addr) {
        Some(entry) => match entry.kind {
            route::TUNNEL => Next::Tunnel { underlay: entry.underlay, vtep: entry.mac },
            route::LOCAL => Next::Nobody,
            _ => Next::Native,
        },
        None => Next::Outside,
    }
}
