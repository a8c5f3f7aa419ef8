//! Servers that say who they are and whom they see, and clients that ask.
//!
//! An answer is the line `NAME PEER` followed by what was sent: it shows which backend answered and whether a source
//! address was translated on the way.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn, sockopt};

use super::worker::Worker;
use crate::netns::Netns;

/// How long a client waits: long past any round trip, short enough for a test that expects silence.
pub const PATIENCE: Duration = Duration::from_millis(1500);
/// How long an exchange may take that goes on all the time, on a busy machine too.
const EXCHANGED: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A server on its own thread. Dropping it closes its sockets.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub address: SocketAddrV4,
    worker: Option<Worker<()>>,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The client as the server saw it.
    pub peer: SocketAddrV4,
    /// What it sent back.
    pub payload: Vec<u8>,
}

impl Server {
    /// A TCP server inside a namespace.
    ///
    /// # Errors
    /// The address cannot be bound there.
    pub fn tcp(netns: &Netns, address: SocketAddrV4, name: &str) -> Result<Self> {
        let listener =
            netns.inside(|| TcpListener::bind(address)).with_context(|| format!("TCP {address} in {}", netns.name()))?;
        listener.set_nonblocking(true)?;
        let name = name.to_owned();
        Self::spawn(address, move |stop| {
            let mut served = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, SocketAddr::V4(peer))) => {
                        let hello = format!("{name} {peer}\n");
                        let stop = Arc::clone(stop);
                        // A thread that has ended keeps its stack for as long as somebody may ask for it.
                        served.retain(|connection: &JoinHandle<()>| !connection.is_finished());
                        served.push(thread::spawn(move || serve_tcp(stream, &hello, &stop)));
                    }
                    Ok(_) => {}
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
            for connection in served {
                let _ = connection.join();
            }
        })
    }

    /// A UDP server inside a namespace.
    ///
    /// # Errors
    /// The address cannot be bound there.
    pub fn udp(netns: &Netns, address: SocketAddrV4, name: &str) -> Result<Self> {
        let socket = netns.inside(|| udp_socket(address)).with_context(|| format!("UDP {address} in {}", netns.name()))?;
        socket.set_read_timeout(Some(POLL))?;
        let name = name.to_owned();
        Self::spawn(address, move |stop| {
            let mut buffer = vec![0; 65536];
            while !stop.load(Ordering::Relaxed) {
                let Ok((len, peer)) = socket.recv_from(&mut buffer) else { continue };
                let mut answer = format!("{name} {peer}\n").into_bytes();
                answer.extend_from_slice(&buffer[..len]);
                let _ = socket.send_to(&answer, peer);
            }
        })
    }

    fn spawn(address: SocketAddrV4, work: impl FnOnce(&Arc<AtomicBool>) + Send + 'static) -> Result<Self> {
        Ok(Self { address, worker: Some(Worker::start(format!("server {address}"), work)?) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            let _ = worker.stop();
        }
    }
}

fn serve_tcp(mut stream: TcpStream, hello: &str, stop: &AtomicBool) {
    let ready = stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(POLL)));
    let ready = ready.and_then(|()| stream.set_write_timeout(Some(POLL)));
    let goes_on = || !stop.load(Ordering::Relaxed);
    if ready.and_then(|()| write_while(&mut stream, hello.as_bytes(), goes_on)).is_err() {
        return;
    }
    let mut buffer = vec![0; 65536];
    while goes_on() {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(len) if write_while(&mut stream, &buffer[..len], goes_on).is_err() => return,
            Err(error) if !is_timeout(&error) => return,
            _ => {}
        }
    }
}

/// Writes all for as long as a condition holds, which is looked at whenever the stream's write timeout has passed: a peer that nothing
/// reaches any more would hold a writer up for a quarter of an hour.
fn write_while(stream: &mut TcpStream, mut bytes: &[u8], goes_on: impl Fn() -> bool) -> io::Result<()> {
    while !bytes.is_empty() {
        if !goes_on() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match stream.write(bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(error) if !is_timeout(&error) => return Err(error),
            Err(_) => {}
        }
    }
    Ok(())
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// A TCP connection to a [`Server`], past its first line.
#[derive(Debug)]
pub struct TcpClient {
    stream: TcpStream,
    /// The server's name.
    pub server: String,
    /// This end as the server sees it.
    pub peer: SocketAddrV4,
}

impl TcpClient {
    /// Connects from inside a namespace, from a port of the kernel's choice.
    ///
    /// # Errors
    /// What `connect` or reading the first line said.
    pub fn connect(netns: &Netns, to: SocketAddrV4) -> io::Result<Self> {
        Self::connect_from(netns, 0, to)
    }

    /// Connects from a given port; it may be reused at once.
    ///
    /// # Errors
    /// What `connect` or reading the first line said.
    pub fn connect_from(netns: &Netns, port: u16, to: SocketAddrV4) -> io::Result<Self> {
        Self::connect_over(netns.inside(|| tcp_socket(port))?, to)
    }

    /// Connects from the namespace of the calling thread.
    pub(super) fn connect_here(to: SocketAddrV4) -> io::Result<Self> {
        Self::connect_over(tcp_socket(0)?, to)
    }

    fn connect_over(socket: OwnedFd, to: SocketAddrV4) -> io::Result<Self> {
        // A blocking connect gives up after the send timeout (socket(7)): with EINPROGRESS, which is what nobody answering looks like.
        let timeout = nix::sys::time::TimeVal::new(PATIENCE.as_secs().cast_signed(), i64::from(PATIENCE.subsec_micros()));
        socket::setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
        match socket::connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
            Err(nix::errno::Errno::EINPROGRESS) => return Err(io::ErrorKind::TimedOut.into()),
            other => other?,
        }
        Self::greet(TcpStream::from(socket))
    }

    fn greet(mut stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut line = Vec::new();
        let mut byte = [0];
        while byte[0] != b'\n' {
            stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        let (server, peer) = parse_hello(&line).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { stream, server, peer })
    }

    /// Sends bytes and expects them back.
    ///
    /// # Errors
    /// Nothing comes back for [`PATIENCE`], or not all within 20 seconds.
    pub fn exchange(&mut self, payload: &[u8]) -> Result<()> {
        let mut back = vec![0; payload.len()];
        let mut writer = self.stream.try_clone()?;
        let start = Instant::now();
        let is_over = AtomicBool::new(false);
        let goes_on = || !is_over.load(Ordering::Relaxed) && start.elapsed() < EXCHANGED;
        thread::scope(|scope| -> Result<()> {
            let sent = scope.spawn(|| write_while(&mut writer, payload, goes_on));
            let came = self.read_while(&mut back, goes_on);
            // After a failure the writer has nothing to wait for.
            is_over.store(true, Ordering::Relaxed);
            let sent = sent.join().map_err(|_| anyhow::anyhow!("the writer panicked"))?;
            came.context("what was sent did not come back")?;
            Ok(sent?)
        })?;
        if back != payload {
            bail!("other bytes came back than were sent");
        }
        Ok(())
    }

    /// Sends a few bytes and waits for them, as long as a retransmission or two may take.
    ///
    /// # Errors
    /// The connection is broken, or silent.
    pub fn touch(&mut self) -> io::Result<()> {
        let question = *b"still there?";
        let mut answer = [0; 12];
        self.stream.set_read_timeout(Some(4 * PATIENCE))?;
        self.stream.write_all(&question)?;
        self.stream.read_exact(&mut answer)?;
        self.stream.set_read_timeout(Some(PATIENCE))?;
        if answer == question { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Fills the buffer for as long as a condition holds and no read takes longer than [`PATIENCE`].
    fn read_while(&mut self, buffer: &mut [u8], goes_on: impl Fn() -> bool) -> Result<()> {
        let mut came = 0;
        while came < buffer.len() {
            let all = buffer.len();
            match self.stream.read(&mut buffer[came..]).with_context(|| format!("after {came} of {all} bytes"))? {
                0 => bail!("the other end closed after {came} of {all} bytes"),
                _ if !goes_on() => bail!("{came} of {all} bytes within {EXCHANGED:?}"),
                more => came += more,
            }
        }
        Ok(())
    }

    /// This end's own port.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_port(&self) -> io::Result<u16> {
        Ok(self.stream.local_addr()?.port())
    }

    /// The largest segment the kernel sends on this connection (TCP_MAXSEG).
    ///
    /// # Errors
    /// The socket is gone.
    pub fn max_segment(&self) -> io::Result<u32> {
        Ok(socket::getsockopt(&self.stream, sockopt::TcpMaxSeg)?)
    }
}

/// Asks a TCP server once; `payload` must come back.
///
/// # Errors
/// No connection, or no right answer.
pub fn ask_tcp(netns: &Netns, to: SocketAddrV4, payload: &[u8]) -> Result<Answer> {
    let mut client = TcpClient::connect(netns, to).with_context(|| format!("{} to TCP {to}", netns.name()))?;
    client.exchange(payload).with_context(|| format!("{} to TCP {to}", netns.name()))?;
    Ok(Answer { server: client.server, peer: client.peer, payload: payload.to_vec() })
}

/// A UDP socket that stays the same over several questions.
#[derive(Debug)]
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// A socket inside a namespace; port 0 leaves the choice to the kernel.
    ///
    /// # Errors
    /// The port is taken.
    pub fn bind(netns: &Netns, port: u16) -> Result<Self> {
        netns.inside(|| Self::bind_here(port)).with_context(|| format!("UDP port {port} in {}", netns.name()))
    }

    /// A socket of the namespace of the calling thread.
    pub(super) fn bind_here(port: u16) -> io::Result<Self> {
        let socket = udp_socket(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Its port.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn local_port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Connects it: it hears this peer alone, and learns of refusals.
    ///
    /// # Errors
    /// There is no route.
    pub fn connect(&self, to: SocketAddrV4) -> io::Result<()> {
        self.socket.connect(to)
    }

    /// Asks a server and waits for the answer with the same payload. The socket may be connected.
    ///
    /// # Errors
    /// What sending or receiving said; `ConnectionRefused` if refused and connected.
    pub fn ask(&self, to: SocketAddrV4, payload: &[u8]) -> io::Result<Answer> {
        match self.socket.peer_addr() {
            Ok(_) => self.socket.send(payload)?,
            Err(_) => self.socket.send_to(payload, to)?,
        };
        let mut buffer = vec![0; 65536];
        loop {
            let (len, from) = self.socket.recv_from(&mut buffer)?;
            let end = buffer[..len].iter().position(|byte| *byte == b'\n').ok_or(io::ErrorKind::InvalidData)?;
            let (server, peer) = parse_hello(&buffer[..=end]).ok_or(io::ErrorKind::InvalidData)?;
            // A late answer to an earlier question is not this one's.
            if from == SocketAddr::V4(to) && buffer[end + 1..len] == *payload {
                return Ok(Answer { server, peer, payload: payload.to_vec() });
            }
        }
    }

    /// The underlying socket.
    #[must_use]
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}

/// Asks a UDP server once from a new socket.
///
/// # Errors
/// No answer, or a refusal.
pub fn ask_udp(netns: &Netns, to: SocketAddrV4, payload: &[u8]) -> Result<Answer> {
    let client = UdpClient::bind(netns, 0)?;
    client.connect(to)?;
    client.ask(to, payload).with_context(|| format!("{} to UDP {to}", netns.name()))
}

/// A socket of the calling thread's namespace; its port may be reused at once.
fn tcp_socket(port: u16) -> io::Result<OwnedFd> {
    let socket = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if port != 0 {
        socket::bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))?;
    }
    Ok(socket)
}

/// A socket of the calling thread's namespace that can be bound again at once, and that keeps seconds of datagrams while its reader
/// waits for a CPU: what is lost then was lost by the network.
pub(crate) fn udp_socket(address: SocketAddrV4) -> io::Result<UdpSocket> {
    const ROOM: usize = 16 << 20;
    let socket = socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // Of two sockets that may share a port, the kernel gives both the same one if it chooses (`udp_lib_get_port`, net/ipv4/udp.c).
    socket::setsockopt(&socket, sockopt::ReuseAddr, &(address.port() != 0))?;
    socket::setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
    socket::bind(socket.as_raw_fd(), &SockaddrIn::from(address))?;
    Ok(UdpSocket::from(socket))
}

fn parse_hello(line: &[u8]) -> Option<(String, SocketAddrV4)> {
    let (name, peer) = std::str::from_utf8(line).ok()?.trim_end().rsplit_once(' ')?;
    Some((name.to_owned(), peer.parse().ok()?))
}
