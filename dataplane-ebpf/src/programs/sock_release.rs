//! The end of a socket, when the last process that had it open has closed it.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use shunt_common::net::V4;

use super::PROCEED;
use crate::{socket::Closed, stages::connect};

#[cgroup_sock(sock_release)]
#[inline(always)]
fn sock_release(ctx: SockContext) -> i32 {
    connect::end::<V4>(&Closed::new(ctx));
    PROCEED
}
