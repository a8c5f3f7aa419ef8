//! A pinned map as typed rows.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Pod, maps::MapInfo};
use shunt_common::maps::MapSpec;

use super::sys::{self, Batches, Cursor, Update};

/// Entries a batch carries: enough that the call costs nothing, little enough to stay in a cache.
const BATCH: usize = 4096;

/// Why a map cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Nothing is pinned.
    #[error("map {name} is not pinned at {}: is an agent with this pin directory running, or was it ever?", path.display())]
    Missing {
        /// Map.
        name: &'static str,
        /// Where it was expected.
        path: PathBuf,
    },
    /// The pin is of other types.
    #[error(
        "map {name} pinned at {} has keys of {found_key} and values of {found_value} bytes, this program knows {key} and {value}: \
         use the binary that wrote it, or restart the agent with this one", path.display()
    )]
    Layout {
        /// Map.
        name: &'static str,
        /// Pin.
        path: PathBuf,
        /// Key size of the pin.
        found_key: u32,
        /// Value size of the pin.
        found_value: u32,
        /// Expected key size.
        key: u32,
        /// Expected value size.
        value: u32,
    },
    /// No room.
    #[error(
        "map {name} is full ({capacity} entries): {what} does not fit. Remove what is no longer needed, or build with a \
         larger map (common/src/maps.rs)"
    )]
    Full {
        /// Map.
        name: &'static str,
        /// Its capacity.
        capacity: u32,
        /// What did not fit.
        what: String,
    },
    /// Anything else.
    #[error("map {name} cannot {action}")]
    Io {
        /// Map.
        name: &'static str,
        /// What was tried.
        action: &'static str,
        /// What the kernel answers.
        #[source]
        source: io::Error,
    },
}

/// One pinned map.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    capacity: u32,
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens the map pinned at `path`, which must have keys and values of these types.
    ///
    /// # Errors
    /// Not pinned, of another layout, or not permitted.
    pub fn open(spec: &MapSpec, path: &Path) -> Result<Self, TableError> {
        let fail = |action, source| TableError::Io { name: spec.name, action, source };
        let fd = sys::open_pin(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => TableError::Missing { name: spec.name, path: path.to_owned() },
            _ => fail("be opened", error),
        })?;
        let info = MapInfo::from_pin(path).map_err(|error| fail("be described", io::Error::other(error)))?;
        let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
        if (info.key_size(), info.value_size()) != (key, value) {
            return Err(TableError::Layout {
                name: spec.name,
                path: path.to_owned(),
                found_key: info.key_size(),
                found_value: info.value_size(),
                key,
                value,
            });
        }
        Ok(Self { name: spec.name, capacity: info.max_entries(), fd, types: PhantomData })
    }

    /// How many entries fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> TableError + use<K, V> {
        let name = self.name;
        move |source| TableError::Io { name, action, source }
    }

    fn write_error(&self, source: io::Error, what: String) -> TableError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => TableError::Full { name: self.name, capacity: self.capacity, what },
            _ => TableError::Io { name: self.name, action: "be written", source },
        }
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        sys::lookup(self.fd(), key).map_err(self.io("be read"))
    }

    /// Creates or replaces one entry; `what` names it in the error.
    ///
    /// # Errors
    /// [`TableError::Full`], or what the kernel answers.
    pub fn put(&self, key: &K, value: &V, what: impl FnOnce() -> String) -> Result<(), TableError> {
        sys::update(self.fd(), key, value, Update::Any).map_err(|error| self.write_error(error, what()))
    }

    /// Creates an entry; whether there was none.
    ///
    /// # Errors
    /// As of [`put`](Self::put).
    pub fn put_new(&self, key: &K, value: &V, what: impl FnOnce() -> String) -> Result<bool, TableError> {
        match sys::update(self.fd(), key, value, Update::Absent) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            outcome => outcome.map(|()| true).map_err(|error| self.write_error(error, what())),
        }
    }

    /// Creates or replaces many entries in order; `what` names the one that failed, by its index.
    ///
    /// # Errors
    /// The index of the one that failed, those before it are written; why as of [`put`](Self::put).
    pub fn put_all(&self, keys: &[K], values: &[V], what: impl FnOnce(usize) -> String) -> Result<(), (usize, TableError)> {
        sys::update_batch(self.fd(), keys, values).map_err(|(done, error)| (done, self.write_error(error, what(done))))
    }

    /// Removes an entry; whether there was one.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn delete(&self, key: &K) -> Result<bool, TableError> {
        sys::delete(self.fd(), key).map_err(self.io("be written"))
    }

    /// Removes every entry.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn clear(&self) -> Result<(), TableError> {
        let mut failure = None;
        self.walk(&mut Cursor::default(), |keys, _| {
            failure = keys.iter().find_map(|key| self.delete(key).err());
            failure.is_none()
        })?;
        failure.map_or(Ok(()), Err)
    }

    /// Walks all entries in batches, in the map's own order.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn for_each_batch(&self, mut visit: impl FnMut(&[K], &[V])) -> Result<(), TableError> {
        self.walk(&mut Cursor::default(), |keys, values| {
            visit(keys, values);
            true
        })
        .map(drop)
    }

    /// Walks on from `cursor` in batches while `visit` wants more; whether it came to the end, where the next walk starts anew.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn walk(&self, cursor: &mut Cursor, visit: impl FnMut(&[K], &[V]) -> bool) -> Result<bool, TableError> {
        self.walk_by(BATCH, cursor, visit)
    }

    /// As [`walk`](Self::walk), in batches of about so many entries.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn walk_by(
        &self,
        batch: usize,
        cursor: &mut Cursor,
        mut visit: impl FnMut(&[K], &[V]) -> bool,
    ) -> Result<bool, TableError> {
        let mut batches = Batches::<K, V>::new(self.fd(), *cursor, batch.min(self.capacity.max(1) as usize));
        while let Some((keys, values)) = batches.advance().map_err(self.io("be read"))? {
            if !visit(keys, values) {
                *cursor = batches.cursor();
                return Ok(false);
            }
        }
        *cursor = Cursor::default();
        Ok(true)
    }

    /// All entries.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn entries(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut entries = Vec::new();
        self.for_each_batch(|keys, values| entries.extend(keys.iter().copied().zip(values.iter().copied())))?;
        Ok(entries)
    }

    /// Copies every entry that `other` does not have yet; how many.
    ///
    /// # Errors
    /// One of the maps answers with an error; `other` may be full.
    pub fn copy_missing_to(&self, other: &Self) -> Result<usize, TableError> {
        let mut copied = 0;
        let mut failure = None;
        self.walk(&mut Cursor::default(), |keys, values| {
            for (key, value) in keys.iter().zip(values) {
                match sys::update(other.fd(), key, value, Update::Absent) {
                    Ok(()) => copied += 1,
                    Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(error) => {
                        failure = Some(other.write_error(error, "an entry of the map it replaces".to_owned()));
                        return false;
                    }
                }
            }
            true
        })?;
        failure.map_or(Ok(copied), Err)
    }
}
