//! Many questions at once from one place, and what came of each: who answered and whom it saw, a refusal, or silence.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::echo::{Answer, TcpClient, UdpClient};
use crate::netns::Netns;

/// How many wait for an answer at the same time: silence costs patience, not work.
const AT_ONCE: usize = 12;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// A datagram.
    Udp,
}

/// Whom to ask, and how often, from another port each time.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    /// How.
    pub protocol: Protocol,
    /// Whom.
    pub to: SocketAddrV4,
    /// How often. After silence nothing more is asked.
    pub times: usize,
}

/// What came of asking once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reply {
    /// An answer.
    Answered {
        /// The server's name.
        server: String,
        /// The client's address as the server saw it.
        source: Ipv4Addr,
    },
    /// ECONNREFUSED.
    Refused,
    /// Nothing for [`PATIENCE`](super::echo::PATIENCE).
    Silent,
    /// Anything else that the kernel said.
    Failed(String),
}

/// Asks all questions from a namespace; what came of each, in their order.
#[must_use]
pub fn ask_all(from: &Netns, questions: &[Question]) -> Vec<BTreeSet<Reply>> {
    let next = AtomicUsize::new(0);
    let replies: Vec<Mutex<BTreeSet<Reply>>> = questions.iter().map(|_| Mutex::default()).collect();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(question) = questions.get(index) else { return };
            *replies[index].lock().unwrap_or_else(PoisonError::into_inner) = ask(question);
        }
    };
    // Threads are in the namespace of the one that starts them.
    from.inside(|| {
        thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(questions.len()) {
                scope.spawn(work);
            }
        });
    });
    replies.into_iter().map(|it| it.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

fn ask(question: &Question) -> BTreeSet<Reply> {
    let mut replies = BTreeSet::new();
    for _ in 0..question.times {
        replies.insert(ask_once(question));
        if replies.contains(&Reply::Silent) {
            break;
        }
    }
    replies
}

fn ask_once(question: &Question) -> Reply {
    let answer = match question.protocol {
        Protocol::Tcp => TcpClient::connect_here(question.to).map(|client| (client.server, client.peer)),
        Protocol::Udp => udp(question.to).map(|answer| (answer.server, answer.peer)),
    };
    match answer {
        Ok((server, peer)) => Reply::Answered { server, source: *peer.ip() },
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Reply::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Reply::Silent,
            _ => Reply::Failed(error.to_string()),
        },
    }
}

fn udp(to: SocketAddrV4) -> io::Result<Answer> {
    let client = UdpClient::bind_here(0)?;
    client.connect(to)?;
    match client.ask(to, b"who are you?") {
        // Netfilter of the client's own host has thrown the datagram away; if it has refused it too, that is heard next.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            client.socket().recv(&mut [0]).and(Err(io::ErrorKind::InvalidData.into()))
        }
        outcome => outcome,
    }
}
