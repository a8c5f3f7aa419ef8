//! A client that asks a Service without a pause: when does it see a change?

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};

use crate::{netns::Netns, service::TARGET};

/// For one answer; a question that a change made homeless is asked again.
const PATIENCE: Duration = Duration::from_millis(200);
/// For a change, however slow.
const CHANGED_WITHIN: Duration = Duration::from_secs(120);
/// So many answers in a row from where they should come are no chance.
const SETTLED: usize = 5;

/// Milliseconds from the begin of a change until every new connection of the client goes to the [`Greeter`] named `to`: they are made one
/// after the other. `change` may return before it is in force.
///
/// # Errors
/// The change fails, or is not seen within two minutes.
pub(super) fn seen(client: &Netns, vip: SocketAddrV4, to: &str, change: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (begun, ended) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let asking = scope.spawn(|| client.inside(|| hammer(vip, to, &begun, &ended)));
        // The client is at it before anything changes.
        while !begun.load(Ordering::Acquire) && !asking.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        let start = Instant::now();
        let changed = change();
        if changed.is_err() {
            ended.store(true, Ordering::Release);
        }
        let since = asking.join().map_err(|_| anyhow!("the client panicked"))?;
        changed?;
        Ok(since?.saturating_duration_since(start).as_secs_f64() * 1000.0)
    })
}

/// When the first came of those answers that all came from one server.
fn hammer(vip: SocketAddrV4, to: &str, begun: &AtomicBool, ended: &AtomicBool) -> Result<Instant> {
    let start = Instant::now();
    let (mut since, mut in_a_row) = (start, 0);
    while in_a_row < SETTLED {
        ensure!(start.elapsed() < CHANGED_WITHIN, "{vip} is not served by {to} after {CHANGED_WITHIN:?}");
        ensure!(!ended.load(Ordering::Acquire), "the change failed");
        let right = ask(vip)?.is_some_and(|server| server == to);
        begun.store(true, Ordering::Release);
        if !right {
            in_a_row = 0;
            continue;
        }
        if in_a_row == 0 {
            since = Instant::now();
        }
        in_a_row += 1;
    }
    Ok(since)
}

/// Who answers; nobody if the connection is refused or doesn't come about. It is reset, so that neither end remembers it.
fn ask(vip: SocketAddrV4) -> Result<Option<String>> {
    let Ok(mut stream) = TcpStream::connect_timeout(&vip.into(), PATIENCE) else { return Ok(None) };
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = String::new();
    Ok(stream.read_to_string(&mut name).is_ok().then_some(name))
}

/// A server that greets whoever connects with its name, and hangs up. Dropping it closes its socket.
#[derive(Debug)]
pub(super) struct Greeter {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Greeter {
    pub(super) fn start(netns: &Netns, address: Ipv4Addr, name: &str) -> Result<Self> {
        let at = SocketAddrV4::new(address, TARGET);
        let listener = netns.inside(|| TcpListener::bind(at)).with_context(|| format!("{at} in {}", netns.name()))?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, name) = (Arc::clone(&stop), name.to_owned());
        let worker = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut events = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                // Whatever comes of it, there is a connection or there is none.
                let _ = poll(&mut events, PollTimeout::from(20u8));
                while let Ok((mut client, _)) = listener.accept() {
                    // A client may be gone already.
                    let _ = client.write_all(name.as_bytes());
                }
            }
        });
        Ok(Self { stop, worker: Some(worker) })
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}
