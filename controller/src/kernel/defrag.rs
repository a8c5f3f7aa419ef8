//! Reassembly of fragments in the host's stack, without a rule of iptables or nftables to ask for it.
//!
//! A netfilter link with `BPF_F_NETFILTER_IP_DEFRAG` turns the kernel's reassembly on in front of it; its program accepts everything.
//! The link is pinned as the others are.

use std::{io, os::fd::AsFd as _};

use super::{
    pins::{PinDir, PinError},
    sys::{self, Target},
};

/// Name of the pinned link.
pub const PIN: &str = "defrag";

/// The kernel wants the program to run after its reassembly: NF_IP_PRI_CONNTRACK_DEFRAG is -400 (include/uapi/linux/netfilter_ipv4.h).
/// A priority takes one BPF program, so that there are some to try.
const PRIORITIES: std::ops::Range<i32> = -399..-390;

/// Why the host does not reassemble for us.
#[derive(Debug, thiserror::Error)]
pub enum DefragError {
    /// The kernel cannot.
    #[error(
        "this kernel cannot reassemble fragments for us (Linux 6.6 with CONFIG_NETFILTER_BPF_LINK and CONFIG_NF_DEFRAG_IPV4 can): \
         fragments of translated datagrams that arrive out of order are dropped and counted"
    )]
    Unsupported(#[source] io::Error),
    /// The link cannot be pinned.
    #[error("cannot pin the link that turns reassembly on")]
    Pin(#[source] io::Error),
    /// The pin directory refuses.
    #[error(transparent)]
    Directory(#[from] PinError),
}

/// Turns reassembly on in this network namespace, unless it is on already.
///
/// # Errors
/// The kernel cannot; the dataplane works without, see [`DefragError::Unsupported`].
pub fn ensure(dir: &PinDir) -> Result<(), DefragError> {
    let pinned = dir.link_target(PIN)? == Some(Target::Netfilter);
    let program = sys::load_accept_all().map_err(DefragError::Unsupported)?;
    // A link doesn't tell its namespace. A priority that is taken while a pin is there is that of the pin's link; a priority that
    // is free means that the pin is of a namespace that is gone.
    let tries = if pinned { PRIORITIES.start..PRIORITIES.start + 1 } else { PRIORITIES };
    let mut busy = io::Error::from_raw_os_error(libc::EBUSY);
    for priority in tries {
        match sys::link_pre_routing_defrag(program.as_fd(), priority) {
            Ok(link) => {
                dir.remove_link(PIN)?;
                return sys::pin(link.as_fd(), &dir.links().join(PIN)).map_err(DefragError::Pin);
            }
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => busy = error,
            Err(error) => return Err(DefragError::Unsupported(error)),
        }
    }
    if pinned { Ok(()) } else { Err(DefragError::Unsupported(busy)) }
}
