//! A blocking NETLINK_NETFILTER socket: dumps, single requests, atomic batches, and the bytes of their messages. What the messages mean is
//! for `nf_tables` and `nf_conntrack`.
//!
//! Attributes are type, length and value, padded to four bytes, integers in network order (include/uapi/linux/netfilter/nfnetlink.h).

use std::{io, mem};

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::netlink::receive;

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_DUMP` (include/uapi/linux/netlink.h).
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// The kernel says that what it dumped changed meanwhile.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLMSG_ERROR` and `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NLA_F_NESTED`, and the bits of an attribute's type that are its type.
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// Bytes of `struct nlmsghdr`, and of `struct nfgenmsg` behind it.
pub(super) const HEADER: usize = 16;
const GENERIC: usize = 4;

/// Room for a batch or for answers: the kernel takes a message whole or not at all.
const BUFFER: usize = 64 << 20;
/// A dump that was interrupted by a change is asked for again, this many times.
const DUMP_ATTEMPTS: usize = 16;
/// Requests in flight.
const WINDOW: usize = 64;

/// What a request is besides its attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    /// `NFNL_SUBSYS_*`.
    pub(super) subsystem: u8,
    /// The subsystem's number for it.
    pub(super) message: u8,
    /// `NLM_F_*` besides those of every request.
    pub(super) flags: u16,
    /// `NFPROTO_*`.
    pub(super) family: u8,
}

/// Attributes as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    /// Appends one.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        // No attribute of ours is as long as that; the kernel refuses what is cut.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a text, ended as the kernel wants it.
    pub(super) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Appends other attributes below one.
    pub(super) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.nested_bytes(kind, &inner.0)
    }

    /// Appends other attributes below one, as bytes.
    pub(super) fn nested_bytes(self, kind: u16, inner: &[u8]) -> Self {
        self.put(kind | NESTED, inner)
    }

    /// Appends attributes that are bytes already.
    pub(super) fn followed_by(mut self, others: &[u8]) -> Self {
        self.0.extend_from_slice(others);
        self
    }

    /// The bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// The attributes in some bytes: type and value. What is cut ends them.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*bytes.first()?, *bytes.get(1)?]));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of one attribute.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The value of an attribute within others.
pub(super) fn find_in<'a>(bytes: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter().try_fold(bytes, |bytes, kind| find(bytes, *kind))
}

/// A text's value.
pub(super) fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8(value[..end].to_vec()).ok()
}

/// Messages of a dump: the family that each is of, and its attributes.
pub(super) type Messages = Vec<(u8, Vec<u8>)>;

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Netfilter {
    socket: Socket,
    sequence: u32,
}

/// One message of an answer.
pub(super) struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows `struct nlmsghdr`.
    pub(super) payload: &'a [u8],
}

impl Answer<'_> {
    /// The outcome, if this is one.
    pub(super) fn outcome(&self) -> Option<io::Result<()>> {
        let code = self.payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes);
        (self.kind == ERROR).then(|| if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) })
    }
}

impl Netfilter {
    /// Opens a socket.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_cap_ack(true)?;
        // Without the privilege to exceed the system's limit, what it allows has to do.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER);
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
        Ok(Self { socket, sequence: 0 })
    }

    /// Everything that a dump answers: the attributes of each message, with the family it is of.
    pub(super) fn dump(&mut self, kind: Kind, attributes: &Attributes) -> io::Result<Messages> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(answers) = self.dump_once(kind, attributes)? {
                return Ok(answers);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn dump_once(&mut self, kind: Kind, attributes: &Attributes) -> io::Result<Option<Messages>> {
        let mut message = Vec::new();
        let sequence = self.append(&mut message, kind, DUMP, 0, attributes);
        self.socket.send(&message, 0)?;
        let (mut answers, mut interrupted, mut end) = (Vec::new(), false, None);
        while end.is_none() {
            for_each(&receive(&self.socket)?, |answer| {
                if answer.sequence != sequence {
                    return;
                }
                interrupted |= answer.flags & DUMP_INTERRUPTED != 0;
                if answer.kind == DONE {
                    end = Some(Ok(()));
                } else if let Some(outcome) = answer.outcome() {
                    end = Some(outcome);
                } else if let (Some(family), Some(rest)) = (answer.payload.first(), answer.payload.get(GENERIC..)) {
                    answers.push((*family, rest.to_vec()));
                }
            });
        }
        end.unwrap_or(Ok(()))?;
        Ok((!interrupted).then_some(answers))
    }

    /// Requests of their own, each carried out or not: the outcomes in order.
    pub(super) fn requests(&mut self, requests: &[(Kind, Attributes)]) -> io::Result<Vec<io::Result<()>>> {
        let mut outcomes = Vec::with_capacity(requests.len());
        for window in requests.chunks(WINDOW) {
            let mut messages = Vec::new();
            let first = self.sequence.wrapping_add(1);
            for (kind, attributes) in window {
                self.append(&mut messages, *kind, ACK, 0, attributes);
            }
            self.socket.send(&messages, 0)?;
            let base = outcomes.len();
            while outcomes.len() < base + window.len() {
                for_each(&receive(&self.socket)?, |answer| {
                    let index = answer.sequence.wrapping_sub(first) as usize;
                    if index == outcomes.len() - base && index < window.len() {
                        outcomes.extend(answer.outcome());
                    }
                });
            }
        }
        Ok(outcomes)
    }

    /// Requests that are carried out all or none, at one moment for packets.
    pub(super) fn batch(&mut self, requests: &[(Kind, Attributes)]) -> io::Result<()> {
        let Some((last, others)) = requests.split_last() else { return Ok(()) };
        let mut messages = Vec::new();
        let subsystem = u16::from(last.0.subsystem);
        let frame = |kind| Kind { subsystem: 0, message: kind as u8, flags: 0, family: 0 };
        let begin = self.append(&mut messages, frame(BATCH_BEGIN), 0, subsystem, &Attributes::default());
        for (kind, attributes) in others {
            self.append(&mut messages, *kind, 0, 0, attributes);
        }
        let end = self.append(&mut messages, last.0, ACK, 0, &last.1);
        self.append(&mut messages, frame(BATCH_END), 0, subsystem, &Attributes::default());
        self.socket.send(&messages, 0)?;
        let (mut finished, mut failure) = (false, None);
        while !finished {
            for_each(&receive(&self.socket)?, |answer| {
                if let Some(outcome) = answer.outcome() {
                    // Errors come in the order of messages; one about the frame is about the whole.
                    finished |= answer.sequence == end || answer.sequence == begin;
                    failure = failure.take().or(outcome.err());
                }
            });
        }
        failure.map_or(Ok(()), Err)
    }

    fn append(&mut self, buffer: &mut Vec<u8>, kind: Kind, flags: u16, resource: u16, attributes: &Attributes) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let length = (HEADER + GENERIC + attributes.0.len()) as u32;
        buffer.extend_from_slice(&length.to_ne_bytes());
        buffer.extend_from_slice(&(u16::from(kind.subsystem) << 8 | u16::from(kind.message)).to_ne_bytes());
        buffer.extend_from_slice(&(REQUEST | flags | kind.flags).to_ne_bytes());
        buffer.extend_from_slice(&self.sequence.to_ne_bytes());
        buffer.extend_from_slice(&[0; mem::size_of::<u32>()]);
        buffer.extend_from_slice(&[kind.family, 0]);
        buffer.extend_from_slice(&resource.to_be_bytes());
        buffer.extend_from_slice(&attributes.0);
        self.sequence
    }
}

/// Calls `visit` with each message of a datagram.
pub(super) fn for_each(mut datagram: &[u8], mut visit: impl FnMut(&Answer<'_>)) {
    let u16_at = |bytes: &[u8], at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    while let (Some(length), Some(kind), Some(flags), Some(sequence)) =
        (u32_at(datagram, 0), u16_at(datagram, 4), u16_at(datagram, 6), u32_at(datagram, 8))
    {
        let Some(payload) = datagram.get(HEADER..length as usize) else { break };
        visit(&Answer { kind, flags, sequence, payload });
        datagram = datagram.get((length as usize).next_multiple_of(4)..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().text(2, "KUBE-SERVICES").put(3, &7u32.to_be_bytes());
        let bytes = Attributes::default().put(1, &[9]).nest(4, &inner).0;
        assert_eq!(find(&bytes, 1), Some(&[9][..]));
        assert_eq!(find_in(&bytes, &[4, 2]).and_then(text).as_deref(), Some("KUBE-SERVICES"));
        assert_eq!(find_in(&bytes, &[4, 3]), Some(&[0, 0, 0, 7][..]));
        assert_eq!(find_in(&bytes, &[4, 5]), None);
        for cut in 0..bytes.len() {
            assert!(attributes(&bytes[..cut]).count() <= 2, "what is cut ends them");
        }
        assert_eq!(attributes(&[0; 8]).count(), 0, "a length that contradicts itself too");
    }
}
