//! The other side of the socket, blocking: what the plugin and the command line ask the agent with.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use serde::de::DeserializeOwned;

use super::protocol::{
    MonitorEvent, Pod, PodAdd, PodAdded, PodAttach, PodCheck, PodDelete, PodGc, PodGcDone, Refusal, Reply, Request, Status,
};

/// A reply that is longer comes from something that is no agent.
const MAX_REPLY: u64 = 64 << 20;

/// Why the agent did not answer as asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No socket at the path.
    #[error("no agent listens at {}: the socket does not exist; is `shunt agent` running with this --run-dir?", .0.display())]
    Missing(PathBuf),
    /// A socket that nobody serves.
    #[error("the agent that listened at {} is dead: start `shunt agent` again", .0.display())]
    Dead(PathBuf),
    /// Not root.
    #[error("no permission to speak with the agent at {}: run this as root", .0.display())]
    Permission(PathBuf),
    /// Connected, but silent.
    #[error("the agent at {} did not answer within {} s: look at its log", .path.display(), .patience.as_secs_f32())]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long it was given.
        patience: Duration,
    },
    /// The connection broke, or what came over it is no reply.
    #[error("the agent at {} broke off: {source}", .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
    /// It answered: no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`. `patience` holds for each reply as a whole.
    ///
    /// # Errors
    /// Why there is nobody to speak with.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let stream = open(path, patience).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ClientError::Missing(path.to_owned()),
            io::ErrorKind::ConnectionRefused => ClientError::Dead(path.to_owned()),
            io::ErrorKind::PermissionDenied => ClientError::Permission(path.to_owned()),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Timeout { path: path.to_owned(), patience },
            _ => ClientError::Broken { path: path.to_owned(), source },
        })?;
        Ok(Self { path: path.to_owned(), patience, stream: BufReader::new(stream) })
    }

    /// The agent's health and counts.
    ///
    /// # Errors
    /// It did not answer as asked.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask(&Request::Status)
    }

    /// Whether pods can be added.
    ///
    /// # Errors
    /// They cannot, or the agent did not answer.
    pub fn ready(&mut self) -> Result<(), ClientError> {
        self.ask(&Request::Ready)
    }

    /// All attachments.
    ///
    /// # Errors
    /// It did not answer as asked.
    pub fn pods(&mut self) -> Result<Vec<Pod>, ClientError> {
        self.ask(&Request::Pods)
    }

    /// Reserves an address.
    ///
    /// # Errors
    /// It did not answer as asked.
    pub fn pod_add(&mut self, request: PodAdd) -> Result<PodAdded, ClientError> {
        self.ask(&Request::PodAdd(request))
    }

    /// Attaches a pod whose interface pair stands.
    ///
    /// # Errors
    /// It did not answer as asked.
    pub fn pod_attach(&mut self, request: PodAttach) -> Result<(), ClientError> {
        self.ask(&Request::PodAttach(request))
    }

    /// Checks the host's side of an attachment, and says what the pod's side should be.
    ///
    /// # Errors
    /// Something is not as it should be, or the agent did not answer.
    pub fn pod_check(&mut self, request: PodCheck) -> Result<PodAdded, ClientError> {
        self.ask(&Request::PodCheck(request))
    }

    /// Removes an attachment.
    ///
    /// # Errors
    /// It did not answer as asked.
    pub fn pod_delete(&mut self, request: PodDelete) -> Result<(), ClientError> {
        self.ask(&Request::PodDelete(request))
    }

    /// Removes attachments that are not valid any more.
    ///
    /// # Errors
    /// It did not answer as asked.
    pub fn pod_gc(&mut self, request: PodGc) -> Result<PodGcDone, ClientError> {
        self.ask(&Request::PodGc(request))
    }

    /// Live events until the agent leaves. Silence is no error here.
    ///
    /// # Errors
    /// The agent would not have it.
    pub fn monitor(mut self, drops_only: bool) -> Result<impl Iterator<Item = Result<MonitorEvent, ClientError>>, ClientError> {
        self.ask::<()>(&Request::Monitor { drops_only })?;
        self.stream.get_ref().set_read_timeout(None).map_err(|source| self.broken(source))?;
        Ok(std::iter::from_fn(move || {
            let mut line = String::new();
            match self.stream.read_line(&mut line) {
                Ok(0) => None,
                Ok(_) => Some(serde_json::from_str(&line).map_err(|error| self.broken(error.into()))),
                Err(source) => Some(Err(self.broken(source))),
            }
        }))
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ClientError> {
        let line = self.exchange(request).map_err(|source| self.broken(source))?;
        match serde_json::from_slice(&line).map_err(|error| self.broken(error.into()))? {
            Reply::Ok(value) => Ok(value),
            Reply::Error(refusal) => Err(refusal.into()),
        }
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        line.clear();
        let deadline = Instant::now() + self.patience;
        loop {
            // Each read has its own timeout in the kernel: a reply that trickles in must not stretch the whole.
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.get_ref().set_read_timeout(Some(left))?;
            let available = match self.stream.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without a reply"));
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            line.extend_from_slice(&available[..end.unwrap_or(available.len())]);
            let taken = end.map_or(available.len(), |end| end + 1);
            self.stream.consume(taken);
            if end.is_some() {
                return Ok(line);
            }
            if line.len() as u64 > MAX_REPLY {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its reply has no end"));
            }
        }
    }

    fn broken(&self, source: io::Error) -> ClientError {
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Timeout { path: self.path.clone(), patience: self.patience }
            }
            _ => ClientError::Broken { path: self.path.clone(), source },
        }
    }
}

/// A connected stream whose timeouts are set: connecting to a full backlog blocks as long as sending may.
fn open(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(fd);
    stream.set_write_timeout(Some(patience))?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}
