//! What the agent puts on the node outside of its own directories and devices: the CNI plugin and its configuration, and kernel
//! settings. Everything is written down, so that `shunt cleanup` can take it back. Nothing of the cluster enters.

pub mod conflist;
pub mod plugin;
pub mod reserved_ports;
pub mod settings;

mod record;

use std::path::{Path, PathBuf};

use crate::disk::DiskError;

pub use record::{Record, Restored, take_back};

/// Where the runtime looks for CNI; nothing is installed where nothing is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniDirs {
    /// `cniConfDir`.
    pub conf: Option<PathBuf>,
    /// `cniBinDir`.
    pub bin: Option<PathBuf>,
}

/// What is not as it should be with the CNI installation.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A directory is missing: whose it is decides over its making.
    #[error("{key} {} does not exist: create it, or correct {key}", .path.display())]
    NoDirectory {
        /// The configuration's key.
        key: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// Something of the configuration or the plugin cannot be read or written.
    #[error("the CNI plugin or its configuration is not installed: {0}")]
    Disk(#[from] DiskError),
}

fn must_exist(key: &'static str, dir: &Path) -> Result<(), InstallError> {
    if dir.is_dir() { Ok(()) } else { Err(InstallError::NoDirectory { key, path: dir.to_owned() }) }
}

/// Keeps the CNI installation as it should be.
#[derive(Debug)]
pub struct Installer {
    dirs: CniDirs,
    conflist: String,
    plugin: plugin::Plugin,
    record: Record,
}

impl Installer {
    /// For an agent whose socket is in `run_dir`.
    #[must_use]
    pub fn new(dirs: CniDirs, run_dir: &Path, record: Record) -> Self {
        let conflist = conflist::text(&crate::socket::path(run_dir));
        Self { dirs, conflist, plugin: plugin::Plugin::default(), record }
    }

    /// Brings the installation to what it should be. The configuration is written only once pods can be added, for it is what makes
    /// the runtime add them; it is never withdrawn. Gives what an operator should know.
    ///
    /// # Errors
    /// What could not be written.
    pub fn ensure(&mut self, is_ready: bool) -> Result<Vec<String>, InstallError> {
        if let Some(dir) = &self.dirs.bin {
            must_exist("cniBinDir", dir)?;
            let path = dir.join(plugin::NAME);
            self.record.note_file(&path)?;
            if self.plugin.ensure(&path)? {
                tracing::info!(path = %path.display(), "the CNI plugin is installed");
            }
        }
        let Some(dir) = &self.dirs.conf else { return Ok(Vec::new()) };
        must_exist("cniConfDir", dir)?;
        let path = dir.join(conflist::NAME);
        if is_ready {
            self.record.note_file(&path)?;
            if conflist::ensure(&path, &self.conflist)? {
                tracing::info!(path = %path.display(), "the CNI configuration is written: pods can be added");
            }
        }
        Ok(conflist::rivals(dir)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn installer(root: &Path) -> Installer {
        let dirs = CniDirs { conf: Some(root.join("net.d")), bin: Some(root.join("bin")) };
        Installer::new(dirs, Path::new("/run/shunt"), Record::open(&root.join("state")).unwrap())
    }

    #[test]
    fn the_plugin_comes_at_once_and_the_configuration_when_ready_and_both_are_kept() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["net.d", "bin", "state"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        let (conf, bin) = (root.path().join("net.d/10-shunt.conflist"), root.path().join("bin/shunt"));
        let mut installer = installer(root.path());
        installer.ensure(false).unwrap();
        assert!(bin.exists() && !conf.exists());
        installer.ensure(true).unwrap();
        let text = fs::read_to_string(&conf).unwrap();
        assert!(text.contains("/run/shunt/agent.sock"), "{text}");
        for spoiled in [&conf, &bin] {
            fs::remove_file(spoiled).unwrap();
            installer.ensure(true).unwrap();
            assert!(spoiled.exists(), "made again: {spoiled:?}");
        }
        fs::write(&conf, "{}").unwrap();
        installer.ensure(false).unwrap();
        assert_eq!(fs::read_to_string(&conf).unwrap(), "{}", "nothing is promised while not ready");
        installer.ensure(true).unwrap();
        assert_eq!(fs::read_to_string(&conf).unwrap(), text);
    }

    #[test]
    fn a_missing_directory_is_named_by_its_key_and_is_no_obstacle_once_it_is_there() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("state")).unwrap();
        let mut installer = installer(root.path());
        let error = installer.ensure(true).unwrap_err().to_string();
        assert!(error.contains("cniBinDir") && error.contains("does not exist"), "{error}");
        fs::create_dir(root.path().join("bin")).unwrap();
        let error = installer.ensure(true).unwrap_err().to_string();
        assert!(error.contains("cniConfDir"), "{error}");
        fs::create_dir(root.path().join("net.d")).unwrap();
        installer.ensure(true).unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["net.d", "bin", "state", "net.d/10-shunt.conflist"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        let error = installer(root.path()).ensure(true).unwrap_err().to_string();
        assert!(error.contains("10-shunt.conflist"), "{error}");
    }
}
