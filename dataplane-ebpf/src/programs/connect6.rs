//! `connect()` to an IPv6 address, which may be one of IPv4 in that form.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use shunt_common::net::V4;

use super::PROCEED;
use crate::{
    socket::{Mapped, Socket},
    stages::connect,
};

#[cgroup_sock_addr(connect6)]
#[inline(always)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect::translate::<V4, Mapped>(&Socket::new(ctx));
    PROCEED
}
