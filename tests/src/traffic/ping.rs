//! ICMP echo with the ping that people know.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::{command, netns::Netns};

/// What ping said at its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pinged {
    /// Requests.
    pub sent: u32,
    /// Replies.
    pub received: u32,
    /// Median is not printed by ping; this is its average, in microseconds.
    pub average_us: f64,
}

/// Pings some times with an interval of seconds and a payload size.
///
/// # Errors
/// ping could not run, or printed no summary.
pub fn ping(from: &Netns, to: Ipv4Addr, count: u32, interval: f32, size: u32) -> Result<Pinged> {
    ping_with(from, to, count, &["-i", &interval.to_string(), "-s", &size.to_string()])
}

/// Pings with other options, as `-M do`.
///
/// # Errors
/// ping could not run, or printed no summary.
pub fn ping_with(from: &Netns, to: Ipv4Addr, count: u32, options: &[&str]) -> Result<Pinged> {
    let mut command = from.command("ping");
    command.args(["-n", "-q", "-W", "1", "-c", &count.to_string()]).args(options).arg(to.to_string());
    let output = command::output(&mut command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = || format!("{} pinging {to}: {} {}", from.name(), text.trim(), String::from_utf8_lossy(&output.stderr).trim());
    parse(&text).with_context(said)
}

fn parse(text: &str) -> Option<Pinged> {
    let counts = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = counts.split(", ").map(|part| part.split(' ').next().and_then(|number| number.parse().ok()));
    let (sent, received) = (numbers.next()??, numbers.next()??);
    let average =
        text.lines().find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = ")?.split('/').nth(1)?.parse::<f64>().ok());
    Some(Pinged { sent, received, average_us: average.unwrap_or(f64::NAN) * 1000.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_summary() {
        let text = "PING 10.0.0.1 (10.0.0.1) 56(84) bytes of data.\n\n--- 10.0.0.1 ping statistics ---\n\
                    3 packets transmitted, 2 received, 33% packet loss, time 2003ms\nrtt min/avg/max/mdev = 0.030/0.045/0.061/0.012 ms\n";
        assert_eq!(parse(text), Some(Pinged { sent: 3, received: 2, average_us: 45.0 }));
        let errors = "4 packets transmitted, 0 received, +4 errors, 100% packet loss, time 3052ms\n";
        assert!(parse(errors).is_some_and(|pinged| pinged.received == 0 && pinged.average_us.is_nan()));
    }
}
