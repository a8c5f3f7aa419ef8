//! The agent's side of the socket: reads requests, asks the [`Handler`], writes replies. A client can be slow, silent, garbled
//! or gone; it costs the agent one bounded task and nothing else.

use std::{future::Future, io, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, broadcast},
    time::timeout,
};

use super::protocol::{
    Happening, MAX_LINE, MonitorEvent, Pod, PodAdd, PodAdded, PodAttach, PodCheck, PodDelete, PodGc, PodGcDone, Refusal,
    RefusalReason, Reply, Request, Status,
};
use crate::ending::Ending;

/// What the agent does with requests. Called concurrently; each call may be dropped with its client, except those that change
/// something: these run to their end.
pub trait Handler: Send + Sync + 'static {
    /// The agent's health and counts.
    fn status(&self) -> impl Future<Output = Result<Status, Refusal>> + Send;
    /// Whether pods can be added.
    fn ready(&self) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// All attachments, in order of their keys.
    fn pods(&self) -> impl Future<Output = Result<Vec<Pod>, Refusal>> + Send;
    /// Reserves an address.
    fn pod_add(&self, request: PodAdd) -> impl Future<Output = Result<PodAdded, Refusal>> + Send;
    /// Attaches a pod whose interface pair stands.
    fn pod_attach(&self, request: PodAttach) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Checks the host's side of an attachment, and says what the pod's side should be.
    fn pod_check(&self, request: PodCheck) -> impl Future<Output = Result<PodAdded, Refusal>> + Send;
    /// Removes an attachment.
    fn pod_delete(&self, request: PodDelete) -> impl Future<Output = Result<(), Refusal>> + Send;
    /// Removes attachments that are not valid any more.
    fn pod_gc(&self, request: PodGc) -> impl Future<Output = Result<PodGcDone, Refusal>> + Send;
    /// Live events. The agent may stop producing them while [`broadcast::Sender::receiver_count`] is 0.
    fn monitor(&self) -> impl Future<Output = Result<broadcast::Receiver<MonitorEvent>, Refusal>> + Send;
}

/// How patient the server is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients served at once; more wait in the listener's backlog.
    pub clients: usize,
    /// For the next whole request of a client.
    pub read: Duration,
    /// For a client to take a reply or an event.
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { clients: 128, read: Duration::from_secs(10), write: Duration::from_secs(10) }
    }
}

/// Serves until it is told to end, and on until every client has what it is owed: its answer, and whoever began an ADD the other half.
pub async fn serve<H: Handler>(listener: UnixListener, handler: Arc<H>, limits: Limits, mut ending: Ending) {
    let clients = Arc::new(Semaphore::new(limits.clients));
    loop {
        let accept = async {
            // The semaphore is never closed, so that acquiring never fails.
            let permit = clients.clone().acquire_owned().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((permit, listener.accept().await?))
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            () = ending.told() => break,
        };
        match accepted {
            Ok((permit, (stream, _))) => {
                let (handler, ending) = (handler.clone(), ending.clone());
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, handler, limits, ending).await {
                        tracing::debug!(%error, "client of the agent's socket left");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a client on the agent's socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    // Whoever comes now finds nobody and tries again.
    drop(listener);
    let all = u32::try_from(limits.clients).unwrap_or(u32::MAX);
    let _ = clients.acquire_many(all).await;
}

async fn converse<H: Handler>(stream: UnixStream, handler: Arc<H>, limits: Limits, mut ending: Ending) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        let refusal =
            Refusal::new(RefusalReason::BadRequest, format!("the agent answers root only, not uid {uid}: run this as root"));
        return send(&mut write, &Reply::<()>::Error(refusal), limits.write).await;
    }
    let mut read = BufReader::new(read);
    // A plugin that has an address is about to ask for the pod to be attached.
    let mut is_amid_add = false;
    loop {
        let line = tokio::select! {
            biased;
            line = timeout(limits.read, next_line(&mut read)) => line,
            () = ending.told(), if !is_amid_add => return Ok(()),
        };
        let line = match line {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                let refusal = Refusal::new(RefusalReason::BadRequest, error.to_string());
                return send(&mut write, &Reply::<()>::Error(refusal), limits.write).await;
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let text = format!("no whole request came within {} s", limits.read.as_secs_f32());
                let refusal = Refusal::new(RefusalReason::BadRequest, text);
                return send(&mut write, &Reply::<()>::Error(refusal), limits.write).await;
            }
        };
        match serde_json::from_slice::<Request>(&line) {
            Ok(Request::Monitor { drops_only }) => return monitor(read, write, &*handler, drops_only, limits, ending).await,
            Ok(request) => {
                is_amid_add = matches!(request, Request::PodAdd(_));
                answer(request, &mut write, &handler, limits).await?;
            }
            Err(error) => {
                let refusal = Refusal::new(RefusalReason::BadRequest, format!("this request cannot be understood: {error}"));
                send(&mut write, &Reply::<()>::Error(refusal), limits.write).await?;
            }
        }
    }
}

/// The next line without its end; `None` when the client has closed. A longer one than [`MAX_LINE`] is `InvalidData`.
async fn next_line(read: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    read.take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line).await?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() >= MAX_LINE => {
            Err(io::Error::new(io::ErrorKind::InvalidData, format!("a request must not be longer than {MAX_LINE} bytes")))
        }
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the request ends without a line feed: it was cut off")),
    }
}

async fn answer<H: Handler>(request: Request, write: &mut OwnedWriteHalf, handler: &Arc<H>, limits: Limits) -> io::Result<()> {
    if let Some(refusal) = invalid_key(&request) {
        return send(write, &Reply::<()>::Error(refusal), limits.write).await;
    }
    macro_rules! reply {
        ($outcome:expr) => {
            send(write, &Reply::from($outcome), limits.write).await
        };
    }
    // What changes something runs in a task of its own: a client that vanishes must not leave half of it.
    macro_rules! to_the_end {
        ($method:ident, $request:expr) => {{
            let handler = handler.clone();
            let task = tokio::spawn(async move { handler.$method($request).await });
            reply!(task.await.unwrap_or_else(|error| {
                Err(Refusal::new(RefusalReason::Failed, format!("the agent failed at this request: {error}")))
            }))
        }};
    }
    match request {
        Request::Status => reply!(handler.status().await),
        Request::Ready => reply!(handler.ready().await),
        Request::Pods => reply!(handler.pods().await),
        Request::PodCheck(request) => reply!(handler.pod_check(request).await),
        Request::PodAdd(request) => to_the_end!(pod_add, request),
        Request::PodAttach(request) => to_the_end!(pod_attach, request),
        Request::PodDelete(request) => to_the_end!(pod_delete, request),
        Request::PodGc(request) => to_the_end!(pod_gc, request),
        Request::Monitor { .. } => Ok(()),
    }
}

/// Keys that no plugin would send become file and interface names further on.
fn invalid_key(request: &Request) -> Option<Refusal> {
    let key = match request {
        Request::PodAdd(request) => &request.attachment,
        Request::PodAttach(request) => &request.attachment,
        Request::PodCheck(request) => &request.attachment,
        Request::PodDelete(request) => &request.attachment,
        Request::Status | Request::Ready | Request::Pods | Request::PodGc(_) | Request::Monitor { .. } => return None,
    };
    key.validate().err().map(|error| Refusal::new(RefusalReason::BadRequest, error.to_string()))
}

async fn monitor<H: Handler>(
    mut read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    handler: &H,
    drops_only: bool,
    limits: Limits,
    mut ending: Ending,
) -> io::Result<()> {
    let mut events = match handler.monitor().await {
        Ok(events) => events,
        Err(refusal) => return send(&mut write, &Reply::<()>::Error(refusal), limits.write).await,
    };
    send(&mut write, &Reply::Ok(()), limits.write).await?;
    let mut ignored = [0; 64];
    loop {
        let event = tokio::select! {
            // A listener has nothing to say; what ends here is the client.
            left = read.read(&mut ignored) => if left? == 0 { return Ok(()) } else { continue },
            event = events.recv() => event,
            () = ending.told() => return Ok(()),
        };
        let event = match event {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(events)) => {
                MonitorEvent { unix_ms: unix_ms(), what: Happening::Lost { events } }
            }
            Err(broadcast::error::RecvError::Closed) => return Ok(()),
        };
        if !drops_only || matches!(event.what, Happening::Drop(_) | Happening::Lost { .. }) {
            send(&mut write, &event, limits.write).await?;
        }
    }
}

/// Milliseconds since 1970, 0 before.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn send(write: &mut OwnedWriteHalf, message: &impl Serialize, patience: Duration) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    timeout(patience, write.write_all(&line)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

impl<T> From<Result<T, Refusal>> for Reply<T> {
    fn from(outcome: Result<T, Refusal>) -> Self {
        match outcome {
            Ok(value) => Self::Ok(value),
            Err(refusal) => Self::Error(refusal),
        }
    }
}
