//! `shunt status`: one screen of what the agent says of itself and what the kernel holds.

use std::{
    fmt::Write,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use serde::Serialize;

use super::{
    Dirs, get,
    output::{self, TextFormat, interface, span},
};
use crate::{
    kernel::{pins::PinDir, sys::Target},
    socket::{
        self,
        client::Client,
        protocol::{self, ConnectStatus, XdpStatus},
    },
};

/// Show health, counts, the last sync and drops on one screen; exit 0 only if healthy
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// How to show it
    #[arg(short, long, value_enum, default_value_t = TextFormat::Text)]
    output: TextFormat,
}

/// All of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    healthy: bool,
    /// Why not; empty if healthy.
    reasons: Vec<String>,
    /// What a running agent says.
    agent: Option<protocol::Status>,
    /// What the pins hold.
    dataplane: Option<Dataplane>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dataplane {
    pin_dir: std::path::PathBuf,
    links: Vec<Link>,
    maps: Vec<MapFill>,
    /// Reasons with packets.
    drops: Vec<DropCount>,
}

/// A pinned link.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    name: String,
    /// What it is attached to; nothing once that is gone.
    on: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MapFill {
    name: &'static str,
    entries: u64,
    capacity: u32,
}

#[derive(Debug, Serialize)]
struct DropCount {
    name: &'static str,
    count: u64,
}

impl Status {
    pub(super) fn run(self, dirs: &Dirs) -> anyhow::Result<ExitCode> {
        let agent =
            Client::connect(&socket::path(&dirs.run_dir), Duration::from_secs(5)).and_then(|mut client| client.status());
        let mut dirs = dirs.clone();
        if let Ok(agent) = &agent {
            dirs.pin_dir.get_or_insert_with(|| agent.pin_dir.clone());
        }
        let report =
            Report::of(agent.map_err(|error| error.to_string()), dataplane(&dirs).map_err(|error| format!("{error:#}")));
        match self.output {
            TextFormat::Text => output::line(report.text(SystemTime::now()).trim_end())?,
            TextFormat::Json => output::json(&report)?,
        }
        Ok(if report.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn dataplane(dirs: &Dirs) -> anyhow::Result<Dataplane> {
    let reader = get::open(dirs)?;
    let pins = PinDir::new(dirs.found_pin_dir());
    let mut links = Vec::new();
    for name in pins.link_names()? {
        let on = match pins.link_target(&name).with_context(|| format!("link {name}"))? {
            Some(Target::Interface(0) | Target::Cgroup(0)) | None => None,
            Some(Target::Interface(index)) => Some(interface(index)),
            Some(Target::Cgroup(_)) => Some("cgroup".to_owned()),
            Some(Target::Netfilter) => Some("netfilter".to_owned()),
            Some(Target::Other) => Some("something else".to_owned()),
        };
        links.push(Link { name, on });
    }
    let fill = |fill: crate::kernel::read::Fill| MapFill { name: fill.name, entries: fill.entries, capacity: fill.capacity };
    let drops = reader.drops()?.into_iter().filter(|(_, count)| *count > 0);
    Ok(Dataplane {
        pin_dir: pins.path().to_owned(),
        links,
        maps: reader.fill()?.into_iter().map(fill).collect(),
        drops: drops.map(|(reason, count)| DropCount { name: reason.name(), count }).collect(),
    })
}

impl Report {
    fn of(agent: Result<protocol::Status, String>, dataplane: Result<Dataplane, String>) -> Self {
        let mut reasons = Vec::new();
        match &agent {
            Ok(agent) => {
                reasons.extend(agent.reasons.iter().cloned());
                match agent.problems.len() {
                    0 => {}
                    1 => reasons.push("a part of the cluster state is refused".to_owned()),
                    count => reasons.push(format!("{count} parts of the cluster state are refused")),
                }
            }
            Err(error) => reasons.push(format!("agent not running: {error}")),
        }
        match &dataplane {
            Ok(dataplane) => {
                // A link whose interface is gone goes with its pod; those of the node itself must stand.
                let dead = dataplane.links.iter().filter(|link| link.on.is_none() && !link.is_of_a_pod());
                reasons.extend(dead.map(|link| format!("the link {} is attached to nothing", link.name)));
            }
            Err(error) => reasons.push(error.clone()),
        }
        Self { healthy: reasons.is_empty(), reasons, agent: agent.ok(), dataplane: dataplane.ok() }
    }

    fn text(&self, now: SystemTime) -> String {
        let mut text = String::new();
        match self.reasons.as_slice() {
            [] => line(&mut text, "Health", "healthy"),
            [reason] => line(&mut text, "Health", &format!("UNHEALTHY: {reason}")),
            reasons => {
                line(&mut text, "Health", &format!("UNHEALTHY: {} reasons", reasons.len()));
                reasons.iter().for_each(|reason| line(&mut text, "", &format!("- {reason}")));
            }
        }
        if let Some(agent) = &self.agent {
            agent_text(&mut text, agent, now);
        }
        if let Some(dataplane) = &self.dataplane {
            dataplane.text(&mut text);
        }
        text
    }
}

fn agent_text(text: &mut String, agent: &protocol::Status, now: SystemTime) {
    let counts = &agent.counts;
    let known = |value: Option<String>| value.unwrap_or_else(|| "not known yet".to_owned());
    line(text, "Agent", &format!("shunt {}, pid {}", agent.version, agent.pid));
    let address = known(agent.node_ip.map(|ip| ip.to_string()));
    let range = known(agent.pod_cidr.map(|range| range.to_string()));
    line(text, "Node", &format!("{}, {address}, pod range {range}", agent.node));
    let mtu = known(agent.mtu.map(|mtu| mtu.to_string()));
    line(text, "Underlay", &format!("{}, pod MTU {mtu}", known(agent.underlay.clone())));
    if !agent.wires.is_empty() || !agent.left_out.is_empty() {
        line(text, "Wires", &wires_text(&agent.wires, &agent.left_out));
    }
    if let Some(source) = &agent.source {
        let connected = if source.connected { "" } else { ", NOT CONNECTED" };
        let heard = source.heard_at_unix_ms.map(|at| format!(", last heard {} ago", since(at, now)));
        line(text, "Source", &format!("{}{connected}{}", source.from, heard.unwrap_or_default()));
    }
    if let Some(connect) = &agent.connect {
        line(text, "Services", &connect_text(connect, counts.pods));
    }
    if let Some(xdp) = &agent.xdp {
        line(text, "XDP", &xdp_text(xdp));
    }
    line(text, "HTTP", &agent.http.map_or_else(|| "off".to_owned(), |address| address.to_string()));
    let counts = format!(
        "{} nodes, {} pods here, {} service ports, {} backends",
        counts.nodes, counts.pods, counts.services, counts.backends
    );
    line(text, "In force", &counts);
    let sync = agent.last_sync.map(|sync| {
        format!("{} ago, {} changes in {:.1} ms", since(sync.at_unix_ms, now), sync.steps, sync.duration_us as f64 / 1000.0)
    });
    line(text, "Last sync", &sync.unwrap_or_else(|| "none yet".to_owned()));
    list(text, "Refused", agent.problems.iter().map(ToString::to_string));
    list(text, "Notes", agent.notes.iter().cloned());
}

fn wires_text(wires: &[String], left_out: &[String]) -> String {
    let wires = if wires.is_empty() { "none".to_owned() } else { wires.join(", ") };
    let left_out =
        if left_out.is_empty() { String::new() } else { format!("; without {}, as configured", left_out.join(", ")) };
    format!("{wires} besides the underlay{left_out}")
}

fn connect_text(connect: &ConnectStatus, pods: u64) -> String {
    match connect {
        ConnectStatus::Active { cgroup, pods: known } => {
            format!("TCP by connect() below {}, of this host and {known} of {pods} pods; else by packet", cgroup.display())
        }
        ConnectStatus::Off => "by packet, as configured".to_owned(),
        ConnectStatus::Unavailable(reason) => format!("by packet: {reason}"),
    }
}

fn xdp_text(xdp: &XdpStatus) -> String {
    match xdp {
        XdpStatus::Forwards => "in the driver: pops the tunnel, forwards node ports' packets".to_owned(),
        XdpStatus::Pops(reason) => format!("in the driver: pops the tunnel; node ports' packets are forwarded by TC: {reason}"),
        XdpStatus::Unavailable(reason) => format!("tunnel packets are popped by TC, not XDP: {reason}"),
    }
}

fn since(unix_ms: u64, now: SystemTime) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_ms));
    span(at.and_then(|at| now.duration_since(at).ok()).unwrap_or_default().as_secs())
}

impl Link {
    /// Pods' host sides are named `shunt` and ten hexadecimal digits.
    fn is_of_a_pod(&self) -> bool {
        let digits = self.name.rsplit_once("shunt").map(|(_, digits)| digits);
        digits.is_some_and(|digits| digits.len() == 10 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }
}

impl Dataplane {
    fn text(&self, text: &mut String) {
        let (pods, node): (Vec<&Link>, Vec<&Link>) = self.links.iter().partition(|link| link.is_of_a_pod());
        let mut parts: Vec<String> = node.iter().map(|link| link.name.clone()).collect();
        if !pods.is_empty() {
            parts.push(format!("{} of pods", pods.len()));
        }
        let links = if parts.is_empty() { "none".to_owned() } else { parts.join(", ") };
        line(text, "Links", &links);
        let fills = self.maps.iter().map(|map| {
            let percent = map.entries as f64 * 100.0 / f64::from(map.capacity.max(1));
            format!("{}: {} of {} ({percent:.1} %)", map.name.to_lowercase(), map.entries, map.capacity)
        });
        list(text, "Maps", fills);
        if self.drops.is_empty() {
            line(text, "Drops", "none");
        } else {
            list(text, "Drops", self.drops.iter().map(|drop| format!("{}: {}", drop.name, drop.count)));
        }
    }
}

fn line(text: &mut String, label: &str, value: &str) {
    let label = if label.is_empty() { String::new() } else { format!("{label}:") };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{label:<11}{value}");
}

fn list(text: &mut String, label: &str, items: impl Iterator<Item = String>) {
    for (i, item) in items.enumerate() {
        line(text, if i == 0 { label } else { "" }, &item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> protocol::Status {
        protocol::Status {
            version: "0.1.0".to_owned(),
            pid: 42,
            node: "n1".to_owned(),
            reasons: vec![],
            node_ip: Some("192.0.2.1".parse().unwrap()),
            pod_cidr: Some("10.1.0.0/24".parse().unwrap()),
            underlay: Some("eth1".to_owned()),
            wires: vec!["eth2".to_owned()],
            left_out: vec![],
            mtu: Some(1450),
            pin_dir: "/sys/fs/bpf/shunt".into(),
            state_dir: "/var/lib/shunt".into(),
            source: Some(protocol::SourceStatus {
                from: "API server by the pod's service account".to_owned(),
                connected: true,
                heard_at_unix_ms: Some(1_071_000),
            }),
            http: Some("127.0.0.1:9466".parse().unwrap()),
            connect: Some(ConnectStatus::Active { cgroup: "/sys/fs/cgroup".into(), pods: 2 }),
            xdp: None,
            counts: protocol::Counts { nodes: 2, pods: 3, services: 4, backends: 5 },
            last_sync: Some(protocol::SyncReport { at_unix_ms: 1_000_000, duration_us: 1234, steps: 17 }),
            problems: vec![],
            notes: vec!["1 NetworkPolicy is accepted but not enforced yet".to_owned()],
        }
    }

    fn dataplane() -> Dataplane {
        let link = |name: &str, on: Option<&str>| Link { name: name.to_owned(), on: on.map(str::to_owned) };
        Dataplane {
            pin_dir: "/sys/fs/bpf/shunt".into(),
            links: vec![
                link("from_host_shunt0", Some("shunt0")),
                link("from_pod_shunt0123456789", Some("shunt0123456789")),
                link("from_wire_eth1", Some("eth1")),
                link("to_pod_shunt0123456789", None),
            ],
            maps: vec![MapFill { name: "CONNTRACK", entries: 1000, capacity: 524_288 }],
            drops: vec![DropCount { name: "source_spoofed", count: 7 }, DropCount { name: "no_route", count: 1 }],
        }
    }

    #[test]
    fn a_healthy_node_is_one_screen() {
        let report = Report::of(Ok(agent()), Ok(dataplane()));
        assert!(report.healthy);
        insta::assert_snapshot!(report.text(SystemTime::UNIX_EPOCH + Duration::from_secs(1075)), @r"
        Health:    healthy
        Agent:     shunt 0.1.0, pid 42
        Node:      n1, 192.0.2.1, pod range 10.1.0.0/24
        Underlay:  eth1, pod MTU 1450
        Wires:     eth2 besides the underlay
        Source:    API server by the pod's service account, last heard 4s ago
        Services:  TCP by connect() below /sys/fs/cgroup, of this host and 2 of 3 pods; else by packet
        HTTP:      127.0.0.1:9466
        In force:  2 nodes, 3 pods here, 4 service ports, 5 backends
        Last sync: 1m15s ago, 17 changes in 1.2 ms
        Notes:     1 NetworkPolicy is accepted but not enforced yet
        Links:     from_host_shunt0, from_wire_eth1, 2 of pods
        Maps:      conntrack: 1000 of 524288 (0.2 %)
        Drops:     source_spoofed: 7
                   no_route: 1
        ");
    }

    #[test]
    fn an_agent_of_before_these_fields_is_understood() {
        let mut value = serde_json::to_value(agent()).unwrap();
        for field in ["source", "http", "connect", "xdp"] {
            assert!(value.as_object_mut().unwrap().remove(field).is_some(), "{field}");
        }
        let old: protocol::Status = serde_json::from_value(value).unwrap();
        assert_eq!((old.source, old.http, old.connect, old.xdp), (None, None, None, None));
    }

    #[test]
    fn every_reason_is_told() {
        let mut sick = agent();
        sick.reasons.push("no Node named n1".to_owned());
        sick.problems.push(protocol::Problem {
            file: Some("services.yaml".to_owned()),
            document: Some(2),
            object: Some("Service default/web".to_owned()),
            field: Some("spec.ports[0].port".to_owned()),
            message: "is 70000: it must be 1 to 65535; the last good version stays in force".to_owned(),
            ..protocol::Problem::default()
        });
        sick.last_sync = None;
        sick.source =
            Some(protocol::SourceStatus { from: "files in /etc/cluster".to_owned(), connected: false, heard_at_unix_ms: None });
        sick.http = None;
        sick.wires.clear();
        sick.left_out = vec!["eth2".to_owned(), "eth3".to_owned()];
        sick.connect = Some(ConnectStatus::Unavailable("/sys/fs/cgroup is not a cgroup v2 directory".to_owned()));
        sick.xdp = Some(XdpStatus::Pops("eth1 is a veth device".to_owned()));
        let mut plane = dataplane();
        plane.links[0].on = None;
        let report = Report::of(Ok(sick), Ok(plane));
        assert!(!report.healthy);
        insta::assert_snapshot!(report.text(SystemTime::UNIX_EPOCH), @r"
        Health:    UNHEALTHY: 3 reasons
                   - no Node named n1
                   - a part of the cluster state is refused
                   - the link from_host_shunt0 is attached to nothing
        Agent:     shunt 0.1.0, pid 42
        Node:      n1, 192.0.2.1, pod range 10.1.0.0/24
        Underlay:  eth1, pod MTU 1450
        Wires:     none besides the underlay; without eth2, eth3, as configured
        Source:    files in /etc/cluster, NOT CONNECTED
        Services:  by packet: /sys/fs/cgroup is not a cgroup v2 directory
        XDP:       in the driver: pops the tunnel; node ports' packets are forwarded by TC: eth1 is a veth device
        HTTP:      off
        In force:  2 nodes, 3 pods here, 4 service ports, 5 backends
        Last sync: none yet
        Refused:   services.yaml: document 2: Service default/web: spec.ports[0].port: is 70000: it must be 1 to 65535; the last good version stays in force
        Notes:     1 NetworkPolicy is accepted but not enforced yet
        Links:     from_host_shunt0, from_wire_eth1, 2 of pods
        Maps:      conntrack: 1000 of 524288 (0.2 %)
        Drops:     source_spoofed: 7
                   no_route: 1
        ");
    }

    #[test]
    fn without_an_agent_the_dataplane_is_shown() {
        let report = Report::of(Err("no agent listens at /run/shunt/agent.sock".to_owned()), Ok(dataplane()));
        assert!(!report.healthy);
        insta::assert_snapshot!(report.text(SystemTime::UNIX_EPOCH), @r"
        Health:    UNHEALTHY: agent not running: no agent listens at /run/shunt/agent.sock
        Links:     from_host_shunt0, from_wire_eth1, 2 of pods
        Maps:      conntrack: 1000 of 524288 (0.2 %)
        Drops:     source_spoofed: 7
                   no_route: 1
        ");
        let nothing = Report::of(Err("no agent".to_owned()), Err("no dataplane can be read from /sys/fs/bpf/shunt".to_owned()));
        assert_eq!(nothing.reasons.len(), 2);
        assert_eq!(serde_json::to_value(&nothing).unwrap()["dataplane"], serde_json::Value::Null);
    }
}
