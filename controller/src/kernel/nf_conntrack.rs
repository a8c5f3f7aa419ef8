//! The flows that the host's stack tracks (ctnetlink, include/uapi/linux/netfilter/nfnetlink_conntrack.h): reading them, and giving it flows.

use std::io;

use shunt_common::{
    flow::Tuple,
    net::{Ip4, Port, V4, proto},
};

use super::nfnetlink::{Attributes, Kind, Netfilter, find, find_in};

const SUBSYSTEM: u8 = 1;
/// `IPCTNL_MSG_CT_*`.
const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;

/// `CTA_*`.
mod cta {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOINFO: u16 = 4;
    pub(super) const NAT_SRC: u16 = 6;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const NAT_DST: u16 = 13;
    pub(super) const ZONE: u16 = 18;
}
/// `CTA_TUPLE_*`, and below them `CTA_IP_V4_*` and `CTA_PROTO_*`.
mod tuple {
    pub(super) const IP: u16 = 1;
    pub(super) const PROTO: u16 = 2;
    pub(super) const SRC: u16 = 1;
    pub(super) const DST: u16 = 2;
    pub(super) const NUM: u16 = 1;
    pub(super) const SPORT: u16 = 2;
    pub(super) const DPORT: u16 = 3;
}
/// `CTA_PROTOINFO_TCP` and below it `CTA_PROTOINFO_TCP_*`.
mod tcp {
    pub(super) const INFO: u16 = 1;
    pub(super) const STATE: u16 = 1;
    pub(super) const FLAGS_ORIGINAL: u16 = 4;
    pub(super) const FLAGS_REPLY: u16 = 5;
}
/// `CTA_NAT_*` and below it `CTA_PROTONAT_*`.
mod nat {
    pub(super) const MIN_IP: u16 = 1;
    pub(super) const MAX_IP: u16 = 2;
    pub(super) const PROTO: u16 = 3;
    pub(super) const MIN_PORT: u16 = 1;
    pub(super) const MAX_PORT: u16 = 2;
}

/// `IPS_SEEN_REPLY`, `IPS_ASSURED`, `IPS_CONFIRMED`.
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const CONFIRMED: u32 = 1 << 3;
/// `TCP_CONNTRACK_ESTABLISHED`, and the states from which on a connection is closing or over (LAST_ACK, TIME_WAIT, CLOSE).
const ESTABLISHED: u8 = 3;
const CLOSING: u8 = 6;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: the stack has not seen all of the connection, so that windows are no ground to refuse a segment.
const BE_LIBERAL: u8 = 8;
/// Seconds that the stack lets a flow be silent: `nf_conntrack_tcp_timeout_established` of kube-proxy, `nf_conntrack_udp_timeout_stream`.
pub const TCP_TIMEOUT: u32 = 86_400;
/// Likewise.
pub const UDP_TIMEOUT: u32 = 120;
/// `NLM_F_CREATE`.
const CREATE: u16 = 0x400;

/// A flow of the host's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackFlow {
    /// What its opener sends.
    pub original: Tuple<V4>,
    /// What the other end answers with.
    pub reply: Tuple<V4>,
    /// Whether that has been seen.
    pub answered: bool,
    /// A TCP connection that is over, or nearly.
    pub closing: bool,
}

impl StackFlow {
    /// What leaves for the other end.
    #[must_use]
    pub fn translated(&self) -> Tuple<V4> {
        self.reply.reversed()
    }

    /// Whether the stack changes its packets.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.translated() != self.original
    }
}

/// All IPv4 flows with ports.
///
/// # Errors
/// What the kernel answers.
pub fn list() -> io::Result<Vec<StackFlow>> {
    let answers = Netfilter::open()?.dump(kind(GET, 0), &Attributes::default())?;
    Ok(answers.iter().filter_map(|(_, bytes)| flow(bytes)).collect())
}

/// Lets the stack forget flows; how many it knew.
///
/// # Errors
/// The socket's; that a flow is not known is none.
pub fn forget(flows: &[StackFlow]) -> io::Result<usize> {
    let requests: Vec<_> = flows
        .iter()
        .map(|flow| (kind(DELETE, 0), Attributes::default().nest(cta::TUPLE_ORIG, &tuple_attributes(&flow.original))))
        .collect();
    Ok(Netfilter::open()?.requests(&requests)?.iter().filter(|outcome| outcome.is_ok()).count())
}

/// A translated flow to give to the stack, and for how long it may be silent from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    /// What its opener sends.
    pub original: Tuple<V4>,
    /// What leaves for the other end.
    pub translated: Tuple<V4>,
    /// Seconds.
    pub timeout: u32,
}

/// Gives flows to the stack, in place of what it knows under their tuples; how many it took.
///
/// # Errors
/// The socket's. A flow that the stack refuses is not counted.
pub fn hand_over(flows: &[Handed]) -> io::Result<usize> {
    // One behind the other, so that hardly a packet comes in between: it would begin another flow.
    let requests: Vec<_> = flows
        .iter()
        .flat_map(|flow| {
            let known = Attributes::default().nest(cta::TUPLE_ORIG, &tuple_attributes(&flow.original));
            [(kind(DELETE, 0), known), (kind(NEW, CREATE), new_attributes(flow))]
        })
        .collect();
    let outcomes = Netfilter::open()?.requests(&requests)?;
    Ok(outcomes.iter().skip(1).step_by(2).filter(|outcome| outcome.is_ok()).count())
}

/// Makes masqueraded flows plainly translated ones, which may leave by any device; how many.
///
/// # Errors
/// As of [`hand_over`].
pub fn unbind(flows: &[&StackFlow]) -> io::Result<usize> {
    let handed = |flow: &&StackFlow| {
        let timeout = if flow.original.proto == proto::TCP { TCP_TIMEOUT } else { UDP_TIMEOUT };
        Handed { original: flow.original, translated: flow.translated(), timeout }
    };
    hand_over(&flows.iter().filter(|flow| !flow.closing).map(handed).collect::<Vec<_>>())
}

fn kind(message: u8, flags: u16) -> Kind {
    Kind { subsystem: SUBSYSTEM, message, flags, family: libc::AF_INET as u8 }
}

fn flow(bytes: &[u8]) -> Option<StackFlow> {
    // A zone is somebody else's name space of flows.
    if find(bytes, cta::ZONE).is_some_and(|zone| zone != [0, 0]) {
        return None;
    }
    let original = parse_tuple(find(bytes, cta::TUPLE_ORIG)?)?;
    let reply = parse_tuple(find(bytes, cta::TUPLE_REPLY)?)?;
    let status = find(bytes, cta::STATUS)?.try_into().map(u32::from_be_bytes).ok()?;
    let state = find_in(bytes, &[cta::PROTOINFO, tcp::INFO, tcp::STATE]).and_then(|value| value.first()).copied();
    Some(StackFlow {
        original,
        reply,
        answered: status & SEEN_REPLY != 0,
        closing: state.is_some_and(|state| state >= CLOSING),
    })
}

fn parse_tuple(bytes: &[u8]) -> Option<Tuple<V4>> {
    let ip = find(bytes, tuple::IP)?;
    let protocol = find(bytes, tuple::PROTO)?;
    let address = |kind| Some(Ip4 { be: u32::from_ne_bytes(find(ip, kind)?.try_into().ok()?) });
    let port = |kind| Some(Port { be: u16::from_ne_bytes(find(protocol, kind)?.try_into().ok()?) });
    Some(Tuple {
        src: address(tuple::SRC)?,
        dst: address(tuple::DST)?,
        sport: port(tuple::SPORT)?,
        dport: port(tuple::DPORT)?,
        proto: *find(protocol, tuple::NUM)?.first()?,
    })
}

fn tuple_attributes(of: &Tuple<V4>) -> Attributes {
    let ip = Attributes::default().put(tuple::SRC, &of.src.be.to_ne_bytes()).put(tuple::DST, &of.dst.be.to_ne_bytes());
    let protocol = Attributes::default()
        .put(tuple::NUM, &[of.proto])
        .put(tuple::SPORT, &of.sport.be.to_ne_bytes())
        .put(tuple::DPORT, &of.dport.be.to_ne_bytes());
    Attributes::default().nest(tuple::IP, &ip).nest(tuple::PROTO, &protocol)
}

fn new_attributes(flow: &Handed) -> Attributes {
    let Handed { original, translated, timeout } = flow;
    let mut new = Attributes::default()
        .nest(cta::TUPLE_ORIG, &tuple_attributes(original))
        .nest(cta::TUPLE_REPLY, &tuple_attributes(&original.reversed()))
        .put(cta::STATUS, &(SEEN_REPLY | ASSURED | CONFIRMED).to_be_bytes())
        .put(cta::TIMEOUT, &timeout.to_be_bytes());
    if original.proto == proto::TCP {
        // Flags and their mask.
        let liberal = [BE_LIBERAL, BE_LIBERAL];
        let state = Attributes::default()
            .put(tcp::STATE, &[ESTABLISHED])
            .put(tcp::FLAGS_ORIGINAL, &liberal)
            .put(tcp::FLAGS_REPLY, &liberal);
        new = new.nest(cta::PROTOINFO, &Attributes::default().nest(tcp::INFO, &state));
    }
    if (original.src, original.sport) != (translated.src, translated.sport) {
        new = new.nest(cta::NAT_SRC, &nat_attributes(translated.src, translated.sport));
    }
    if (original.dst, original.dport) != (translated.dst, translated.dport) {
        new = new.nest(cta::NAT_DST, &nat_attributes(translated.dst, translated.dport));
    }
    new
}

fn nat_attributes(address: Ip4, port: Port) -> Attributes {
    let ports = Attributes::default().put(nat::MIN_PORT, &port.be.to_ne_bytes()).put(nat::MAX_PORT, &port.be.to_ne_bytes());
    Attributes::default()
        .put(nat::MIN_IP, &address.be.to_ne_bytes())
        .put(nat::MAX_IP, &address.be.to_ne_bytes())
        .nest(nat::PROTO, &ports)
}
