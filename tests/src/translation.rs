//! How connections to Services are translated, and tests of both ways.

use anyhow::{Result, ensure};
use shunt::socket::protocol::ConnectStatus;

use crate::node::Node;

/// How connections to Services are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// Once, when a socket is connected.
    Connect,
    /// Packet by packet.
    Packet,
}

impl Translation {
    /// The line of the agent's configuration.
    pub(crate) fn config(self) -> &'static str {
        match self {
            Self::Connect => "connectTimeTranslation: auto\n",
            Self::Packet => "connectTimeTranslation: off\n",
        }
    }

    /// Whether an agent does as it was told.
    pub(crate) fn check(self, node: &Node) -> Result<()> {
        let status = node.status()?.connect;
        let is_it = match self {
            Self::Connect => matches!(status, Some(ConnectStatus::Active { .. })),
            Self::Packet => status == Some(ConnectStatus::Off),
        };
        ensure!(is_it, "{} was told to translate by {self:?}, and says {status:?}", node.name);
        Ok(())
    }
}

/// Runs each of some functions as two tests, one for each [`Translation`].
#[macro_export]
macro_rules! both_translations {
    ($($test:ident),+ $(,)?) => {
        mod by_connect {
            $(#[test] fn $test() -> anyhow::Result<()> { super::$test($crate::translation::Translation::Connect) })+
        }
        mod by_packet {
            $(#[test] fn $test() -> anyhow::Result<()> { super::$test($crate::translation::Translation::Packet) })+
        }
    };
}
