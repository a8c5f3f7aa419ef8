//! Where an outcome is another than that of kube-proxy's iptables mode: what it is instead, and why.
//!
//! A difference must be seen in every cell that it speaks of: once that is as theirs, the table fails until the entry is gone.

use crate::{
    cells::{Cell, Kind, Place},
    sides::{Reply, Source},
};

/// What is other.
pub(crate) struct Difference {
    /// In a few words.
    pub(crate) name: &'static str,
    /// Why it is so.
    pub(crate) why: &'static str,
    /// What is to be had in a cell, given one of their replies, as the differences before this one have changed it; `None` where it is the same.
    pub(crate) other: fn(&Cell, &Reply) -> Option<Reply>,
}

/// With us and with kube-proxy's nftables mode.
const REFUSED: Difference = Difference {
    name: "a node is refused where nobody serves",
    why: "the iptables mode refuses packets that arrive, and n1's own to a load balancer's or external address comes back to n1 as a martian",
    other: |cell, theirs| match theirs {
        Reply::Silent
            if cell.from == Place::N1
                && matches!(cell.kind, Kind::LoadBalancerIp | Kind::ExternalIp)
                && cell.service.is_nobodys() =>
        {
            Some(Reply::Refused)
        }
        _ => None,
    },
};

/// Ours on purpose.
pub(crate) const ON_PURPOSE: [Difference; 4] = [
    Difference {
        name: "a pod keeps its address",
        why: "its answers come back through us anyway, from nodes too, which pods reach without address translation",
        other: |cell, theirs| match *theirs {
            Reply::Answered(server, source)
                if cell.from.is_pod()
                    && Some(source) == cell.from.node().map(Source::Of)
                    && ![cell.from, Place::Outside].contains(&server) =>
            {
                Some(Reply::Answered(server, Source::Of(cell.from)))
            }
            _ => None,
        },
    },
    Difference {
        name: "a pod sees itself as its gateway",
        why: "that is the node's address on the pod's own link; a socket that is connected to its pod's own address has that",
        other: |cell, theirs| match *theirs {
            Reply::Answered(server, Source::Of(node))
                if server == cell.from && server.is_pod() && node.is_node() && cell.is_served_by_own_node() =>
            {
                Some(Reply::Answered(server, if cell.is_connected() { Source::Of(server) } else { Source::LinkLocal }))
            }
            _ => None,
        },
    },
    Difference {
        name: "a process of the node sees another of the node as 169.254.1.2",
        why: "kube-proxy would masquerade too, but cannot: what is for the node itself never passes POSTROUTING",
        other: |cell, theirs| match *theirs {
            Reply::Answered(server, _) if server == cell.from && server == cell.served_by() && !cell.is_connected() => {
                Some(Reply::Answered(server, Source::LinkLocal))
            }
            _ => None,
        },
    },
    REFUSED,
];

/// Those of kube-proxy's nftables mode.
pub(crate) const NFTABLES: [Difference; 1] = [REFUSED];
