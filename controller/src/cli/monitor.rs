//! `shunt monitor`.

use std::{process::ExitCode, time::Duration};

use super::{
    Dirs,
    output::{self, TextFormat},
};
use crate::socket::{
    self,
    client::Client,
    protocol::{DroppedPacket, Happening, MonitorEvent},
};

/// Show events as they happen
#[derive(Debug, clap::Args)]
pub(super) struct Monitor {
    /// Only dropped packets
    #[arg(long)]
    drops: bool,
    /// How to show them; json has an object a line
    #[arg(short, long, value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
}

impl Monitor {
    pub(super) fn run(self, dirs: &Dirs) -> anyhow::Result<ExitCode> {
        let client = Client::connect(&socket::path(&dirs.run_dir), Duration::from_secs(5))?;
        for event in client.monitor(self.drops)? {
            let event = event?;
            match self.output {
                TextFormat::Text => output::line(&text(&event))?,
                TextFormat::Json => output::line(&serde_json::to_string(&event)?)?,
            }
        }
        anyhow::bail!("the agent has ended")
    }
}

fn text(event: &MonitorEvent) -> String {
    let what = match &event.what {
        Happening::Drop(packet) => drop_text(packet),
        Happening::Synced(sync) => format!("synced: {} changes in {} ms", sync.steps, sync.duration_us as f64 / 1000.0),
        Happening::Problem(problem) => format!("refused: {problem}"),
        Happening::PodAttached(pod) => format!("pod attached: {} has {} on {}", pod.title(), pod.address, pod.host_interface),
        Happening::PodDeleted(pod) => format!("pod removed: {} had {}", pod.title(), pod.address),
        Happening::Lost { events } => format!("lost: {events} events came faster than they were read"),
    };
    format!("{} {what}", time_of_day(event.unix_ms))
}

fn drop_text(packet: &DroppedPacket) -> String {
    let DroppedPacket { reason, program, interface, length, .. } = packet;
    let end = |address: std::net::IpAddr, port: u16| if port == 0 { address.to_string() } else { format!("{address}:{port}") };
    let flow = match (packet.source, packet.destination) {
        (Some(source), Some(destination)) => format!(
            "{} {} -> {}",
            output::protocol(packet.protocol),
            end(source, packet.source_port),
            end(destination, packet.destination_port)
        ),
        _ => format!("ethertype {:#06x}", packet.ethertype),
    };
    format!("dropped: {reason}: {flow}, {length} bytes, {program} on {interface}")
}

/// Time of day in UTC.
fn time_of_day(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000 % 86_400, unix_ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_is_one_line() {
        let packet = DroppedPacket {
            reason: "source_spoofed".to_owned(),
            program: "from_pod".to_owned(),
            interface: "shunt0123456789".to_owned(),
            length: 98,
            ethertype: 0x0800,
            protocol: 6,
            source: Some("10.1.0.9".parse().unwrap()),
            destination: Some("10.1.0.2".parse().unwrap()),
            source_port: 40_000,
            destination_port: 80,
        };
        let event = MonitorEvent { unix_ms: 1_700_000_000_123, what: Happening::Drop(packet.clone()) };
        assert_eq!(
            text(&event),
            "22:13:20.123Z dropped: source_spoofed: TCP 10.1.0.9:40000 -> 10.1.0.2:80, 98 bytes, from_pod on shunt0123456789"
        );
        let unparsed = DroppedPacket { source: None, destination: None, ..packet };
        assert!(drop_text(&unparsed).contains("ethertype 0x0800, 98 bytes"));
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            (&json["event"], &json["reason"], &json["unixMs"]),
            (&"drop".into(), &"source_spoofed".into(), &1_700_000_000_123_u64.into())
        );
    }
}
