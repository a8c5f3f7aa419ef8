//! HTTP requests a second over connections that are kept, and with a connection for each.
//!
//! Sixteen clients and the server are tasks of one thread, so that both ends' work and the way's is counted.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{
    Request, Response, StatusCode,
    client::conn::http1::{self as client, SendRequest},
    header::{CONNECTION, HOST},
    server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpSocket, task::LocalSet, time::timeout};

use super::{
    Options,
    arena::{Arena, Contender},
    pin,
    report::{Better, Goal, Report},
    samples::{Sample, Samples},
};

pub(super) const PORT: u16 = 30_003;
const CLIENTS: usize = 16;
/// What a small answer has.
const BODY: &[u8] = &[b'x'; 1024];
/// For the first answer of a client.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn measure(arena: &Arena, options: &Options, report: &mut Report) -> Result<()> {
    let period = Duration::from_millis(if options.quick { 150 } else { 500 });
    for (place, contenders) in [("same node", arena.same_node()), ("cross node", arena.cross_node())] {
        for (how, kept) in [("kept connections", true), ("a connection each", false)] {
            let samples = Samples::take(options.rounds(), &contenders, |contender| kilorequests(contender, kept, period))?;
            samples.publish(report, &format!("HTTP, {how}, {place}"), "k/s", Better::More, Some("request"));
            let name = format!("{place}, HTTP requests/s over flannel's way, {how}");
            samples.row(report, &name, "shunt", "flannel", Goal::AtLeast(1.0), "k/s");
        }
    }
    Ok(())
}

/// Requests that were answered, in thousands a second.
pub(super) fn kilorequests(contender: &Contender<'_>, kept: bool, period: Duration) -> Result<Sample> {
    let listener = contender.server.inside(|| TcpListener::bind((contender.server_address, PORT)))?;
    listener.set_nonblocking(true)?;
    let asked = SocketAddr::from((contender.asked, PORT));
    contender.client.inside(|| {
        pin::here();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        tasks.block_on(&runtime, async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::task::spawn_local(serve(listener));
            let start = Instant::now();
            let until = start + period;
            let clients: Vec<_> = (0..CLIENTS).map(|_| tokio::task::spawn_local(ask(asked, kept, until))).collect();
            let mut answered = 0.0;
            for client in clients {
                answered += f64::from(client.await??);
            }
            Ok(Sample { values: [answered / start.elapsed().as_secs_f64() / 1000.0], work: answered })
        })
    })
}

async fn serve(listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let answer = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(BODY)))) });
        // A client that leaves is no news.
        tokio::task::spawn_local(
            async move { drop(server::Builder::new().serve_connection(TokioIo::new(stream), answer).await) },
        );
    }
}

/// How many requests one client had answered.
async fn ask(server: SocketAddr, kept: bool, until: Instant) -> Result<u32> {
    let (mut answered, mut connection) = (0, None);
    while Instant::now() < until {
        let mut sender = match connection.take() {
            Some(sender) => sender,
            None => timeout(PATIENCE, connect(server)).await.context("nobody accepts")??,
        };
        let close = if kept { "keep-alive" } else { "close" };
        let request = Request::get("/").header(HOST, "bench").header(CONNECTION, close).body(Empty::new())?;
        let answer = timeout(PATIENCE, sender.send_request(request)).await.context("nobody answers")??;
        ensure!(answer.status() == StatusCode::OK, "the server says {}", answer.status());
        ensure!(answer.into_body().collect().await?.to_bytes().len() == BODY.len(), "half an answer");
        answered += 1;
        connection = kept.then_some(sender);
    }
    Ok(answered)
}

async fn connect(server: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpSocket::new_v4()?.connect(server).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    tokio::task::spawn_local(connection);
    Ok(sender)
}
