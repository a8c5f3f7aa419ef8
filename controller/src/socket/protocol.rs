//! What is said over the agent's socket. One request a line; one reply a line, or a line for each event of `monitor`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use shunt_common::net::Mac;

pub use crate::{
    attachment::{AttachmentKey, Pod, PodIdentity, PortMapping},
    problem::Problem,
};

use crate::attachment::mac_text;

/// A longer line is refused. The largest honest one is a GC with every attachment of a node (some 100 bytes each).
pub const MAX_LINE: usize = 1 << 20;

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "request")]
pub enum Request {
    /// Answered with [`Status`].
    Status,
    /// Answered with nothing if pods can be added, else with why not.
    Ready,
    /// Answered with a list of [`Pod`].
    Pods,
    /// Answered with [`PodAdded`].
    PodAdd(PodAdd),
    /// Answered with nothing.
    PodAttach(PodAttach),
    /// Answered with [`PodAdded`] if the host's side is as it should be.
    PodCheck(PodCheck),
    /// Answered with nothing, also if there was nothing to delete.
    PodDelete(PodDelete),
    /// Answered with [`PodGcDone`].
    PodGc(PodGc),
    /// Answered with a [`MonitorEvent`] a line until the client leaves.
    Monitor {
        /// Only [`Happening::Drop`] (and [`Happening::Lost`]).
        drops_only: bool,
    },
}

/// First phase of an ADD: reserve an address. Repeating it for one attachment gives the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAdd {
    /// The attachment.
    pub attachment: AttachmentKey,
    /// The network's name in the CNI configuration: what a GC is limited to.
    pub network: String,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// Whose attachment it is, if the runtime says so.
    #[serde(default)]
    pub pod: PodIdentity,
    /// Ports of the node that shall lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

/// What the plugin needs to build the interface pair, or to check the pod's end of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAdded {
    /// The pod's address, to be set as a /32.
    pub address: Ipv4Addr,
    /// The link-local gateway.
    pub gateway: Ipv4Addr,
    /// MTU of both ends, bytes.
    pub mtu: u32,
    /// Name of the host-side end.
    pub host_interface: String,
    /// MAC of the host-side end.
    #[serde(with = "mac_text")]
    pub host_mac: Mac,
    /// MAC of the pod's end.
    #[serde(with = "mac_text")]
    pub pod_mac: Mac,
}

/// Second phase of an ADD. The pair exists, the pod's end is configured and up, the host's end is **down**: the agent attaches the
/// programs, writes the map entry, route and neighbour, and brings it up last, so that no packet leaves a pod unguarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodAttach {
    /// The attachment.
    pub attachment: AttachmentKey,
    /// The cookie of the pod's network namespace, which only who is in there can read; without it the pod's connections to Services
    /// are translated packet by packet.
    #[serde(default)]
    pub netns_cookie: Option<u64>,
}

/// Is the host's side of an attachment as it should be: programs, map entry, route, address?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCheck {
    /// The attachment.
    pub attachment: AttachmentKey,
    /// The address that the runtime was told.
    pub address: Ipv4Addr,
}

/// Detach, remove the interface pair and release the address. No error if nothing is known of the attachment; the host-side
/// interface with its name is removed even then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodDelete {
    /// The attachment.
    pub attachment: AttachmentKey,
}

/// Delete every attachment of a network that is not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodGc {
    /// Attachments of other networks are left alone.
    pub network: String,
    /// What is to stay.
    pub valid: Vec<AttachmentKey>,
}

/// What a GC removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodGcDone {
    /// In order of their keys.
    pub removed: Vec<AttachmentKey>,
}

/// The outcome of a request, one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply<T> {
    /// As asked.
    Ok(T),
    /// Not done.
    Error(Refusal),
}

/// Why the agent did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// What kind of refusal, for programs.
    pub reason: RefusalReason,
    /// What is wrong and what to do, for people.
    pub message: String,
}

/// Kinds of refusal that a client tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RefusalReason {
    /// The request cannot be understood or carries an impossible value.
    BadRequest,
    /// The agent has not brought the dataplane up yet, so that pods cannot be added.
    NotReady,
    /// The same request may succeed soon.
    TryAgain,
    /// Every address of the pod range is taken.
    RangeFull,
    /// The Node has no usable pod range.
    RangeUnusable,
    /// Another pod has a port of the node that is asked for.
    PortTaken,
    /// No such attachment.
    Unknown,
    /// A check found something that is not as it should be.
    CheckFailed,
    /// The kernel or the disk refused. Of [`Request::Ready`]: the dataplane is broken, and pods that exist may be cut off.
    Failed,
}

impl RefusalReason {
    /// The word for it in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::NotReady => "not_ready",
            Self::TryAgain => "try_again",
            Self::RangeFull => "range_full",
            Self::RangeUnusable => "range_unusable",
            Self::PortTaken => "port_taken",
            Self::Unknown => "unknown",
            Self::CheckFailed => "check_failed",
            Self::Failed => "failed",
        }
    }
}

impl Refusal {
    /// A refusal with its message.
    #[must_use]
    pub fn new(reason: RefusalReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// What the agent alone knows of its health. What the kernel holds is read from the pins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Of the agent's binary.
    pub version: String,
    /// Of the agent.
    pub pid: u32,
    /// `--node-name`.
    pub node: String,
    /// Why the node is not healthy; healthy if empty.
    pub reasons: Vec<String>,
    /// Outer source of the tunnel, once known.
    pub node_ip: Option<Ipv4Addr>,
    /// The Node's pod range, once known.
    pub pod_cidr: Option<Ipv4Net>,
    /// The underlay interface, once known.
    pub underlay: Option<String>,
    /// The other interfaces by which clients of Services and answers to pods are taken in.
    #[serde(default)]
    pub wires: Vec<String>,
    /// Interfaces that could be such, and are not by the configuration (`devices`).
    #[serde(default)]
    pub left_out: Vec<String>,
    /// MTU of the pods, bytes, once known.
    pub mtu: Option<u32>,
    /// Where the maps and links are pinned.
    pub pin_dir: PathBuf,
    /// Where addresses are kept.
    pub state_dir: PathBuf,
    /// Where cluster state comes from.
    #[serde(default)]
    pub source: Option<SourceStatus>,
    /// Where health and metrics are answered, if anywhere.
    #[serde(default)]
    pub http: Option<SocketAddr>,
    /// Where connections to Services are given their backends, once the dataplane is up.
    #[serde(default)]
    pub connect: Option<ConnectStatus>,
    /// What is done at XDP, where that is configured and the dataplane is up.
    #[serde(default)]
    pub xdp: Option<XdpStatus>,
    /// Sizes of what is in force.
    pub counts: Counts,
    /// The last time that cluster state was brought into force, if ever.
    pub last_sync: Option<SyncReport>,
    /// What of the cluster state was refused.
    pub problems: Vec<Problem>,
    /// What an operator should know though it is no fault: policies that are not enforced, for one.
    pub notes: Vec<String>,
}

/// Where cluster state comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// In words: a directory, or by what an API server was found.
    pub from: String,
    /// Whether changes come in, as far as is known.
    pub connected: bool,
    /// When an API server last said anything of the kind that it was silent of longest, milliseconds since 1970.
    #[serde(default)]
    pub heard_at_unix_ms: Option<u64>,
}

/// Whether sockets are connected to backends, or their packets translated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConnectStatus {
    /// `connect()` does it for TCP.
    #[serde(rename_all = "camelCase")]
    Active {
        /// For processes in this cgroup and below it.
        cgroup: PathBuf,
        /// For how many pods of this node; those of unknown network namespaces are served packet by packet.
        pods: u64,
    },
    /// Packets are translated, as configured.
    Off,
    /// Packets are translated, for this reason.
    Unavailable(String),
}

/// What is done with packets of the underlay at XDP, in its driver; TC does the rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum XdpStatus {
    /// The tunnel is popped, and packets of clients outside for backends on other nodes are forwarded, and the answers.
    Forwards,
    /// The tunnel is popped, and nothing is forwarded, for this reason.
    Pops(String),
    /// Nothing, for this reason.
    Unavailable(String),
}

/// How much is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Nodes of the cluster, this one included.
    pub nodes: u64,
    /// Pods attached to this node.
    pub pods: u64,
    /// Frontends: a Service's port on one of its virtual IPs.
    pub services: u64,
    /// Backends, draining ones included.
    pub backends: u64,
}

/// A round of bringing cluster state into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncReport {
    /// When it ended, milliseconds since 1970.
    pub at_unix_ms: u64,
    /// How long it took, microseconds.
    pub duration_us: u64,
    /// How many changes it made to the kernel.
    pub steps: u64,
}

/// One line of `monitor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorEvent {
    /// Milliseconds since 1970.
    pub unix_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: Happening,
}

/// What can be watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "event")]
pub enum Happening {
    /// A packet was dropped.
    Drop(DroppedPacket),
    /// Cluster state came into force.
    Synced(SyncReport),
    /// A part of the cluster state was refused.
    Problem(Problem),
    /// A pod was attached.
    PodAttached(Pod),
    /// A pod was removed.
    PodDeleted(Pod),
    /// This listener was too slow and missed events.
    Lost {
        /// How many.
        events: u64,
    },
}

/// A dropped packet, as it was when it was parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DroppedPacket {
    /// [`DropReason::name`](shunt_common::verdict::DropReason::name).
    pub reason: String,
    /// The program that dropped it.
    pub program: String,
    /// The interface whose hook saw it; its number if it is gone.
    pub interface: String,
    /// Bytes, Ethernet header included.
    pub length: u32,
    /// EtherType.
    pub ethertype: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Source address, if it was parsed.
    pub source: Option<IpAddr>,
    /// Destination address, if it was parsed.
    pub destination: Option<IpAddr>,
    /// Source port, 0 if there is none.
    pub source_port: u16,
    /// Destination port, 0 if there is none.
    pub destination_port: u16,
}
