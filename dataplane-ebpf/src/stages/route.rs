//! Where an address is reached from here.

use shunt_common::{
    address::{kind, route, route_flags},
    conntrack::{Hop, hop},
    net::{Ip4, Mac},
};

use crate::{maps::epoch, packet::parse::Ip};

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

impl Next {
    /// A flow's remembered next hop, if it still holds for a packet that enters by `ingress`.
    #[inline(always)]
    pub(crate) fn recall(hop: &Hop, ingress: u32) -> Option<Self> {
        if hop.epoch != epoch() || hop.ingress != ingress { None } else { Self::of(hop) }
    }

    /// What a remembered next hop says.
    #[inline(always)]
    pub(crate) fn of(hop: &Hop) -> Option<Self> {
        match hop.kind {
            hop::POD => Some(Self::Pod { ifindex: hop.target, mac: hop.mac }),
            hop::TUNNEL => Some(Self::Tunnel { underlay: Ip4 { be: hop.target }, vtep: hop.mac }),
            hop::HOST => Some(Self::Host),
            hop::OUTSIDE => Some(Self::Outside),
            _ => None,
        }
    }

    /// What to remember of this next hop, looked up in `epoch` for packets that enter by `ingress`.
    #[inline(always)]
    pub(crate) fn remember(self, epoch: u32, ingress: u32) -> Hop {
        let (kind, target, mac) = match self {
            Self::Pod { ifindex, mac } => (hop::POD, ifindex, mac),
            Self::Tunnel { underlay, vtep } => (hop::TUNNEL, underlay.be, vtep),
            Self::Host => (hop::HOST, 0, Mac::ZERO),
            Self::Outside => (hop::OUTSIDE, 0, Mac::ZERO),
            _ => (hop::UNKNOWN, 0, Mac::ZERO),
        };
        Hop { kind, epoch, ingress, target, mac, reserved: 0 }
    }
}

/// Looks an address up: exactly first, then by prefix.
#[inline(always)]
pub(crate) fn lookup<F: Ip>(addr: F::Addr) -> Next {
    lookup_as::<F>(addr, false)
}

/// The same for a packet whose source is this node's `own` address or one that it serves: other nodes take that as any host outside would,
/// not out of the tunnel.
#[inline(always)]
pub(crate) fn lookup_as<F: Ip>(addr: F::Addr, own: bool) -> Next {
    // SAFETY: the value is read at once; the agent replaces values whole.
    if let Some(owner) = unsafe { F::addresses().get(addr) } {
        return match owner.kind {
            kind::POD => Next::Pod { ifindex: owner.ifindex, mac: owner.mac },
            kind::HOST => Next::Host,
            kind::NODE if own => Next::Outside,
            kind::NODE => Next::Tunnel { underlay: owner.underlay, vtep: owner.mac },
            _ => Next::Service,
        };
    }
    match F::route(addr) {
        Some(entry) => match entry.kind {
            route::TUNNEL => Next::Tunnel { underlay: entry.underlay, vtep: entry.mac },
            route::LOCAL => Next::Nobody,
            _ if own => Next::Outside,
            _ => Next::Native,
        },
        None => Next::Outside,
    }
}

/// Whether an address is in the pod range of a node that the tunnel leads to.
#[inline(always)]
pub(crate) fn is_pod_elsewhere<F: Ip>(addr: F::Addr) -> bool {
    F::route(addr).is_some_and(|entry| entry.kind == route::TUNNEL)
}

/// The peer that a backend's packets go to with its name: none of a backend that is the peer itself, for whose answers there is no program.
#[inline(always)]
pub(crate) fn taker_of_names<F: Ip>(backend: F::Addr) -> Option<Ip4> {
    if owner::<F>(backend).is_some() {
        return None;
    }
    let entry = F::route(backend)?;
    let takes = entry.kind == route::TUNNEL && entry.flags & route_flags::TAKES_NAMES != 0;
    takes.then_some(entry.underlay)
}

/// What an exact address is: one of [`kind`], if it is anybody's.
#[inline(always)]
pub(crate) fn owner<F: Ip>(addr: F::Addr) -> Option<u32> {
    // SAFETY: the value is read at once; the agent replaces values whole.
    unsafe { F::addresses().get(addr) }.map(|owner| owner.kind)
}
