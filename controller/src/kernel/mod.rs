//! The kernel as the agent sees it. Only this room imports aya, and only it speaks netlink: `netlink`, `links`, `headroom`, `routes`, `contested`,
//! `ports` and `watch` of routing, `nfnetlink`, `nf_tables` and `nf_conntrack` of netfilter, `netdev` of drivers (the plugin has a socket of its own in
//! the pod's namespace).

pub mod bpf;
pub mod cleanup;
pub mod connect;
pub mod contested;
pub mod defrag;
pub mod events;
pub mod fake;
pub mod features;
pub mod grace;
pub mod headroom;
pub mod links;
pub mod maps;
pub mod netdev;
pub mod netlink;
pub mod netns;
pub mod nf_conntrack;
pub mod nf_tables;
mod nfnetlink;
pub mod pins;
pub mod ports;
pub mod programs;
pub mod read;
pub mod routes;
pub mod skb;
pub mod step;
pub mod sweeper;
pub mod sys;
pub mod sysctl;
pub mod table;
pub mod watch;
pub mod xtables;
