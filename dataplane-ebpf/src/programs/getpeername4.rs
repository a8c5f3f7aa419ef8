//! `getpeername()` of an IPv4 socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use shunt_common::net::V4;

use super::PROCEED;
use crate::{
    socket::{Inet, Socket},
    stages::connect,
};

#[cgroup_sock_addr(getpeername4)]
#[inline(always)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    connect::name_peer::<V4, Inet>(&Socket::new(ctx));
    PROCEED
}
