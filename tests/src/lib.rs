//! The lab: network namespaces as nodes, pods and the world outside, wired as a rack is.
//!
//! ```text
//!                      outside 203.0.113.10
//!                         |
//!                      router  203.0.113.1
//!                         |    192.0.2.1
//!        -----------------+--- fabric (a bridge, MTU 1500) ------
//!         |                 |                       |
//!     n1 192.0.2.11     n2 192.0.2.12           f3 192.0.2.13
//!     |  shunt agent    |  shunt agent          |  plain kernel: flannel.1, cni0
//!     pods              pods                    pods
//!     10.244.1.0/24     10.244.2.0/24           10.244.3.0/24
//! ```
//!
//! A lab is isolated from the machine and from other labs: every link lives inside a namespace of its own, and names of
//! namespaces, pins and cgroups carry the lab's id. Dropping a [`lab::Lab`] removes all of it; what a killed process left
//! behind is removed by the next lab. Needs root, and nothing of shunt but the binary that `SHUNT_BIN` names.

pub mod api_server;
pub mod bench;
pub mod capture;
pub mod cluster;
pub mod command;
pub mod demo;
pub mod flannel;
mod flannel_rules;
pub mod foreign;
pub mod kube_proxy;
pub mod lab;
pub mod netns;
pub mod node;
pub mod plain;
pub mod pod;
pub mod real_api;
pub mod scene;
pub mod service;
pub mod standing;
pub mod synthetic;
pub mod terminal;
pub mod test_run;
pub mod topology;
pub mod traffic;
pub mod translation;
pub mod underlay;
