//! Every metric of the agent, with its unit and help. Names follow Prometheus' conventions: base units, the unit as a suffix,
//! `_total` for what only grows, the prefix `shunt_` (`process_` where everybody has that one). Where kube-proxy has a metric
//! that people have dashboards for, ours ends in the same words and has the same buckets.
//!
//! Below this: what is counted as it happens, what of the process is read at a scrape, and the text that goes out. Nothing of the kernel's
//! maps or of the agent's state enters; those who know put it into an [`exposition::Exposition`].

pub mod exposition;
pub mod instruments;
pub mod process;

use std::fmt;

/// Kinds of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process or of the map that is read.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
    /// Always 1; what it says is in its labels.
    Info,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        })
    }
}

/// A metric as it is documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// As queries have it (a histogram without `_bucket`, `_sum` and `_count`).
    pub name: &'static str,
    /// Its kind.
    pub kind: Kind,
    /// What is counted or measured, in the plural; a base unit if the name ends in one.
    pub unit: &'static str,
    /// Names of its labels, in the order of their values.
    pub labels: &'static [&'static str],
    /// One sentence for an operator.
    pub help: &'static str,
}

macro_rules! metrics {
    ($( $name:ident = $kind:ident $text:literal of $unit:literal [$($label:literal),*] $help:literal; )+) => {
        $( #[doc = $help] pub const $name: Metric =
            Metric { name: $text, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], help: $help }; )+
        /// All, in the order of the exposition.
        pub const ALL: &[Metric] = &[ $($name),+ ];
    };
}

metrics! {
    BUILD_INFO = Info "shunt_build_info" of "" ["version", "architecture"] "The version that runs.";
    READY = Gauge "shunt_ready" of "" [] "1 while /readyz answers 200, else 0.";
    UNHEALTHY = Gauge "shunt_unhealthy" of "" ["subject"] "1 while something is wrong with the subject, else 0; `shunt status` says what.";
    REFUSED_OBJECTS = Gauge "shunt_refused_objects" of "refusals" ["kind"] "Parts of the cluster state that are refused at present, by kind of object; \"none\" where no object could be made out.";

    DROPPED_PACKETS = Counter "shunt_dropped_packets_total" of "packets" ["reason"] "Packets dropped by the eBPF programs; counted since the maps were made, which is longer than the agent's life.";
    PACKETS = Counter "shunt_packets_total" of "packets" ["action"] "What the eBPF programs did with packets; a packet may count under several actions.";
    MAP_ENTRIES = Gauge "shunt_map_entries" of "entries" ["map"] "Entries in use in an eBPF map; of conntrack (two for a flow) as of its last whole sweep.";
    MAP_CAPACITY = Gauge "shunt_map_capacity_entries" of "entries" ["map"] "Entries that fit into an eBPF map.";
    SWEEP_DURATION = Histogram "shunt_conntrack_sweep_duration_seconds" of "seconds" [] "How long a round of forgetting expired flows took.";
    SWEEP_REMOVED = Counter "shunt_conntrack_sweep_removed_entries_total" of "entries" [] "Entries of expired flows that were removed.";

    SYNC_DURATION = Histogram "shunt_sync_duration_seconds" of "seconds" [] "How long it took to bring a change of the cluster state into force: compile, diff and write.";
    SYNC_WAIT = Histogram "shunt_sync_wait_seconds" of "seconds" [] "How long a change of the cluster state, once it had come in, waited for its turn: for whatever else the agent was doing, changes before it and its own look at everything included.";
    SYNC_FAILURES = Counter "shunt_sync_failures_total" of "failures" [] "Changes that could not be brought into force at first; they are tried again.";
    SYNC_STEPS = Counter "shunt_sync_steps_total" of "steps" [] "Changes made to maps and host routes.";
    SYNC_LAST_SUCCESS = Gauge "shunt_sync_last_success_timestamp_seconds" of "seconds" [] "When cluster state was last brought into force, since 1970.";
    AUDITS = Counter "shunt_audits_total" of "audits" ["finding"] "Times that maps and host routes were looked over, by what was found: \"as_known\", or \"differs\" where somebody else had changed them, and they are mended.";
    NETWORK_PROGRAMMING = Histogram "shunt_network_programming_duration_seconds" of "seconds" [] "From the change of a pod or Service that changed an EndpointSlice (its annotation endpoints.kubernetes.io/last-change-trigger-time) to the maps being written; as kube-proxy's metric of that name.";

    API_CONNECTED = Gauge "shunt_api_connected" of "" ["kind"] "1 while the kind is followed at the API server: listed once, and no request failing since; without an API server there is none.";
    API_HEARD = Gauge "shunt_api_last_heard_timestamp_seconds" of "seconds" ["kind"] "When the API server last said anything of the kind, since 1970; where nothing happens there is a bookmark each minute or so.";
    API_EVENTS = Counter "shunt_api_events_total" of "objects" ["kind"] "Objects that came, changed or went, those of lists included.";
    API_LISTS = Counter "shunt_api_lists_total" of "lists" ["kind"] "Lists read to their end; all but the first are relists.";
    API_REQUESTS = Counter "shunt_api_requests_total" of "requests" ["kind"] "Requests for a list or a watch, answered or not.";
    API_ERRORS = Counter "shunt_api_errors_total" of "errors" ["kind", "code"] "Requests and streams that failed, by the server's status code, or \"none\" if there was no answer.";

    NODES = Gauge "shunt_nodes" of "nodes" [] "Nodes of the cluster, this one included.";
    PODS = Gauge "shunt_pods" of "pods" [] "Pods attached on this node.";
    SERVICES = Gauge "shunt_service_ports" of "frontends" [] "Ports of Services on virtual IPs that are in force.";
    BACKENDS = Gauge "shunt_backends" of "backends" [] "Backends of all of these, draining ones included.";
    IPAM_ADDRESSES = Gauge "shunt_ipam_addresses" of "addresses" ["state"] "Addresses of the node's pod range: used, cooling (released less than a minute ago) and free.";
    CNI_REQUESTS = Counter "shunt_cni_requests_total" of "requests" ["request", "outcome"] "Requests of the CNI plugin by outcome: ok, or why not. An ADD is pod_add and pod_attach.";
    CNI_DURATION = Histogram "shunt_cni_request_duration_seconds" of "seconds" ["request"] "How long requests of the CNI plugin took in the agent, waiting included.";

    PROCESS_CPU = Counter "process_cpu_seconds_total" of "seconds" [] "CPU time of the agent, user and system.";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" of "descriptors" [] "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds" of "descriptors" [] "File descriptors that may be open.";
    PROCESS_VIRTUAL_MEMORY = Gauge "process_virtual_memory_bytes" of "bytes" [] "Virtual memory.";
    PROCESS_RESIDENT_MEMORY = Gauge "process_resident_memory_bytes" of "bytes" [] "Resident memory; the kernel's memory for eBPF maps is not in it.";
    PROCESS_START_TIME = Gauge "process_start_time_seconds" of "seconds" [] "When the process started, since 1970.";
}

impl Metric {
    /// The name of its family in OpenMetrics: without the suffix that its kind adds.
    #[must_use]
    pub fn family(&self) -> &'static str {
        let suffix = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        };
        self.name.strip_suffix(suffix).unwrap_or(self.name)
    }

    /// Its unit, if it is one of Prometheus' base units.
    #[must_use]
    pub fn base_unit(&self) -> Option<&'static str> {
        ["seconds", "bytes"].into_iter().find(|unit| *unit == self.unit)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for (place, metric) in ALL.iter().enumerate() {
            let name = metric.name;
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert!(name.starts_with("shunt_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), metric.kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_info"), metric.kind == Kind::Info, "{name}");
            for unit in ["seconds", "bytes"] {
                let has = metric.family().ends_with(&format!("_{unit}"));
                assert_eq!(has, metric.base_unit() == Some(unit), "{name} is of {:?}", metric.unit);
            }
            assert!(!["milliseconds", "_ms", "_us", "percent"].iter().any(|unit| name.contains(unit)), "{name}");
            assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']), "{name}: {}", metric.help);
            assert!(ALL[place + 1..].iter().all(|other| other.family() != metric.family()), "{name} is there twice");
        }
    }

    /// The table of `docs/metrics.md`.
    fn table() -> String {
        let mut table = "| metric | kind | unit | labels | |\n| --- | --- | --- | --- | --- |\n".to_owned();
        for metric in ALL {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, kind, unit, help) = (metric.name, metric.kind, metric.unit, metric.help);
            writeln!(table, "| `{name}` | {kind} | {unit} | {} | {help} |", labels.join(", ")).unwrap();
        }
        table
    }

    #[test]
    fn the_documentation_has_every_metric_as_it_is() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let text = std::fs::read_to_string(path).unwrap();
        let table = table();
        assert!(text.contains(&table), "the table in docs/metrics.md must be:\n\n{table}");
    }
}
