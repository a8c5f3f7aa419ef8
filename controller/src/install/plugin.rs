//! The CNI plugin's binary: this very program, copied to where the runtime looks for plugins.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use crate::disk::{self, DiskError};

/// Its file's name, which the configuration calls it by.
pub const NAME: &str = "shunt";

/// For the runtime to run; it does so as root.
const MODE: u32 = 0o755;

/// What runs now, also if its file was replaced or removed since.
const SELF: &str = "/proc/self/exe";

/// What a file system says of a file's content without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// The installed binary, as it was when its content was looked at last.
#[derive(Debug, Default)]
pub struct Plugin {
    verified: Option<Identity>,
}

impl Plugin {
    /// Installs it unless the file is there with the same content and mode; whether it was installed.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn ensure(&mut self, path: &Path) -> Result<bool, DiskError> {
        self.ensure_copy_of(Path::new(SELF), path)
    }

    fn ensure_copy_of(&mut self, source: &Path, path: &Path) -> Result<bool, DiskError> {
        let found = identity(path)?;
        if found.is_some() && found == self.verified {
            return Ok(false);
        }
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DiskError { action, path, source }
        };
        let is_same = found.is_some() && is_same(source, path).map_err(failed("compare", path))?;
        if !is_same {
            let content = fs::read(source).map_err(failed("read", source))?;
            disk::replace(path, &content, MODE)?;
        }
        self.verified = identity(path)?;
        Ok(!is_same)
    }
}

fn identity(path: &Path) -> Result<Option<Identity>, DiskError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            // Of content and mode alike.
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DiskError { action: "look at", path: path.to_owned(), source }),
    }
}

/// Content and mode.
fn is_same(source: &Path, path: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(source)?, File::open(path)?);
    let (wanted, found) = (one.metadata()?, other.metadata()?);
    if wanted.len() != found.len() || found.permissions().mode() & 0o7777 != MODE {
        return Ok(false);
    }
    let (mut one, mut other) = (BufReader::with_capacity(1 << 16, one), BufReader::with_capacity(1 << 16, other));
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = one.read(&mut a)?;
        if length == 0 {
            return Ok(true);
        }
        if let Err(error) = other.read_exact(&mut b[..length]) {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(false) } else { Err(error) };
        }
        if a[..length] != b[..length] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_installed_when_it_differs_and_left_alone_when_not() {
        let dir = tempfile::tempdir().unwrap();
        let (source, path) = (dir.path().join("source"), dir.path().join(NAME));
        fs::write(&source, vec![7; 200_000]).unwrap();
        let mut plugin = Plugin::default();
        assert!(plugin.ensure_copy_of(&source, &path).unwrap());
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(!plugin.ensure_copy_of(&source, &path).unwrap());
        assert!(!Plugin::default().ensure_copy_of(&source, &path).unwrap(), "nor by the next agent");
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);

        let mut spoiled = fs::read(&path).unwrap();
        spoiled[150_000] = 8;
        for spoil in [
            &(|| fs::write(&path, &spoiled).unwrap()) as &dyn Fn(),
            &|| fs::write(&path, "short").unwrap(),
            &|| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap(),
            &|| fs::remove_file(&path).unwrap(),
        ] {
            spoil();
            assert!(plugin.ensure_copy_of(&source, &path).unwrap());
            assert_eq!(fs::read(&path).unwrap(), fs::read(&source).unwrap());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, MODE);
        }
    }

    #[test]
    fn a_running_plugin_is_replaced_under_its_callers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        fs::copy("/bin/sleep", &path).unwrap();
        let mut running = std::process::Command::new(&path).arg("60").spawn().unwrap();
        let installed = Plugin::default().ensure(&path);
        running.kill().unwrap();
        running.wait().unwrap();
        assert!(installed.unwrap(), "by rename: a busy text file cannot be written");
    }
}
