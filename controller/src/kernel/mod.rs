//! The kernel as the agent sees it. Only this room imports aya, and only `netlink`, `links`, `routes` and `watch` speak netlink
//! (the plugin has a socket of its own in the pod's namespace).

pub mod bpf;
pub mod cleanup;
pub mod defrag;
pub mod events;
pub mod fake;
pub mod features;
pub mod links;
pub mod maps;
pub mod netlink;
pub mod pins;
pub mod programs;
pub mod read;
pub mod routes;
pub mod step;
pub mod sweeper;
pub mod sys;
pub mod sysctl;
pub mod table;
pub mod watch;
