//! `getpeername()` of an IPv6 socket.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use shunt_common::net::V4;

use super::PROCEED;
use crate::{
    socket::{Mapped, Socket},
    stages::connect,
};

#[cgroup_sock_addr(getpeername6)]
#[inline(always)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    connect::name_peer::<V4, Mapped>(&Socket::new(ctx));
    PROCEED
}
