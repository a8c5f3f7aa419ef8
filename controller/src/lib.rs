//! The user side of shunt. Data flows one way: cluster objects -> model -> compile -> diff -> kernel maps.

pub mod agent;
pub mod announce;
pub mod attachment;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod compile;
pub mod config;
pub mod diff;
pub mod disk;
pub mod ending;
pub mod http;
pub mod install;
pub mod ipam;
pub mod kernel;
pub mod metrics;
pub mod model;
pub mod problem;
pub mod socket;
pub mod takeover;
