//! Taking a node over from flannel and kube-proxy while its pods run, and giving it back.
//!
//! What is there is looked at ([`survey`]) and becomes a plan or a refusal ([`plan`]); what has to be known to undo it is written down
//! ([`record`]) before anything is touched. Then, each step so that a crash behind it leaves a node that works, and so that doing it again does no harm:
//!
//! 1. The pods' addresses are entered into our address book.
//! 2. Devices and maps: `shunt0` stands beside `flannel.1`, which keeps its socket, address, neighbours and forwarding entries.
//! 3. Programs are attached with the map `TAKEOVER` set: a packet of a flow that is not known goes on to the host's stack, which knows the flows
//!    there were, by kube-proxy's rules. A connection that begins now is ours.
//! 4. kube-proxy's rules go out of force. The stack opens no translated flow of a pod any more, and goes on with those that it has.
//! 5. Those are read ([`flows`]): flows of pods to Services become ours, all other translated ones are marked as the stack's, until they end.
//! 6. `TAKEOVER` is cleared, flannel's masquerading goes.
//! 7. The host's routes to other nodes' pods change over, each replaced in one step; before that, masqueraded flows that the stack would end with
//!    their device are freed from it. What is left of both rule sets is removed.
//!
//! Adopted pods stay on flannel's bridge, which answers their ARP and passes on what we leave to the stack. This room decides and knows other
//! software's names; it writes no map and starts nothing by itself.

use std::{io, path::PathBuf};

pub mod allocations;
pub mod conf;
pub mod flows;
pub mod plan;
pub mod record;
pub mod rollback;
pub mod rules;
pub mod survey;

/// Why a takeover or a rollback goes no further.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The node is not one that can be taken over; nothing was touched.
    #[error("this node cannot be taken over: {0}")]
    Refused(#[from] plan::Refusal),
    /// Devices or routes.
    #[error(transparent)]
    Links(#[from] crate::kernel::links::LinksError),
    /// Settings.
    #[error(transparent)]
    Settings(#[from] crate::install::settings::SettingsError),
    /// The record's file.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskError),
    /// Maps or routes.
    #[error(transparent)]
    Kernel(crate::kernel::bpf::BpfError),
    /// A map.
    #[error(transparent)]
    Table(#[from] crate::kernel::table::TableError),
    /// Pins.
    #[error(transparent)]
    Pins(#[from] crate::kernel::pins::PinError),
    /// The address book.
    #[error(transparent)]
    Ipam(#[from] crate::ipam::IpamError),
    /// The record is not what was written.
    #[error(
        "cannot use the record of the takeover {}: {problem}. It says how to put the node back: put a good copy in its place",
        .path.display()
    )]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A file.
    #[error("cannot {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// netfilter.
    #[error("cannot {action}")]
    Netfilter {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A rollback was interrupted.
    #[error("this node is being put back: run `shunt rollback` again, then start the agent")]
    RollbackUnfinished,
    /// Nothing to undo.
    #[error("this node was not taken over: there is no {}", .0.display())]
    NotTakenOver(PathBuf),
}

/// For `map_err` on what netfilter answers.
pub(crate) fn netfilter(action: &'static str) -> impl FnOnce(io::Error) -> TakeoverError {
    move |source| TakeoverError::Netfilter { action, source }
}
