//! What the kernel and the user side of shunt agree on: addresses and ports in network order, the layout of every map,
//! the reasons for a drop, and the packet arithmetic that needs neither a kernel nor a map.
//!
//! Nothing here does I/O, allocates or imports another crate of ours, so that both sides and every host test can use it.
#![no_std]

#[macro_use]
mod abi;

pub mod address;
pub mod affinity;
pub mod backend;
pub mod checksum;
pub mod config;
pub mod connect;
pub mod conntrack;
pub mod event;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod maps;
pub mod neighbour;
pub mod net;
pub mod service;
pub mod shortcut;
pub mod snat;
pub mod tcp;
pub mod timeout;
pub mod verdict;
pub mod vxlan;
