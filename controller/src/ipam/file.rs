//! The address book on disk.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use super::{IpamError, book::Book};
use crate::disk::{self, DiskError};

/// Name of the file in a state directory.
pub(super) const NAME: &str = "ipam.json";

/// Who has which address is nobody's business but root's.
const MODE: u32 = 0o600;

/// A file of a full /8 would be smaller; what is larger is not ours.
const MAX_BYTES: u64 = 1 << 30;

/// The directory, made if missing.
pub(super) fn make_dir(dir: &Path) -> Result<(), IpamError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    Ok(made.map_err(refused("create the state directory", dir))?)
}

/// The book, or `None` if there never was one.
pub(super) fn read(path: &Path) -> Result<Option<Book>, IpamError> {
    let corrupt = |problem| IpamError::Corrupt { path: path.to_owned(), problem };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused("read", path)(error).into()),
        Ok(metadata) if !metadata.is_file() => return Err(corrupt("it is not a regular file".to_owned())),
        Ok(metadata) if metadata.len() > MAX_BYTES => return Err(corrupt("it is far too large".to_owned())),
        Ok(_) => {}
    }
    let text = fs::read(path).map_err(refused("read", path))?;
    Book::from_json(&text).map(Some).map_err(corrupt)
}

/// Replaces the book. When this returns, the new one is on disk.
pub(super) fn write(path: &Path, book: &Book) -> Result<(), IpamError> {
    let text = book.to_json().map_err(|error| refused("write", path)(error.into()))?;
    Ok(disk::replace(path, &text, MODE)?)
}

/// Removes the book and its temporary file.
pub(super) fn remove(path: &Path) -> Result<(), IpamError> {
    disk::remove(path)?;
    Ok(())
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        attachment::AttachmentKey,
        disk::{Replacement, STAGES, Stage, temporary},
        ipam::Ipam,
        socket::protocol::PodAdd,
    };

    fn request(id: &str) -> PodAdd {
        PodAdd {
            attachment: AttachmentKey::new(id, "eth0").unwrap(),
            network: "shunt".to_owned(),
            netns: "/run/netns/x".into(),
            pod: Default::default(),
            port_mappings: vec![],
        }
    }

    fn give(ipam: &mut Ipam, id: &str) -> std::net::Ipv4Addr {
        let range = Some("10.1.0.0/24".parse().unwrap());
        ipam.allocate(&request(id), range, |_| false, SystemTime::now()).unwrap().address
    }

    #[test]
    fn the_book_outlives_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("lib/shunt");
        let mut ipam = Ipam::open(&state_dir).unwrap();
        let first = give(&mut ipam, "a");
        let second = give(&mut ipam, "b");
        ipam.release(&request("a").attachment, SystemTime::now()).unwrap();
        drop(ipam);
        let mut ipam = Ipam::open(&state_dir).unwrap();
        assert_eq!(give(&mut ipam, "b"), second);
        let third = give(&mut ipam, "c");
        assert!(third != first && third != second, "not the one just released: {third}");
        assert_eq!(crate::ipam::read_pods(&state_dir).unwrap().len(), 2);
        crate::ipam::remove(&state_dir).unwrap();
        assert_eq!(fs::read_dir(&state_dir).unwrap().count(), 0);
        crate::ipam::remove(&state_dir).unwrap();
    }

    #[test]
    fn a_crash_at_any_stage_leaves_the_old_book_or_the_new_one() {
        let renamed = STAGES.iter().position(|stage| matches!(stage, Stage::Rename)).unwrap();
        for done in 0..=STAGES.len() {
            // A write can also be cut in its middle.
            for written in [0.0, 0.5, 1.0] {
                let dir = tempfile::tempdir().unwrap();
                let mut ipam = Ipam::open(dir.path()).unwrap();
                give(&mut ipam, "a");
                let old = ipam.book.clone();
                let mut new = old.clone();
                new.release(&request("a").attachment, std::time::Duration::from_secs(1)).unwrap();
                let text = new.to_json().unwrap();
                let cut = if done > renamed { text.len() } else { (text.len() as f64 * written) as usize };
                let mut replacement = Replacement::new(&ipam.path, &text[..cut], MODE);
                for stage in &STAGES[..done] {
                    replacement.carry_out(*stage).unwrap();
                }
                drop(replacement);
                let expected = if done > renamed { &new } else { &old };
                let mut after = Ipam::open(dir.path()).unwrap();
                assert_eq!(&after.book, expected, "after {done} stages, {written} of the text");
                give(&mut after, "b");
                assert_eq!(Ipam::open(dir.path()).unwrap().book, after.book, "what a crash left is no obstacle");
            }
        }
    }

    #[test]
    fn a_damaged_book_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        for (text, expected) in [
            (&b""[..], "it is empty"),
            (b"{\"version\": 1, \"last\": null, \"po", "it is cut off"),
            (b"\0\0\0\0", "it is damaged"),
            (b"[]", "it is damaged"),
            (b"{\"version\": 9}", "version 9"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Ipam::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("ipam.json") && error.contains("remove the file"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), text, "never emptied");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = Ipam::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }

    #[test]
    fn what_could_not_be_written_was_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut ipam = Ipam::open(dir.path()).unwrap();
        fs::create_dir(temporary(&ipam.path)).unwrap();
        let range = Some("10.1.0.0/24".parse().unwrap());
        let error = ipam.allocate(&request("a"), range, |_| false, SystemTime::now()).unwrap_err();
        assert!(matches!(error, IpamError::Disk(_)), "{error}");
        assert!(ipam.pods().is_empty());
        fs::remove_dir(temporary(&ipam.path)).unwrap();
        give(&mut ipam, "a");
    }
}
