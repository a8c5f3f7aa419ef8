//! A directory of Kubernetes YAML, watched.
//!
//! Events only say which file to look at; what counts is what stands there when it is read. So a burst, a lost event or an editor's way
//! of writing changes nothing in the outcome.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    task::Poll,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, poll};
use inotify::{EventMask, EventStream, Inotify, WatchMask};

use super::{
    decode::Syntax,
    store::{Counts, Store},
};
use crate::{
    model::{Changes, Model, Name},
    problem::Problem,
};

/// Larger files are refused.
const MAX_FILE: u64 = 16 << 20;
/// How long a file may be away before what it gave is withdrawn: editors move the old file aside before they write the new one.
const ABSENCE: Duration = Duration::from_millis(50);
/// How often it is checked that the path still leads to the directory that is watched.
const RECHECK: Duration = Duration::from_secs(1);
const EVENT_BUFFER: usize = 64 << 10;

/// Why a directory cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not there, not a directory, or not readable.
    #[error("cannot read the cluster state in {}; create the directory, or name another with --cluster-state", .dir.display())]
    Directory {
        /// The path.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel gave no watch.
    #[error("cannot watch {} for changes; raise fs.inotify.max_user_instances or fs.inotify.max_user_watches", .dir.display())]
    Watch {
        /// The path.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Cluster state from the files of a directory.
#[derive(Debug)]
pub struct FileSource {
    dir: PathBuf,
    store: Store,
    /// `None` while the directory is away.
    watch: Option<Watch>,
    /// Files that are gone, and when that is believed.
    departing: BTreeMap<Name, Instant>,
    /// Why the directory cannot be read at present.
    outage: Option<String>,
    /// Counts looks that may have changed problems or notices.
    revision: u64,
    recheck_at: Instant,
}

#[derive(Debug)]
struct Watch {
    events: EventStream<Vec<u8>>,
    /// Device and inode of the directory.
    identity: (u64, u64),
}

/// What is to be looked at.
#[derive(Debug, Default)]
struct Look {
    names: BTreeSet<Name>,
    /// Whoever made them may still be writing.
    created: BTreeSet<Name>,
    everything: bool,
    directory: bool,
}

impl FileSource {
    /// Reads all there is and begins to watch. Within a tokio runtime, for the watch needs its reactor.
    ///
    /// # Errors
    /// The directory cannot be read or watched. A bad file in it is no error but a [`Problem`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<(Self, Changes), OpenError> {
        let dir = dir.into();
        // The watch comes first, so that nothing happens between it and the first look.
        let watch = Watch::new(&dir)?;
        let mut source = Self {
            dir,
            store: Store::default(),
            watch: Some(watch),
            departing: BTreeMap::new(),
            outage: None,
            revision: 0,
            recheck_at: Instant::now() + RECHECK,
        };
        let mut changes = Changes::default();
        let names = source.list().map_err(|error| OpenError::Directory { dir: source.dir.clone(), source: error })?;
        for name in names {
            source.look_at(&name, &mut changes);
        }
        Ok((source, changes))
    }

    /// The cluster as of the last look.
    #[must_use]
    pub fn model(&self) -> &Model {
        self.store.model()
    }

    /// What is refused at present.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let outage = self.outage.iter().map(|message| Problem { message: message.clone(), ..Problem::default() });
        outage.chain(self.store.problems()).collect()
    }

    /// What is accepted but has not the effect that one might expect.
    #[must_use]
    pub fn notices(&self) -> Vec<Problem> {
        self.store.notices()
    }

    /// Changes whenever problems or notices do.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many valid objects there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.store.counts()
    }

    /// Waits until something in the directory was looked at again and says what that changed in the model: maybe nothing, but then the
    /// problems may have. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Changes {
        let mut changes = Changes::default();
        loop {
            let due = self.departing.values().copied().fold(self.recheck_at, Instant::min);
            let wait = due.saturating_duration_since(Instant::now());
            let mut look = match &mut self.watch {
                Some(watch) => tokio::time::timeout(wait, watch.look()).await.unwrap_or_default(),
                None => {
                    tokio::time::sleep(wait).await;
                    Look::default()
                }
            };
            if self.recheck_at <= Instant::now() {
                self.recheck_at = Instant::now() + RECHECK;
                look.directory = true;
            }
            if self.follow(look, &mut changes) {
                self.revision += 1;
                return changes;
            }
        }
    }

    /// Says whether anything was looked at.
    fn follow(&mut self, look: Look, changes: &mut Changes) -> bool {
        let mut looked = !look.names.is_empty();
        if look.directory {
            looked |= self.recheck(changes);
        }
        if look.everything {
            looked = true;
            self.look_at_everything(changes);
        }
        for name in look.names {
            self.look_at(&name, changes);
        }
        for name in look.created {
            // A link is whole as soon as it is there; what is written will be closed.
            if fs::symlink_metadata(self.dir.join(&*name)).is_ok_and(|file| file.is_symlink() || file.nlink() > 1) {
                looked = true;
                self.look_at(&name, changes);
            }
        }
        let now = Instant::now();
        let departed: Vec<Name> = self.departing.iter().filter(|(_, due)| **due <= now).map(|(name, _)| name.clone()).collect();
        for name in departed {
            looked = true;
            self.departing.remove(&name);
            // If it is there again, whoever writes it has not closed it yet: that will be an event.
            if !self.dir.join(&*name).exists() {
                self.store.remove(&name, changes);
            }
        }
        looked
    }

    /// Finds the directory again after it was removed, replaced or mounted over.
    fn recheck(&mut self, changes: &mut Changes) -> bool {
        let identity = identity(&self.dir);
        match (&identity, &self.watch) {
            (Ok(identity), Some(watch)) if watch.identity == *identity => return false,
            (Err(_), None) => return false,
            _ => {}
        }
        self.watch = None;
        let message = match identity
            .map_err(|source| OpenError::Directory { dir: self.dir.clone(), source })
            .and_then(|_| Watch::new(&self.dir))
        {
            Ok(watch) => {
                self.watch = Some(watch);
                self.look_at_everything(changes);
                return true;
            }
            Err(OpenError::Directory { dir, source } | OpenError::Watch { dir, source }) => {
                format!("{} cannot be read ({source}); what it gave stays in force until it is there again", dir.display())
            }
        };
        let is_news = self.outage.as_ref() != Some(&message);
        self.outage = Some(message);
        is_news
    }

    fn look_at_everything(&mut self, changes: &mut Changes) {
        match self.list() {
            Ok(mut names) => {
                self.outage = None;
                names.extend(self.store.files().cloned());
                names.sort();
                names.dedup();
                for name in names {
                    self.look_at(&name, changes);
                }
            }
            Err(error) => {
                self.outage = Some(format!("{} cannot be read ({error}); what it gave stays in force", self.dir.display()))
            }
        }
    }

    /// Names of the files that count, sorted.
    fn list(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            names.extend(entry?.file_name().to_str().filter(|name| counts(name)).map(Name::from));
        }
        names.sort();
        Ok(names)
    }

    fn look_at(&mut self, name: &Name, changes: &mut Changes) {
        match read(&self.dir.join(&**name)) {
            Found::Text(text) => {
                self.departing.remove(name);
                let syntax = if name.ends_with(".json") { Syntax::Json } else { Syntax::Yaml };
                self.store.load(name, &text, syntax, changes);
            }
            Found::Unreadable(message) => {
                self.departing.remove(name);
                self.store.fail(name, message);
            }
            Found::Nothing => {
                if self.store.knows(name) {
                    self.departing.entry(name.clone()).or_insert_with(|| Instant::now() + ABSENCE);
                }
            }
        }
    }
}

impl Watch {
    fn new(dir: &Path) -> Result<Self, OpenError> {
        let refuse = |source| OpenError::Watch { dir: dir.to_owned(), source };
        let identity = identity(dir).map_err(|source| OpenError::Directory { dir: dir.to_owned(), source })?;
        let inotify = Inotify::init().map_err(refuse)?;
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        inotify.watches().add(dir, mask).map_err(refuse)?;
        let events = inotify.into_event_stream(vec![0; EVENT_BUFFER]).map_err(refuse)?;
        Ok(Self { events, identity })
    }

    /// Waits for an event, and takes those that are there already with it.
    async fn look(&mut self) -> Look {
        let mut look = Look::default();
        let mut event = self.events.next().await;
        loop {
            match event {
                Some(Ok(event)) => look.note(event.mask, event.name.as_deref().and_then(|name| name.to_str())),
                // Without events the next recheck, which is asked for here, makes a new watch.
                Some(Err(_)) | None => {
                    self.identity = (0, 0);
                    look.directory = true;
                    return look;
                }
            }
            let mut more = poll!(self.events.next());
            if more.is_pending() {
                // Asked once, the stream only finds that it has nothing; asked again, it remembers whom to call.
                more = poll!(self.events.next());
            }
            match more {
                Poll::Ready(more) => event = more,
                Poll::Pending => return look,
            }
        }
    }
}

impl Look {
    fn note(&mut self, mask: EventMask, name: Option<&str>) {
        let gone = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT;
        self.everything |= mask.contains(EventMask::Q_OVERFLOW);
        self.directory |= mask.intersects(gone);
        match name {
            // kubelet publishes a ConfigMap by renaming the link that all files lead through.
            Some("..data") => self.everything |= mask.contains(EventMask::MOVED_TO),
            Some(name) if counts(name) => {
                let list = if mask.contains(EventMask::CREATE) { &mut self.created } else { &mut self.names };
                list.insert(name.into());
            }
            _ => {}
        }
    }
}

/// What stands under a name.
enum Found {
    Text(String),
    /// Something, but not to be had; why.
    Unreadable(String),
    Nothing,
}

fn read(path: &Path) -> Found {
    let unreadable = |error: io::Error| Found::Unreadable(format!("cannot be read: {error}"));
    // Without O_NONBLOCK a FIFO would be waited for.
    let file = match fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(error) => return unreadable(error),
    };
    let metadata = match file.metadata() {
        Ok(metadata) if metadata.is_dir() => return Found::Nothing,
        Ok(metadata) => metadata,
        Err(error) => return unreadable(error),
    };
    if !metadata.is_file() {
        return Found::Unreadable("is not a regular file; put the YAML itself there".to_owned());
    }
    let mut bytes = Vec::with_capacity(metadata.len().min(MAX_FILE) as usize + 1);
    if let Err(error) = file.take(MAX_FILE + 1).read_to_end(&mut bytes) {
        return unreadable(error);
    }
    if bytes.len() as u64 > MAX_FILE {
        return Found::Unreadable(format!("is larger than {} MiB; split it into several files", MAX_FILE >> 20));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Found::Text(text),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Found::Unreadable(format!("is not UTF-8 text (byte {at}); save it as UTF-8"))
        }
    }
}

/// Whether a file of this name is the user's YAML, and not an editor's or a writer's temporary one.
fn counts(name: &str) -> bool {
    let is_temporary = name.starts_with(['.', '#']) || name.ends_with('~');
    !is_temporary
        && [".yaml", ".yml", ".json"].iter().any(|extension| name.ends_with(extension) && name.len() > extension.len())
}

fn identity(dir: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(dir).map(|dir| (dir.dev(), dir.ino()))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn temporary_files_do_not_count() {
        for name in ["a.yaml", "a.yml", "a.json", "a b.yaml"] {
            assert!(counts(name), "{name}");
        }
        for name in [
            ".a.yaml",
            "a.yaml~",
            "a.yaml.swp",
            ".a.yaml.swp",
            "a.yaml.tmp",
            "#a.yaml#",
            ".#a.yaml",
            "4913",
            ".yaml",
            "a.txt",
            "..data",
        ] {
            assert!(!counts(name), "{name}");
        }
    }
}
