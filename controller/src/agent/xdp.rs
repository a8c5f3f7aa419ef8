//! Whether packets of the underlay are worked on at XDP: as configured, and as its driver lets us. What that doesn't do `from_wire` does.

use shunt_common::config::xdp_forwards;

use crate::{
    config::{AgentOptions, TunnelDecap},
    kernel::{
        links::{Kind, Link},
        netdev,
    },
    problem::with_causes,
};

/// What is done at XDP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Xdp {
    /// Nothing, as configured.
    Off,
    /// The tunnel is popped, and packets of clients outside for other nodes go back out, this way.
    Forwards(Sending),
    /// The tunnel is popped; why no more than that.
    Pops(String),
    /// Nothing, for this reason.
    Unavailable(String),
}

/// How packets go back out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sending {
    /// `XDP_TX`.
    Tx,
    /// `XDP_REDIRECT`: what one end of a veth pair sends by `XDP_TX` waits in the other end's queue until something else wakes that up, unless it
    /// has an XDP program of its own (`veth_xdp_flush` in drivers/net/veth.c).
    Redirect,
}

impl Xdp {
    /// As configured, and as far as the underlay has what it takes.
    pub(super) fn of(options: &AgentOptions, underlay: &Link) -> Self {
        if options.config.tunnel_decap != TunnelDecap::Xdp {
            return Self::Off;
        }
        // What a NIC's driver runs XDP programs with it sends by, too (`NETDEV_XDP_ACT_BASIC`).
        if underlay.kind != Kind::Veth {
            return Self::Forwards(Sending::Tx);
        }
        let name = &underlay.name;
        match netdev::sends_by_xdp(underlay.index) {
            Ok(true) => Self::Forwards(Sending::Redirect),
            Ok(false) => Self::Pops(format!(
                "{name} is a veth device whose other end takes nothing from XDP: turn GRO on there (ethtool -K DEVICE gro on)"
            )),
            Err(error) => Self::Pops(format!("the kernel does not say what {name}'s XDP can do: {}", with_causes(&error))),
        }
    }

    /// The same where programs may not see whether a packet's checksum is whole: they then leave to TC what would change it.
    pub(super) fn without_sight(self) -> Self {
        match self {
            Self::Forwards(_) => Self::Pops("programs cannot see whether checksums are whole: see Notes".to_owned()),
            other => other,
        }
    }

    /// Whether the program is to be attached.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self, Self::Forwards(_) | Self::Pops(_))
    }

    /// What programs are to know of it: one of [`xdp_forwards`].
    pub(super) fn leave(&self) -> u32 {
        match self {
            Self::Forwards(Sending::Tx) => xdp_forwards::TX,
            Self::Forwards(Sending::Redirect) => xdp_forwards::REDIRECT,
            Self::Off | Self::Pops(_) | Self::Unavailable(_) => xdp_forwards::NO,
        }
    }
}
