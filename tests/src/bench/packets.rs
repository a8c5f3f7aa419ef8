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

use super::{
    Options,
    arena::{Arena, Contender, Samples},
    pin,
    report::{Goal, Report},
};

const PORT: u16 = 7002;
/// Bytes of UDP payload in a packet of 64 bytes, link header and frame check included.
const PAYLOAD: usize = 18;
const BATCH: usize = 64;

pub(super) fn measure(options: &Options, report: &mut Report) -> Result<()> {
    let arena = Arena::build(options)?;
    let period = Duration::from_millis(if options.quick { 300 } else { 400 });
    let cross = Samples::take(options.many_rounds(), &arena.cross_node(), |contender| kilopackets(contender, period))?;
    cross.row(report, "cross node, 64 B packets/s over bare", "shunt", "bare", Goal::AtLeast(0.75), "k/s");
    cross.row(report, "cross node, 64 B packets/s over flannel's way", "shunt", "flannel", Goal::AtLeast(1.4), "k/s");
    cross.row(report, "(flannel's way over bare)", "flannel", "bare", Goal::None, "k/s");
    Ok(())
}

/// Packets that arrived, in thousands a second.
fn kilopackets(contender: &Contender<'_>, period: Duration) -> Result<f64> {
    let server = contender.server.inside(|| UdpSocket::bind((contender.server_address, PORT)))?;
    let client = contender.client.inside(|| UdpSocket::bind((contender.client_address, PORT)))?;
    client.connect((contender.server_address, PORT))?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> Result<f64> {
            pin::here();
            let mut batch = Batch::new();
            let (mut sent, mut received) = (0u64, 0u64);
            let start = Instant::now();
            while start.elapsed() < period {
                sent += batch.send(&client)? as u64;
                received += batch.receive(&server)? as u64;
            }
            let took = start.elapsed();
            ensure!(received * 100 > sent * 99, "{} of {sent} packets lost", sent - received);
            Ok(received as f64 / took.as_secs_f64() / 1000.0)
        });
        worker.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })
}

/// Buffers and headers for `sendmmsg` and `recvmmsg`. The headers point into the boxed buffers, which never move.
struct Batch {
    _buffers: Box<[[u8; PAYLOAD]; BATCH]>,
    _vectors: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
}

impl Batch {
    fn new() -> Self {
        let mut buffers = Box::new([[1; PAYLOAD]; BATCH]);
        let at = |buffer: &mut [u8; PAYLOAD]| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: PAYLOAD };
        let mut vectors = Box::new(buffers.each_mut().map(at));
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
