//! What has to be known to put a node back, and how far its takeover has come: STATE_DIR/`takeover.json`. Written before anything is touched,
//! replaced as a whole.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{TakeoverError, rules::Kept};
use crate::{
    disk,
    kernel::{grace, routes::OthersRoute},
};

/// Name of the file in a state directory.
const NAME: &str = "takeover.json";
const MODE: u32 = 0o600;

/// Raised when the file's layout changes its meaning.
const VERSION: u32 = 1;

/// How far a takeover has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Under way: to be gone on with.
    Begun,
    /// In force.
    Done,
    /// Being undone: to be gone on with by `shunt rollback`, and by no agent.
    RollingBack,
}

/// What became of the flows that the host's stack had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowCounts {
    /// Translated by us since.
    pub ours: usize,
    /// Left to the stack until they end.
    pub stacks: usize,
    /// Found no room in our table.
    pub lost: usize,
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The kernel's number of the boot that it was made in.
    boot: String,
    /// How far it has come.
    pub stage: Stage,
    /// flannel's VXLAN device.
    pub tunnel: Option<String>,
    /// Its routes.
    pub routes: Vec<OthersRoute>,
    /// The bridge of adopted pods.
    pub bridge: Option<String>,
    /// The network's name in host-local's directory.
    pub network: String,
    /// The bridge's own address: the gateway of adopted pods.
    pub gateway: Option<Ipv4Addr>,
    /// CNI's state directory.
    pub cni_dir: PathBuf,
    /// flannel's CNI configurations, which are put aside.
    #[serde(default)]
    pub configurations: Vec<PathBuf>,
    /// Whether the kernel hurried its grace periods before.
    #[serde(default)]
    pub grace: String,
    /// Rules as they were.
    pub rules: Vec<Kept>,
    /// What became of flows.
    #[serde(default)]
    pub flows: FlowCounts,
    /// From the first step to the last, milliseconds.
    #[serde(default)]
    pub took_ms: Option<u64>,
}

impl Record {
    /// A takeover that begins, with nothing in it yet.
    #[must_use]
    pub fn begin(cni_dir: &Path) -> Self {
        Self {
            version: VERSION,
            boot: boot(),
            stage: Stage::Begun,
            tunnel: None,
            routes: Vec::new(),
            bridge: None,
            network: String::new(),
            gateway: None,
            cni_dir: cni_dir.to_owned(),
            configurations: Vec::new(),
            grace: grace::present(),
            rules: Vec::new(),
            flows: FlowCounts::default(),
            took_ms: None,
        }
    }

    /// Whether the node has booted since: devices and rules are gone, and nothing is left to put back.
    #[must_use]
    pub fn is_of_earlier_boot(&self) -> bool {
        self.boot != boot()
    }

    /// Where it is in a state directory.
    #[must_use]
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(NAME)
    }

    /// The record of a node that was taken over, or is being.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn read(state_dir: &Path) -> Result<Option<Self>, TakeoverError> {
        let path = Self::path(state_dir);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|source| TakeoverError::File { action: "read", path: path.clone(), source })?,
        };
        let damaged = |problem: String| TakeoverError::Record { path: path.clone(), problem };
        let record: Self = serde_json::from_slice(&text).map_err(|error| damaged(format!("it is damaged ({error})")))?;
        if record.version != VERSION {
            return Err(damaged(format!("it has version {}, this program knows {VERSION}", record.version)));
        }
        Ok(Some(record))
    }

    /// Replaces what is there. When this returns, it is on disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, state_dir: &Path) -> Result<(), TakeoverError> {
        let path = Self::path(state_dir);
        let text = serde_json::to_vec(self).map_err(|error| TakeoverError::File {
            action: "write",
            path: path.clone(),
            source: error.into(),
        })?;
        Ok(disk::replace(&path, &text, MODE)?)
    }

    /// Removes it: the node is as it was.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(state_dir: &Path) -> Result<(), TakeoverError> {
        Ok(disk::remove(&Self::path(state_dir)).map(drop)?)
    }
}

/// Empty where the kernel does not say.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_refused_unless_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let record =
            Record { stage: Stage::Done, tunnel: Some("flannel.1".into()), ..Record::begin(Path::new("/var/lib/cni")) };
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Some(record));
        let path = Record::path(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        for (bad, expected) in
            [(text[..text.len() / 2].to_owned(), "damaged"), (text.replace("\"version\":1", "\"version\":9"), "version 9")]
        {
            fs::write(&path, bad).unwrap();
            let error = Record::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("takeover.json"), "{error}");
        }
        Record::remove(dir.path()).unwrap();
        Record::remove(dir.path()).unwrap();
    }
}
