//! A blocking rtnetlink socket: single requests, pipelines of many, dumps. What the messages mean is for `links` and `routes`.

use std::io;

use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// Requests in flight: their acknowledgements, about 1 kB of socket memory each, fit the smallest usual receive buffer.
const WINDOW: usize = 64;

/// A dump that the kernel says was interrupted by a change is asked for again, this many times.
const DUMP_ATTEMPTS: usize = 5;

/// A socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Lets dumps be filtered by the kernel, and errors come without the request.
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// One request, acknowledged.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.pipeline([(message, flags)]).map_err(|(_, error)| error)
    }

    /// Many requests, without waiting for each. All are sent, whatever becomes of some.
    ///
    /// # Errors
    /// The index of the first that failed, and its error.
    pub fn pipeline(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<(), (usize, io::Error)> {
        self.pipeline_all(messages)?.into_iter().next().map_or(Ok(()), Err)
    }

    /// The same, for whom one that fails may be as it should be: the index and the error of each that did, in their order.
    ///
    /// # Errors
    /// The socket's, with how many requests were answered before.
    pub fn pipeline_all(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<(usize, io::Error)>, (usize, io::Error)> {
        let mut messages = messages.into_iter().peekable();
        let mut base = 0;
        let mut failures = Vec::new();
        while messages.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut buffer = Vec::new();
            let mut count = 0;
            for (message, flags) in messages.by_ref().take(WINDOW) {
                self.append(&mut buffer, message, NLM_F_REQUEST | NLM_F_ACK | flags);
                count += 1;
            }
            self.socket.send(&buffer, 0).map_err(|error| (base, error))?;
            let mut answered = 0;
            while answered < count {
                for_each_message(&receive(&self.socket).map_err(|error| (base + answered, error))?, |number, _, bytes| {
                    let index = number.wrapping_sub(first) as usize;
                    if index >= count {
                        return;
                    }
                    if let Ok(NetlinkPayload::Error(answer)) = parse(bytes) {
                        answered += 1;
                        if answer.raw_code() != 0 {
                            failures.push((base + index, answer.to_io()));
                        }
                    }
                });
            }
            base += count;
        }
        Ok(failures)
    }

    /// A request that is answered by one message, as a lookup by name.
    ///
    /// # Errors
    /// What the kernel answers, as ENODEV.
    pub fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut buffer = Vec::new();
        self.append(&mut buffer, message, NLM_F_REQUEST);
        self.socket.send(&buffer, 0)?;
        loop {
            let mut result = None;
            let sequence = self.sequence;
            for_each_message(&receive(&self.socket)?, |number, _, bytes| {
                if number == sequence && result.is_none() {
                    result = match parse(bytes) {
                        Ok(NetlinkPayload::InnerMessage(answer)) => Some(Ok(answer)),
                        Ok(NetlinkPayload::Error(error)) => Some(Err(error.to_io())),
                        Ok(_) => None,
                        Err(error) => Some(Err(error)),
                    };
                }
            });
            if let Some(result) = result {
                return result;
            }
        }
    }

    /// Everything that a dump answers. Messages that cannot be parsed are others' and left out.
    ///
    /// # Errors
    /// What the kernel answers; EINTR if the answer changed while it was read, several times over.
    pub fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(answers) = self.dump_once(message.clone())? {
                return Ok(answers);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    fn dump_once(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut buffer = Vec::new();
        self.append(&mut buffer, message, NLM_F_REQUEST | NLM_F_DUMP);
        self.socket.send(&buffer, 0)?;
        let (mut answers, mut finished, mut interrupted, mut failure) = (Vec::new(), false, false, None);
        let sequence = self.sequence;
        while !finished {
            for_each_message(&receive(&self.socket)?, |number, flags, bytes| {
                if number != sequence {
                    return;
                }
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match parse(bytes) {
                    Ok(NetlinkPayload::InnerMessage(answer)) => answers.push(answer),
                    Ok(NetlinkPayload::Done(_)) => finished = true,
                    Ok(NetlinkPayload::Error(error)) => {
                        finished = true;
                        if error.raw_code() != 0 {
                            failure = Some(error.to_io());
                        }
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "a netlink message was not understood"),
                }
            });
        }
        match failure {
            Some(error) => Err(error),
            None => Ok((!interrupted).then_some(answers)),
        }
    }

    fn append(&mut self, buffer: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = buffer.len();
        buffer.resize((start + message.buffer_len()).next_multiple_of(4), 0);
        message.serialize(&mut buffer[start..]);
    }
}

/// The next datagram of a netlink socket of any protocol.
pub(super) fn receive(socket: &Socket) -> io::Result<Vec<u8>> {
    loop {
        match socket.recv_from_full() {
            Ok((bytes, _)) => return Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Calls `visit` with the sequence number, the flags and the bytes of each message of a datagram.
fn for_each_message(mut datagram: &[u8], mut visit: impl FnMut(u32, u16, &[u8])) {
    while let Ok(buffer) = NetlinkBuffer::new_checked(datagram) {
        let length = buffer.length() as usize;
        visit(buffer.sequence_number(), buffer.flags(), &datagram[..length]);
        match datagram.get(length.next_multiple_of(4)..) {
            Some(rest) if length > 0 => datagram = rest,
            _ => break,
        }
    }
}

fn parse(message: &[u8]) -> io::Result<NetlinkPayload<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(message).map(|message| message.payload).map_err(io::Error::other)
}
