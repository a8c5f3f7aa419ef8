//! Small UDP packets a second: what the way costs a CPU for each packet.
//!
//! One thread sends a batch, then receives it, so that nothing queues up and both ends' work is counted.

use std::{
    io,
    net::UdpSocket,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    Options,
    arena::{Arena, Contender},
    pin,
    report::{Better, Goal, Report},
    samples::{Sample, Samples},
};

/// Where the server listens, and what leads to it.
pub(super) const PORT: u16 = 7002;
/// Bytes of UDP payload in a packet of 64 bytes, link header and frame check included.
pub(super) const SMALL: usize = 18;
/// Bytes of UDP payload in a packet of 1,400 bytes, counted so.
const LARGE: usize = 1354;
const BATCH: usize = 64;

pub(super) fn measure(arena: &Arena, options: &Options, report: &mut Report) -> Result<()> {
    let period = Duration::from_millis(if options.quick { 150 } else { 400 });
    for (size, payload, rounds) in [("64 B", SMALL, options.many_rounds()), ("1,400 B", LARGE, options.rounds())] {
        let take = |contenders: &[Contender<'_>]| {
            Samples::take(rounds, contenders, |contender| kilopackets(contender, payload, period))
        };
        let (small, title) = (payload == SMALL, format!("UDP packets of {size}"));
        let same = take(&arena.same_node())?;
        same.publish(report, &format!("{title}, same node"), "k/s", Better::More, Some("packet"));
        let name = format!("same node, {size} packets/s over flannel's way");
        same.row(report, &name, "shunt", "flannel", Goal::AtLeast(1.0), "k/s");

        let cross = take(&arena.cross_node())?;
        cross.publish(report, &format!("{title}, cross node"), "k/s", Better::More, Some("packet"));
        let goal = if small { Goal::AtLeast(0.75) } else { Goal::None };
        cross.row(report, &format!("cross node, {size} packets/s over bare"), "shunt", "bare", goal, "k/s");
        let goal = Goal::AtLeast(if small { 1.4 } else { 1.0 });
        cross.row(report, &format!("cross node, {size} packets/s over flannel's way"), "shunt", "flannel", goal, "k/s");
        cross.row(report, "(flannel's way over bare)", "flannel", "bare", Goal::None, "k/s");
    }
    Ok(())
}

/// Packets that arrived, in thousands a second.
pub(super) fn kilopackets(contender: &Contender<'_>, payload: usize, period: Duration) -> Result<Sample> {
    let server = contender.server.inside(|| UdpSocket::bind((contender.server_address, PORT)))?;
    // A batch of large packets, each in a buffer that some contender made anew, is more than the default.
    setsockopt(&server, sockopt::RcvBufForce, &(BATCH * 16_384))?;
    let client = contender.client.inside(|| UdpSocket::bind((contender.client_address, PORT)))?;
    client.connect((contender.asked, PORT))?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<Sample> {
            pin::here();
            let mut batch = Batch::new(payload);
            let (mut sent, mut received) = (0u64, 0u64);
            let start = Instant::now();
            while start.elapsed() < period {
                sent += batch.send(&client)? as u64;
                received += batch.receive(&server)? as u64;
            }
            let took = start.elapsed();
            ensure!(received * 100 > sent * 99, "{} of {sent} packets lost", sent - received);
            let work = received as f64;
            Ok(Sample { values: [work / took.as_secs_f64() / 1000.0], work })
        });
        worker.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })
}

/// Buffers and headers for `sendmmsg` and `recvmmsg`. The headers point into the boxed buffers, which never move.
struct Batch {
    _buffers: Vec<[u8; LARGE]>,
    _vectors: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
}

impl Batch {
    /// Of packets with so many bytes of payload, at most [`LARGE`].
    fn new(payload: usize) -> Self {
        let mut buffers = vec![[1; LARGE]; BATCH];
        let mut vectors = Box::new(std::array::from_fn(|index| libc::iovec {
            iov_base: buffers[index].as_mut_ptr().cast(),
            iov_len: payload.min(LARGE),
        }));
        let headers = Box::new(vectors.each_mut().map(|vector| {
            // SAFETY: all zeroes is a valid value of this plain C structure: no address, no control data.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        }));
        Self { _buffers: buffers, _vectors: vectors, headers }
    }

    fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: the headers are valid for the stated count; what they point to is owned by `self`.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), BATCH as u32, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// What has arrived, or arrives while we look a few times more.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        const LOOKS: u32 = 50;
        let mut received = 0;
        for _ in 0..LOOKS {
            // SAFETY: as above; without a timeout.
            let got = unsafe {
                let none = std::ptr::null_mut();
                libc::recvmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, none)
            };
            match usize::try_from(got) {
                Ok(got) => received += got,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(io::Error::last_os_error()),
            }
            if received >= BATCH {
                break;
            }
        }
        Ok(received)
    }
}
