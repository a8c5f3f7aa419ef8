//! `connect()` to an IPv4 address.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use shunt_common::net::V4;

use super::PROCEED;
use crate::{
    socket::{Inet, Socket},
    stages::connect,
};

#[cgroup_sock_addr(connect4)]
#[inline(always)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect::translate::<V4, Inet>(&Socket::new(ctx));
    PROCEED
}
