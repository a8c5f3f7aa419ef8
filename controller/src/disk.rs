//! Files that are replaced as a whole, so that a crash at any moment leaves the old one or the new one.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// What the file system refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", .path.display())]
pub struct DiskError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError + use<> {
    let path = path.to_owned();
    move |source| DiskError { action, path, source }
}

/// Replaces a file. When this returns, the new one is on disk, with these permission bits whatever the umask.
///
/// # Errors
/// The first thing that the file system refused; the old file is there then.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), DiskError> {
    let mut replacement = Replacement::new(path, content, mode);
    STAGES.iter().try_for_each(|stage| replacement.carry_out(*stage))
}

/// Removes a file and what a crash left of writing it. No error if there is none; whether there was one.
///
/// # Errors
/// What the file system refuses.
pub fn remove(path: &Path) -> Result<bool, DiskError> {
    let mut was_there = false;
    for (path, counts) in [(path, true), (&temporary(path), false)] {
        match fs::remove_file(path) {
            Ok(()) => was_there |= counts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused("remove", path)(error)),
        }
    }
    Ok(was_there)
}

/// Where a file's replacement is written: beside it, by a name that readers of a directory don't take for theirs.
pub(crate) fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".new");
    path.with_file_name(name)
}

/// What replacing a file consists of, in this order: the data is on disk before its name is, and the name before success is told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    Create,
    Write,
    SyncData,
    Rename,
    SyncName,
}

pub(crate) const STAGES: [Stage; 5] = [Stage::Create, Stage::Write, Stage::SyncData, Stage::Rename, Stage::SyncName];

/// A replacement under way.
pub(crate) struct Replacement<'a> {
    path: &'a Path,
    content: &'a [u8],
    mode: u32,
    file: Option<File>,
}

impl<'a> Replacement<'a> {
    pub(crate) fn new(path: &'a Path, content: &'a [u8], mode: u32) -> Self {
        Self { path, content, mode, file: None }
    }

    pub(crate) fn carry_out(&mut self, stage: Stage) -> Result<(), DiskError> {
        let temporary = temporary(self.path);
        let file = || self.file.as_ref().ok_or_else(|| refused("write", &temporary)(io::ErrorKind::NotFound.into()));
        match stage {
            Stage::Create => {
                let mut options = OpenOptions::new();
                let file = options.write(true).create(true).truncate(true).mode(self.mode).open(&temporary);
                let file = file.map_err(refused("create", &temporary))?;
                // The umask may have taken bits away.
                file.set_permissions(fs::Permissions::from_mode(self.mode)).map_err(refused("create", &temporary))?;
                self.file = Some(file);
                Ok(())
            }
            Stage::Write => file()?.write_all(self.content).map_err(refused("write", &temporary)),
            Stage::SyncData => file()?.sync_all().map_err(refused("write", &temporary)),
            Stage::Rename => {
                // A program that is still open for writing cannot be run.
                self.file = None;
                fs::rename(&temporary, self.path).map_err(refused("replace", self.path))
            }
            Stage::SyncName => {
                let dir = self.path.parent().unwrap_or(Path::new("."));
                File::open(dir).and_then(|dir| dir.sync_all()).map_err(refused("write", dir))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_mode_and_removed_with_what_a_crash_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("10-a.conflist");
        for mode in [0o600, 0o755] {
            replace(&path, b"text", mode).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"text");
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
        }
        assert_eq!(temporary(&path).file_name().unwrap(), "10-a.conflist.new");
        fs::write(temporary(&path), "half").unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_named() {
        let error = replace(Path::new("/nonexistent/dir/file"), b"", 0o600).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/dir/file.new"), "{error}");
        assert!(!remove(Path::new("/nonexistent/dir/file")).unwrap());
    }
}
