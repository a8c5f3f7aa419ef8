//! iperf3 between two namespaces.

use std::{
    net::Ipv4Addr,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{command, netns::Netns};

/// Where a server listens: a number that a Service's port can have at nodes too.
pub const PORT: u16 = 30_201;

/// A server that serves one client after the other until dropped.
#[derive(Debug)]
pub struct IperfServer {
    child: Child,
    address: Ipv4Addr,
}

/// What a run measured.
#[derive(Clone, Copy, Debug)]
pub struct Throughput {
    /// Received bits a second.
    pub bits_per_second: f64,
    /// Segments sent again.
    pub retransmits: u64,
}

impl IperfServer {
    /// Starts one and waits until it listens.
    ///
    /// # Errors
    /// iperf3 is not installed, or could not listen.
    pub fn start(netns: &Netns, address: Ipv4Addr) -> Result<Self> {
        let mut command = netns.command("iperf3");
        command.args(["-s", "-p", &PORT.to_string(), "-B", &address.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("cannot start iperf3")?;
        for _ in 0..200 {
            if netns.run("ss", &format!("-Hltn sport = :{PORT}")).is_ok_and(|listening| !listening.is_empty()) {
                return Ok(Self { child, address });
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("iperf3 doesn't listen in {}", netns.name());
    }

    /// Sends TCP for some seconds from a namespace, with extra arguments of iperf3.
    ///
    /// # Errors
    /// iperf3 failed or the connection did.
    pub fn measure(&self, from: &Netns, to: Ipv4Addr, seconds: u32, extra: &[&str]) -> Result<Throughput> {
        let mut command = from.command("iperf3");
        command.args(["-J", "-C", "cubic", "--connect-timeout", "3000", "-t", &seconds.to_string()]);
        command.args(["-c", &to.to_string(), "-p", &PORT.to_string()]);
        let output = command::output(command.args(extra))?;
        let throughput = Throughput::read(&output.stdout);
        throughput.with_context(|| format!("iperf3 from {} to {to} (server at {})", from.name(), self.address))
    }
}

impl Throughput {
    /// Of all streams together, by iperf3's report in JSON.
    fn read(report: &[u8]) -> Result<Self> {
        let report: Value = serde_json::from_slice(report).context("its report is no JSON")?;
        let end = &report["end"];
        let Some(bits_per_second) = end["sum_received"]["bits_per_second"].as_f64() else { bail!("{}", report["error"]) };
        Ok(Self { bits_per_second, retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0) })
    }
}

impl Drop for IperfServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_was_received_or_what_went_wrong() {
        let report =
            br#"{"end":{"sum_sent":{"bits_per_second":2.1e9,"retransmits":3},"sum_received":{"bits_per_second":2e9}}}"#;
        let Throughput { bits_per_second, retransmits } = Throughput::read(report).unwrap();
        assert_eq!((bits_per_second, retransmits), (2e9, 3));
        let failed = br#"{"start":{},"end":{},"error":"unable to connect to server"}"#;
        assert_eq!(Throughput::read(failed).unwrap_err().to_string(), "\"unable to connect to server\"");
        assert_eq!(Throughput::read(b"").unwrap_err().to_string(), "its report is no JSON");
    }
}
