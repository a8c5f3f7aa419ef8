//! Every program, packet by packet: the whole outcome of each, to the last byte and counter.

mod direct;
mod from_host;
mod from_pod;
mod from_wire;
mod frontends;
mod neighbour;
mod shortcut;
mod to_pod;
mod to_wire;
mod turn_back;
mod way_out;

use shunt_lab::test_run::{dataplane as harness, packet};
