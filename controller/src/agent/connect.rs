//! Whether connections to Services are given a backend by `connect()`: as configured, and as the kernel lets us.

use crate::{
    config::{AgentOptions, ConnectTimeTranslation},
    kernel::{
        connect::{self, Cgroup, Connected},
        pins::PinDir,
        programs::{Programs, ProgramsError},
    },
    problem::with_causes,
};

/// Where connections to Services are given their backends.
#[derive(Debug)]
pub(super) enum Connect {
    /// At `connect()`, of processes below this cgroup.
    At(Cgroup),
    /// Packet by packet, as configured.
    Off,
    /// Packet by packet, for this reason.
    Unavailable(String),
}

impl Connect {
    /// As configured, and as far as the node has what it takes.
    pub(super) fn of(options: &AgentOptions) -> Self {
        match options.config.connect_time_translation {
            ConnectTimeTranslation::Off => Self::Off,
            ConnectTimeTranslation::Auto => {
                Cgroup::find(&options.cgroup).map_or_else(|error| Self::unavailable(&error), Self::At)
            }
        }
    }

    /// Puts the programs in force, if that is the way; whether they are. `connected` is the map `CONNECTED` that they use.
    pub(super) fn put_in_force(&mut self, programs: &mut Programs, connected: &Connected) -> bool {
        let Self::At(cgroup) = self else { return false };
        match programs.attach_connect(cgroup, connected) {
            Ok(()) => true,
            Err(error) => {
                *self = Self::unavailable(&error);
                false
            }
        }
    }

    /// Whether the programs are attached, where they should be.
    pub(super) fn stands(&self, dir: &PinDir) -> Result<bool, ProgramsError> {
        match self {
            Self::At(cgroup) => connect::is_attached(dir, cgroup),
            Self::Off | Self::Unavailable(_) => Ok(true),
        }
    }

    fn unavailable(error: &dyn std::error::Error) -> Self {
        let reason = with_causes(error);
        tracing::warn!("connections to Services are translated packet by packet, not when a socket is connected: {reason}");
        // The verifier says more than a screen holds.
        Self::Unavailable(reason.lines().next().unwrap_or_default().to_owned())
    }
}
