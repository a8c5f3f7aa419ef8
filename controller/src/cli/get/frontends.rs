//! Frontends, and why each has the backends that it has. Pure: entries in, rows out.

use std::net::Ipv4Addr;

use serde::Serialize;
use shunt_common::service::{flags, kind};

use crate::{
    cli::output::{Row, protocol},
    kernel::read::{BackendRow, ServiceRow},
};

/// A port at which clients find a Service or a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrontendRow {
    /// `ClusterIP`, `NodePort`, `LoadBalancer`, `ExternalIP` or `HostPort`.
    #[serde(rename = "type")]
    kind: &'static str,
    address: Ipv4Addr,
    port: u16,
    protocol: String,
    /// What is out of the ordinary.
    policy: Vec<String>,
    /// What a client in the cluster gets while there is no backend: `refuse` or `drop`.
    when_empty: &'static str,
    /// For clients in the cluster.
    backends: Vec<FrontendBackend>,
    /// For clients from the outside.
    outside_backends: Vec<FrontendBackend>,
}

/// A backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FrontendBackend {
    id: u32,
    address: Ipv4Addr,
    port: u16,
}

impl Row for FrontendRow {
    const COLUMNS: &'static [&'static str] =
        &["TYPE", "ADDRESS", "PORT", "PROTOCOL", "POLICY", "WHEN EMPTY", "BACKENDS", "FROM OUTSIDE"];

    fn cells(&self) -> Vec<String> {
        let outside =
            if self.outside_backends == self.backends { "the same".to_owned() } else { listed(&self.outside_backends) };
        vec![
            self.kind.to_owned(),
            self.address.to_string(),
            self.port.to_string(),
            self.protocol.clone(),
            self.policy.join(", "),
            self.when_empty.to_owned(),
            listed(&self.backends),
            outside,
        ]
    }
}

/// The first few.
fn listed(backends: &[FrontendBackend]) -> String {
    const SHOWN: usize = 3;
    let mut shown: Vec<String> =
        backends.iter().take(SHOWN).map(|backend| format!("{}:{}", backend.address, backend.port)).collect();
    if backends.len() > SHOWN {
        shown.push(format!("and {} more", backends.len() - SHOWN));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

/// By address, port and protocol.
pub(super) fn rows(services: Vec<ServiceRow>) -> Vec<FrontendRow> {
    let row = |row: ServiceRow| FrontendRow {
        kind: match row.service.kind() {
            kind::CLUSTER_IP => "ClusterIP",
            kind::NODE_PORT => "NodePort",
            kind::LOAD_BALANCER => "LoadBalancer",
            kind::EXTERNAL_IP => "ExternalIP",
            kind::HOST_PORT => "HostPort",
            _ => "unknown",
        },
        address: row.key.addr.into(),
        port: row.key.port.to_host(),
        protocol: protocol(row.key.proto),
        policy: policy(&row),
        when_empty: if row.service.flags & flags::DROP_WHEN_EMPTY == 0 { "refuse" } else { "drop" },
        backends: backends(&row.cluster),
        outside_backends: backends(&row.outside),
    };
    services.into_iter().map(row).collect()
}

fn backends(rows: &[BackendRow]) -> Vec<FrontendBackend> {
    let row =
        |row: &BackendRow| FrontendBackend { id: row.id, address: row.backend.addr.into(), port: row.backend.port.to_host() };
    rows.iter().map(row).collect()
}

/// What is out of the ordinary, in words.
fn policy(row: &ServiceRow) -> Vec<String> {
    let flags = row.service.flags;
    let has = |flag: u32| flags & flag != 0;
    let is_exposed = has(flags::EXTERNAL);
    let mut words = Vec::new();
    if has(flags::LOCAL) {
        words.push("internal Local".to_owned());
    }
    if is_exposed && has(flags::OUTSIDE_LOCAL) {
        words.push("external Local".to_owned());
    }
    if has(flags::DIRECT_RETURN) {
        words.push("direct return".to_owned());
    }
    if has(flags::AFFINITY) {
        words.push(format!("affinity {} s", row.service.affinity_secs));
    }
    if has(flags::MAGLEV) {
        words.push("maglev".to_owned());
    }
    if has(flags::SOURCE_RANGES) {
        let ranges = row.source_ranges.iter().map(|range| format!("{}/{}", range.clients.addr, range.len.saturating_sub(32)));
        words.push(format!("from {}", ranges.collect::<Vec<_>>().join(" ")));
    }
    words
}

#[cfg(test)]
mod tests {
    use shunt_common::{
        net::{Ip4, Port, proto},
        service::{Backend, Run, Service, ServiceClient, ServiceKey, SourceRange, state},
    };

    use super::*;
    use crate::cli::output::table;

    #[test]
    fn a_frontend_says_why_it_has_its_backends() {
        let backend = |id: u32| BackendRow {
            id,
            backend: Backend {
                addr: Ip4::new(10, 1, 0, id as u8),
                port: Port::from_host(8080),
                state: state::ACTIVE,
                flags: 0,
                generation: 1,
            },
        };
        let row = |last, kind: u32, flags: u32, cluster: Vec<BackendRow>, outside: Vec<BackendRow>| ServiceRow {
            key: ServiceKey { addr: Ip4::new(10, 96, 0, last), port: Port::from_host(80), proto: proto::TCP, reserved: 0 },
            service: Service {
                cluster: Run { base: 0, count: cluster.len() as u32 },
                outside: Run { base: 0, count: outside.len() as u32 },
                flags: flags | kind << flags::KIND_SHIFT,
                affinity_secs: 600,
                id: 1,
            },
            cluster,
            outside,
            source_ranges: vec![SourceRange { len: 40, clients: ServiceClient { service: 1, addr: Ip4::new(10, 0, 0, 0) } }],
        };
        let five: Vec<_> = (1..=5).map(backend).collect();
        let exposed = flags::EXTERNAL | flags::OUTSIDE_LOCAL | flags::KEEP_SOURCE;
        let rows = rows(vec![
            row(1, kind::CLUSTER_IP, 0, vec![], vec![]),
            row(2, kind::CLUSTER_IP, flags::LOCAL | flags::OUTSIDE_LOCAL | flags::DROP_WHEN_EMPTY, vec![], vec![]),
            row(3, kind::NODE_PORT, exposed, five, vec![backend(2)]),
            row(
                4,
                kind::LOAD_BALANCER,
                flags::EXTERNAL | flags::SOURCE_RANGES | flags::MAGLEV,
                vec![backend(1)],
                vec![backend(1)],
            ),
            row(5, kind::EXTERNAL_IP, flags::EXTERNAL | flags::AFFINITY, vec![backend(1)], vec![backend(1)]),
            row(6, kind::HOST_PORT, flags::EXTERNAL | flags::KEEP_SOURCE, vec![backend(1)], vec![backend(1)]),
        ]);
        insta::assert_snapshot!(table(&rows), @r"
        TYPE           ADDRESS     PORT   PROTOCOL   POLICY                    WHEN EMPTY   BACKENDS                                                  FROM OUTSIDE
        ClusterIP      10.96.0.1   80     TCP        -                         refuse       none                                                      the same
        ClusterIP      10.96.0.2   80     TCP        internal Local            drop         none                                                      the same
        NodePort       10.96.0.3   80     TCP        external Local            refuse       10.1.0.1:8080, 10.1.0.2:8080, 10.1.0.3:8080, and 2 more   10.1.0.2:8080
        LoadBalancer   10.96.0.4   80     TCP        maglev, from 10.0.0.0/8   refuse       10.1.0.1:8080                                             the same
        ExternalIP     10.96.0.5   80     TCP        affinity 600 s            refuse       10.1.0.1:8080                                             the same
        HostPort       10.96.0.6   80     TCP        -                         refuse       10.1.0.1:8080                                             the same
        ");
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!((&json[2]["type"], json[2]["backends"].as_array().unwrap().len()), (&"NodePort".into(), 5));
    }
}
