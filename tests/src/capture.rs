//! What a wire really carried: tcpdump's file, every checksum verified, inside the tunnel too.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use etherparse::{Ethernet2HeaderSlice, Icmpv4Slice, IpNumber, Ipv4HeaderSlice, TcpSlice, UdpSlice};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Netns, topology::VXLAN_PORT};

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    file: PathBuf,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Frames.
    pub frames: usize,
    /// Packets in the tunnel.
    pub tunnelled: usize,
    /// TCP segments, inner ones included.
    pub tcp: usize,
    /// UDP datagrams, inner ones included, outer ones not.
    pub udp: usize,
    /// ICMP messages, inner ones included.
    pub icmp: usize,
    /// The longest IPv4 packet on the wire.
    pub longest: usize,
    /// Pairs of the type of service inside and outside the tunnel.
    pub tos: BTreeSet<(u8, u8)>,
    /// What was wrong, one line a packet.
    pub wrong: Vec<String>,
}

impl Capture {
    /// Starts capturing on an interface; the file goes to the lab's directory.
    ///
    /// # Errors
    /// tcpdump could not start.
    pub fn start(netns: &Netns, interface: &str, filter: &str, lab_dir: &std::path::Path) -> Result<Self> {
        let file = lab_dir.join(format!("{}-{interface}.pcap", netns.name()));
        let mut command = netns.command("tcpdump");
        command
            .args(["-n", "-U", "--immediate-mode", "-s", "2048", "-B", "65536", "-Z", "root", "-i", interface, "-w"])
            .arg(&file)
            .arg(filter);
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start tcpdump")?;
        // The file's header is written once the socket is open.
        for _ in 0..300 {
            if fs::metadata(&file).is_ok_and(|meta| meta.len() >= 24) {
                return Ok(Self { child, file });
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("tcpdump on {interface} in {} doesn't begin", netns.name());
    }

    /// Ends it and verifies what was captured.
    ///
    /// # Errors
    /// tcpdump failed or its file cannot be read.
    pub fn finish(mut self) -> Result<Seen> {
        thread::sleep(Duration::from_millis(100));
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        ensure!(self.child.wait()?.success(), "tcpdump failed");
        let bytes = fs::read(&self.file)?;
        let mut seen = Seen::default();
        for frame in frames(&bytes)? {
            seen.frames += 1;
            if let Err(what) = seen.frame(frame, None) {
                seen.wrong.push(format!("frame {}: {what}", seen.frames));
            }
        }
        Ok(seen)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Seen {
    /// Fails if any packet was wrong, with the first few.
    ///
    /// # Errors
    /// Some packet was wrong.
    pub fn all_right(&self) -> Result<()> {
        let few: Vec<_> = self.wrong.iter().take(5).cloned().collect();
        ensure!(few.is_empty(), "{} of {} packets are wrong:\n{}", self.wrong.len(), self.frames, few.join("\n"));
        Ok(())
    }

    fn frame(&mut self, frame: &[u8], outer_tos: Option<u8>) -> Result<()> {
        let ethernet = Ethernet2HeaderSlice::from_slice(frame)?;
        if ethernet.ether_type() != etherparse::EtherType::IPV4 {
            return Ok(());
        }
        let packet = &frame[14..];
        let header = Ipv4HeaderSlice::from_slice(packet)?;
        let total = usize::from(header.total_len());
        ensure!(packet.len() >= total, "IPv4 says {total} bytes, the frame has {}", packet.len());
        ensure!(
            header.header_checksum() == header.to_header().calc_header_checksum(),
            "IPv4 header checksum of {}",
            flow(&header)
        );
        let tos = packet[1];
        match outer_tos {
            None => self.longest = self.longest.max(total),
            Some(outer) => {
                self.tos.insert((tos, outer));
            }
        }
        if header.is_fragmenting_payload() {
            return Ok(());
        }
        let payload = &packet[header.slice().len()..total];
        let (from, to) = (header.source(), header.destination());
        match header.protocol() {
            IpNumber::TCP => {
                self.tcp += 1;
                let tcp = TcpSlice::from_slice(payload)?;
                let right = tcp.calc_checksum_ipv4(from, to)?;
                ensure!(
                    tcp.checksum() == right,
                    "TCP checksum {:#06x}, should be {right:#06x}: {}",
                    tcp.checksum(),
                    flow(&header)
                );
            }
            IpNumber::UDP => {
                let udp = UdpSlice::from_slice(payload)?;
                ensure!(usize::from(udp.length()) == payload.len(), "UDP length {} of {}", udp.length(), payload.len());
                if udp.checksum() != 0 {
                    let right = udp.to_header().calc_checksum_ipv4_raw(from, to, udp.payload())?;
                    ensure!(
                        udp.checksum() == right,
                        "UDP checksum {:#06x}, should be {right:#06x}: {}",
                        udp.checksum(),
                        flow(&header)
                    );
                }
                if udp.destination_port() == VXLAN_PORT && outer_tos.is_none() {
                    self.tunnelled += 1;
                    let vxlan = udp.payload();
                    ensure!(vxlan.len() > 8 && vxlan[0] == 8, "no VXLAN header with a VNI: {}", flow(&header));
                    return self.frame(&vxlan[8..], Some(tos)).context("inside the tunnel");
                }
                self.udp += 1;
            }
            IpNumber::ICMP => {
                self.icmp += 1;
                let icmp = Icmpv4Slice::from_slice(payload)?;
                let right = icmp.icmp_type().calc_checksum(icmp.payload());
                ensure!(
                    icmp.checksum() == right,
                    "ICMP checksum {:#06x}, should be {right:#06x}: {}",
                    icmp.checksum(),
                    flow(&header)
                );
            }
            _ => {}
        }
        Ok(())
    }
}

fn flow(header: &Ipv4HeaderSlice<'_>) -> String {
    format!("{} to {}, {} bytes", header.source_addr(), header.destination_addr(), header.total_len())
}

/// The frames in a pcap file of this machine's byte order (pcap-savefile(5)).
fn frames(file: &[u8]) -> Result<Vec<&[u8]>> {
    const MAGIC: u32 = 0xa1b2_c3d4;
    let word = |at: usize| file.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    ensure!(word(0) == Some(MAGIC), "not a pcap file");
    let mut frames = Vec::new();
    let mut at = 24;
    while let Some(len) = word(at + 8) {
        let end = at + 16 + len as usize;
        // The last record may have been cut off with the capture.
        let Some(frame) = file.get(at + 16..end) else { break };
        frames.push(frame);
        at = end;
    }
    Ok(frames)
}
