//! Connections: accepted, optionally in TLS, answered until the listener is taken down, and then all broken at once.

use std::{convert::Infallible, io, net::TcpListener, sync::Arc};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc::UnboundedReceiver, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::{Shared, request::Answer, status::Status, watch::Piece};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers until told to stop; when this ends, no connection is left.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stop => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                let (tls, shared) = (tls.clone(), shared.clone());
                connections.spawn(async move {
                    match tls {
                        // A client that doesn't trust us breaks the handshake: its own affair.
                        Some(tls) => if let Ok(stream) = tls.accept(stream).await { converse(stream, shared).await },
                        None => converse(stream, shared).await,
                    }
                });
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
    Ok(())
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<Shared>) {
    let service = service_fn(move |request| answer(shared.clone(), request));
    // Clients leave as they like, and streams are broken on purpose.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let delay = shared.lock().trouble.answer_after;
    sleep(delay).await;
    let outcome = shared.lock().answer(&parts, &body);
    Ok(match outcome {
        Ok(Answer::Text(code, text)) => response(code, text_body(shared, text)),
        Ok(Answer::Stream(pieces, lasts)) => response(200, stream_body(shared, pieces, Instant::now() + lasts)),
        Err(status) => refusal(&status),
    })
}

fn response(code: u16, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = hyper::StatusCode::from_u16(code).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

fn refusal(status: &Status) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{}\n", status.body()))).map_err(|never| match never {});
    let mut response = response(status.code, body.boxed_unsync());
    if let Some(after) = status.retry_after {
        response.headers_mut().insert("retry-after", after.as_secs().into());
    }
    response
}

fn text_body(shared: Arc<Shared>, text: Bytes) -> Body {
    if shared.lock().trouble.trickle.is_none() {
        return Full::new(text).map_err(|never| match never {}).boxed_unsync();
    }
    let chunks = stream::unfold((shared, text), |(shared, text)| async move { trickle(shared, text).await });
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// The pieces of a watch until its time is over, in order and no faster than trouble allows.
fn stream_body(shared: Arc<Shared>, pieces: UnboundedReceiver<Piece>, end: Instant) -> Body {
    let chunks = stream::unfold((shared, pieces, Bytes::new()), move |(shared, mut pieces, mut rest)| async move {
        while rest.is_empty() {
            match timeout_at(end, pieces.recv()).await {
                Ok(Some(Piece::Bytes(more))) => rest = more,
                Ok(Some(Piece::Cut)) => return Some((Err(io::ErrorKind::ConnectionReset.into()), (shared, pieces, rest))),
                Ok(None) | Err(_) => return None,
            }
        }
        let (chunk, (shared, rest)) = trickle(shared, rest).await?;
        Some((Ok(Frame::data(chunk)), (shared, pieces, rest)))
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// As much of some bytes as may be sent now.
async fn trickle(shared: Arc<Shared>, mut rest: Bytes) -> Option<(Bytes, (Arc<Shared>, Bytes))> {
    if rest.is_empty() {
        return None;
    }
    let slow = shared.lock().trouble.trickle;
    let chunk = match slow {
        Some((bytes, pause)) => {
            sleep(pause).await;
            rest.split_to(bytes.clamp(1, rest.len()))
        }
        None => std::mem::take(&mut rest),
    };
    Some((chunk, (shared, rest)))
}
