//! What becomes of each flow that the host's stack knows. Pure.
//!
//! A flow of a pod of this node to a Service, its source untouched, is one that we translate in the same way: it becomes ours, and leaves a dead
//! backend as ours do. Every other translated flow stays with the stack until it ends, both its tuples marked: those with another source address or
//! port (masqueraded, from outside, of the node's own processes), those to a backend on this host, whose packets meet the stack again.

use std::collections::BTreeMap;

use shunt_common::{
    conntrack::{CtEntry, CtKey, seen},
    flow::Tuple,
    net::{Ip4, Port, V4, proto},
    service::ServiceKey,
};

use crate::kernel::{nf_conntrack::StackFlow, read::ServiceRow, routes::OthersRoute};

/// Who an address is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A pod of this node.
    LocalPod,
    /// This node.
    Host,
    /// Elsewhere in the cluster, or a Service.
    Cluster,
    /// Anywhere else.
    Outside,
}

/// A backend's id and generation, by frontend and the backend's own address and port.
#[derive(Clone, Debug, Default)]
pub struct Backends(BTreeMap<(ServiceKey<V4>, Ip4, Port), (u32, u32)>);

impl Backends {
    /// Of all frontends.
    #[must_use]
    pub fn of(services: &[ServiceRow]) -> Self {
        let rows = services
            .iter()
            .flat_map(|service| service.cluster.iter().chain(&service.outside).map(move |row| (service.key, row)));
        Self(rows.map(|(key, row)| ((key, row.backend.addr, row.backend.port), (row.id, row.backend.generation))).collect())
    }

    fn find(&self, original: &Tuple<V4>, translated: &Tuple<V4>) -> Option<(u32, u32)> {
        let key = ServiceKey { addr: original.dst, port: original.dport, proto: original.proto, reserved: 0 };
        self.0.get(&(key, translated.dst, translated.dport)).copied()
    }
}

/// Both entries of a flow, the opener's first.
pub type Pair = [(CtKey<V4>, CtEntry<V4>); 2];

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is translated here from now on.
    Ours(Pair),
    /// Its packets are left to the host's stack.
    Stacks(Pair),
    /// It is not translated, or over: nothing has to be known of it.
    Untouched,
}

/// Decides.
#[must_use]
pub fn fate(flow: &StackFlow, place: impl Fn(Ip4) -> Place, backends: &Backends, now: u32) -> Fate {
    let (original, translated) = (flow.original, flow.translated());
    let is_followed = matches!(original.proto, proto::TCP | proto::UDP | proto::SCTP);
    if !is_followed {
        return Fate::Untouched;
    }
    let (from, to) = (place(original.src), place(translated.dst));
    let keeps_source = (original.src, original.sport) == (translated.src, translated.sport);
    if flow.is_translated()
        && keeps_source
        && from == Place::LocalPod
        && to != Place::Host
        && original.proto != proto::SCTP
        && !flow.closing
        && let Some((id, generation)) = backends.find(&original, &translated)
    {
        return Fate::Ours(known(CtEntry::pair(&original, &translated, id, generation, now), flow));
    }
    // One that a pod has with the outside without translation would be masqueraded by us.
    let is_bare = matches!((from, to), (Place::LocalPod, Place::Outside) | (Place::Outside, Place::LocalPod));
    if flow.is_translated() || is_bare {
        return Fate::Stacks(known(CtEntry::left_to_stack(&original, &translated, now), flow));
    }
    Fate::Untouched
}

/// Whether a flow ends the moment it leaves by another device than flannel's: masquerading keeps to the device that gave the source
/// (`nf_nat_oif_changed`, net/netfilter/nf_nat_core.c).
#[must_use]
pub fn is_bound(flow: &StackFlow, routes: &[OthersRoute]) -> bool {
    let to = flow.translated();
    let changes_source = (flow.original.src, flow.original.sport) != (to.src, to.sport);
    changes_source && routes.iter().any(|route| route.prefix.contains(&std::net::Ipv4Addr::from(to.dst)))
}

/// Notes what has been seen of a flow already.
fn known(mut pair: Pair, flow: &StackFlow) -> Pair {
    let closed = if flow.closing { seen::FIN } else { 0 };
    pair[0].1.seen |= closed;
    if flow.answered {
        pair[1].1.seen |= seen::ANY | closed;
    }
    pair
}

#[cfg(test)]
mod tests {
    use shunt_common::{
        conntrack::translates,
        service::{Backend, Run, Service},
    };

    use super::*;
    use crate::kernel::read::BackendRow;

    fn ip(text: &str) -> Ip4 {
        text.parse::<std::net::Ipv4Addr>().unwrap().into()
    }

    fn tuple(src: (&str, u16), dst: (&str, u16), proto: u8) -> Tuple<V4> {
        Tuple { src: ip(src.0), dst: ip(dst.0), sport: Port::from_host(src.1), dport: Port::from_host(dst.1), proto }
    }

    fn place(addr: Ip4) -> Place {
        let [a, _, c, d] = std::net::Ipv4Addr::from(addr).octets();
        match (a, c, d) {
            (10, 1, 0 | 1) | (192, ..) => Place::Host,
            (10, 1, _) => Place::LocalPod,
            (10, ..) => Place::Cluster,
            _ => Place::Outside,
        }
    }

    fn backends() -> Backends {
        let key = ServiceKey { addr: ip("10.96.0.10"), port: Port::from_host(80), proto: proto::UDP, reserved: 0 };
        let row = |id, addr| BackendRow {
            id,
            backend: Backend { addr: ip(addr), port: Port::from_host(8080), state: 1, flags: 0, generation: 3 },
        };
        let run = Run { base: 0, count: 2 };
        Backends::of(&[ServiceRow {
            key,
            service: Service { cluster: run, outside: run, flags: 0, affinity_secs: 0, id: 1 },
            cluster: vec![row(7, "10.244.2.3"), row(8, "192.0.2.1")],
            outside: Vec::new(),
            source_ranges: Vec::new(),
        }])
    }

    fn decide(original: Tuple<V4>, translated: Tuple<V4>) -> Fate {
        fate(&StackFlow { original, reply: translated.reversed(), answered: true, closing: false }, place, &backends(), 5)
    }

    #[test]
    fn a_pods_flow_to_a_service_becomes_ours() {
        let original = tuple(("10.244.1.5", 4000), ("10.96.0.10", 80), proto::UDP);
        let Fate::Ours([(key, entry), (_, reply)]) =
            decide(original, tuple(("10.244.1.5", 4000), ("10.244.2.3", 8080), proto::UDP))
        else {
            panic!("not ours")
        };
        assert_eq!((key, entry.backend, entry.generation), (CtKey::of(&original), 7, 3));
        assert_eq!((reply.seen, reply.translates), (seen::ANY, translates::HERE));
    }

    #[test]
    fn what_we_would_not_translate_alike_stays_with_the_stack() {
        let pod = ("10.244.1.5", 4000);
        for (name, original, translated) in [
            ("a backend that is gone", tuple(pod, ("10.96.0.10", 80), 17), tuple(pod, ("10.244.2.9", 8080), 17)),
            ("a backend on this host", tuple(pod, ("10.96.0.10", 80), 17), tuple(pod, ("192.0.2.1", 8080), 17)),
            ("masqueraded too", tuple(pod, ("10.96.0.10", 80), 17), tuple(("10.244.1.1", 4000), ("10.244.2.3", 8080), 17)),
            ("to the outside", tuple(pod, ("203.0.113.1", 80), 6), tuple(("192.0.2.1", 4000), ("203.0.113.1", 80), 6)),
            (
                "from outside",
                tuple(("203.0.113.1", 5), ("192.0.2.1", 30080), 6),
                tuple(("203.0.113.1", 5), ("10.244.1.5", 80), 6),
            ),
            ("to the outside as it is", tuple(pod, ("203.0.113.1", 80), 6), tuple(pod, ("203.0.113.1", 80), 6)),
        ] {
            let Fate::Stacks(pair) = decide(original, translated) else { panic!("{name}: not the stack's") };
            assert!(pair.iter().all(|(_, entry)| entry.translates == translates::STACK), "{name}");
            assert_eq!((pair[0].0, pair[1].0), (CtKey::of(&original), CtKey::of(&translated.reversed())), "{name}");
        }
    }

    #[test]
    fn nothing_is_noted_of_flows_that_go_on_as_they_are() {
        let direct = tuple(("10.244.1.5", 4000), ("10.244.2.3", 80), proto::TCP);
        assert_eq!(decide(direct, direct), Fate::Untouched);
        let ping = tuple(("10.244.1.5", 4000), ("203.0.113.1", 0), proto::ICMP);
        assert_eq!(decide(ping, tuple(("192.0.2.1", 4000), ("203.0.113.1", 0), proto::ICMP)), Fate::Untouched);
    }
}
