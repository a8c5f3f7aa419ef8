//! Addresses from the Node's pod range, and the record of who has which: STATE_DIR/`ipam.json`.
//!
//! [`book`] decides and knows no disk and no clock; `file` keeps it through crashes. What is answered was on disk before.

pub mod book;
mod file;
mod ports;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::Ipv4Net;

use crate::{
    attachment::{AttachmentKey, Pod, PortMapping},
    disk::DiskError,
    socket::protocol::{PodAdd, Refusal, RefusalReason},
};
use book::{Book, Tally};

/// Why there is no address, or no book of addresses.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// The Node has no range.
    #[error("the Node has no IPv4 podCIDR: set spec.podCIDR and spec.podCIDRs of this Node")]
    NoRange,
    /// The range has no room for a pod.
    #[error(
        "podCIDR {0} is too small: a /30 is the least, since its network, gateway and broadcast addresses are not given to pods"
    )]
    RangeTooSmall(Ipv4Net),
    /// Every address is held.
    #[error(
        "podCIDR {range} is full: all of its {usable} addresses for pods are held; delete pods or give the Node a larger range"
    )]
    Full {
        /// The Node's range.
        range: Ipv4Net,
        /// How many addresses it has for pods.
        usable: u32,
    },
    /// Those not held were released too lately.
    #[error(
        "podCIDR {range} has no address that may be used yet: {cooling} were released less than {} s ago; try again in {} s",
        book::COOL_DOWN.as_secs(), .wait.as_secs() + 1
    )]
    Cooling {
        /// The Node's range.
        range: Ipv4Net,
        /// How many addresses wait.
        cooling: usize,
        /// Until the first may be used.
        wait: Duration,
    },
    /// Two attachments have one address.
    #[error("{address} cannot be adopted for {wanted}: {holder} has it; delete one of these pods")]
    Held {
        /// The address.
        address: Ipv4Addr,
        /// Who is to have it.
        wanted: AttachmentKey,
        /// Who has it.
        holder: AttachmentKey,
    },
    /// Two pods want one port of the node.
    #[error(
        "the hostPort {wanted} cannot be given: {held} is {holder}'s; delete one of these pods, or give one another hostPort or hostIP"
    )]
    PortTaken {
        /// What is asked for.
        wanted: PortMapping,
        /// What there is.
        held: PortMapping,
        /// Whose that is.
        holder: String,
    },
    /// The file is not what was written.
    #[error(
        "cannot use the address book {}: {problem}. It says which addresses pods have, so it is not guessed: put a good copy in its \
         place, or, when no pod runs on this node, remove the file; then start the agent again", .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<IpamError> for Refusal {
    fn from(error: IpamError) -> Self {
        let reason = match &error {
            IpamError::NoRange | IpamError::RangeTooSmall(_) => RefusalReason::RangeUnusable,
            IpamError::Full { .. } => RefusalReason::RangeFull,
            IpamError::Cooling { .. } => RefusalReason::TryAgain,
            IpamError::PortTaken { .. } => RefusalReason::PortTaken,
            IpamError::Held { .. } | IpamError::Corrupt { .. } | IpamError::Disk(_) => RefusalReason::Failed,
        };
        Self::new(reason, error.to_string())
    }
}

/// The address book of a node: every change is on disk before it is answered.
#[derive(Debug)]
pub struct Ipam {
    path: PathBuf,
    book: Book,
}

impl Ipam {
    /// Opens the book in a state directory (made if missing, mode 0700). A book that never was is empty.
    ///
    /// # Errors
    /// The file cannot be read, or is not what was written.
    pub fn open(state_dir: &Path) -> Result<Self, IpamError> {
        file::make_dir(state_dir)?;
        let path = state_dir.join(file::NAME);
        let book = file::read(&path)?.unwrap_or_default();
        Ok(Self { path, book })
    }

    /// Gives an attachment its address: the one it has if it has one, else the next free one of the range after the last given. And the
    /// ports of the node that it asks for, which a new sandbox of a pod takes over from the old one. `range` is the Node's present podCIDR.
    /// `taken` tells of addresses that are in use though the book doesn't have them.
    ///
    /// # Errors
    /// There is none to give, another pod has such a port, or it could not be recorded.
    pub fn allocate(
        &mut self,
        request: &PodAdd,
        range: Option<Ipv4Net>,
        taken: impl Fn(Ipv4Addr) -> bool,
        now: SystemTime,
    ) -> Result<Pod, IpamError> {
        let mut book = self.book.clone();
        let pod = book.allocate(request, range, taken, since_epoch(now))?;
        self.commit(book)?;
        Ok(pod)
    }

    /// Enters pods that another network's plugin has given addresses to; those that are there already stay as they are.
    ///
    /// # Errors
    /// An address is another attachment's, or it could not be recorded.
    pub fn adopt(&mut self, pods: Vec<Pod>) -> Result<(), IpamError> {
        let mut book = self.book.clone();
        for pod in pods {
            book.adopt(pod)?;
        }
        self.commit(book)
    }

    /// Takes an attachment's address back. `None` if it has none.
    ///
    /// # Errors
    /// It could not be recorded.
    pub fn release(&mut self, key: &AttachmentKey, now: SystemTime) -> Result<Option<Pod>, IpamError> {
        let mut book = self.book.clone();
        let released = book.release(key, since_epoch(now));
        if released.is_some() {
            self.commit(book)?;
        }
        Ok(released)
    }

    /// Whether addresses can be given from a range, as far as the range goes.
    ///
    /// # Errors
    /// Why not.
    pub fn check_range(&self, range: Option<Ipv4Net>) -> Result<(), IpamError> {
        self.book.usable(range).map(|_| ())
    }

    /// How many of a range's addresses for pods are held, how many released too lately, and how many free.
    #[must_use]
    pub fn tally(&self, range: Option<Ipv4Net>, now: SystemTime) -> Option<Tally> {
        self.book.tally(range, since_epoch(now))
    }

    /// Pods whose address is of a range that the Node had before, if there are any: they keep it as long as they live.
    #[must_use]
    pub fn left_outside(&self, range: Ipv4Net) -> Option<String> {
        self.book.left_outside(range)
    }

    /// All attachments.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<AttachmentKey, Pod> {
        self.book.pods()
    }

    fn commit(&mut self, book: Book) -> Result<(), IpamError> {
        if book != self.book {
            file::write(&self.path, &book)?;
            self.book = book;
        }
        Ok(())
    }
}

/// The attachments in a state directory, without opening it for writing: for readers beside an agent.
///
/// # Errors
/// As [`Ipam::open`]; a book that never was is empty.
pub fn read_pods(state_dir: &Path) -> Result<Vec<Pod>, IpamError> {
    let book = file::read(&state_dir.join(file::NAME))?.unwrap_or_default();
    Ok(book.pods().values().cloned().collect())
}

/// Removes the book and what a crash left of writing it, for `cleanup`. No error if there is none.
///
/// # Errors
/// The file system refused.
pub fn remove(state_dir: &Path) -> Result<(), IpamError> {
    file::remove(&state_dir.join(file::NAME))
}

/// A clock before 1970 counts as 1970: the book copes with clocks that jump.
fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}
