//! Connections: few, short, and the newest first. Who is slow, silent or garbled, or comes in crowds, costs a bounded task and nothing
//! else; a crowd pushes out its own oldest connections, so that a probe that comes now is answered now.

use std::{collections::VecDeque, convert::Infallible, future::Future, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};

use super::answer::Answer;
use crate::ending::Ending;

/// How patient the server is.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// For a request's head, the wait for it included: longer than most scrape intervals, so that Prometheus keeps its connection.
    pub head: Duration,
    /// Of a connection, after which it ends with the answer under way.
    pub life: Duration,
    /// For a connection to end in order.
    pub end: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, head: Duration::from_secs(35), life: Duration::from_secs(600), end: Duration::from_secs(2) }
    }
}

/// Bytes of a request's head; hyper's least.
const HEAD: usize = 8192;

/// Headers of a request.
const HEADERS: usize = 64;

/// Serves until it is told to end, then ends each connection with the answer under way. `answer` is called concurrently.
pub async fn serve<F, A>(listener: TcpListener, answer: F, limits: Limits, mut ending: Ending)
where
    F: Fn(Request<Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = Answer> + Send + 'static,
{
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ending.told() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.retain(|connection| !connection.is_finished());
                while connections.len() >= limits.connections.max(1) {
                    if let Some(oldest) = connections.pop_front() {
                        oldest.abort();
                    }
                }
                connections.push_back(tokio::spawn(converse(stream, answer.clone(), limits, ending.clone())));
            }
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would spin.
                tracing::debug!(%error, "cannot accept a connection of an HTTP client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    for connection in connections {
        // Each bounds its own end.
        let _ = connection.await;
    }
}

async fn converse<F, A>(stream: TcpStream, answer: F, limits: Limits, mut ending: Ending)
where
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Answer>,
{
    let service = service_fn(move |request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD).max_headers(HEADERS);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = async { tokio::select! { () = ending.told() => {}, () = tokio::time::sleep(limits.life) => {} } } => {
            connection.as_mut().graceful_shutdown();
            match timeout(limits.end, connection).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::trace!(%error, "a connection of an HTTP client ended early");
    }
}
