//! Work in another network namespace: on a thread of its own, so that no other thread ever stands in the wrong one.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, linux::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};
use rtnetlink::Handle;

/// Why a namespace cannot be worked in.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetnsError {
    #[error("the network namespace {} does not exist", .0.display())]
    Missing(PathBuf),
    #[error("{} is the node's own network namespace, not a pod's", .0.display())]
    Own(PathBuf),
    #[error("cannot {action} the network namespace {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} is not a network namespace")]
    NotOne(PathBuf),
    #[error("the worker in the network namespace {} failed", .0.display())]
    Worker(PathBuf),
}

/// An open network namespace: it stays while this does, whatever becomes of its path.
#[derive(Debug)]
pub(super) struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// A pod's namespace, by its path.
    pub(super) fn open(path: &Path) -> Result<Self, NetnsError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetnsError::Missing(path.to_owned()),
            _ => NetnsError::Io { action: "open", path: path.to_owned(), source },
        })?;
        let own = Self::own()?;
        let identity = |file: &File| file.metadata().map(|metadata| (metadata.st_dev(), metadata.st_ino()));
        match (identity(&file), identity(&own.file)) {
            (Ok(theirs), Ok(ours)) if theirs == ours => Err(NetnsError::Own(path.to_owned())),
            (Err(source), _) | (_, Err(source)) => Err(NetnsError::Io { action: "look at", path: path.to_owned(), source }),
            // Every namespace is an inode of one file system (fs/nsfs.c).
            (Ok((theirs, _)), Ok((ours, _))) if theirs != ours => Err(NetnsError::NotOne(path.to_owned())),
            _ => Ok(Self { path: path.to_owned(), file }),
        }
    }

    /// The namespace that this process works in: the node's.
    pub(super) fn own() -> Result<Self, NetnsError> {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        let file = File::open(&path).map_err(|source| NetnsError::Io { action: "open", path: path.clone(), source })?;
        Ok(Self { path, file })
    }

    /// Its descriptor.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Does `work` in the namespace, with a route socket that was opened there.
    pub(super) fn run<T: Send>(&self, work: impl AsyncFnOnce(Handle) -> T + Send) -> Result<T, NetnsError> {
        let io = |action| move |source| NetnsError::Io { action, path: self.path.clone(), source };
        let enter = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
                nix::errno::Errno::EINVAL => NetnsError::NotOne(self.path.clone()),
                errno => io("enter")(errno.into()),
            })?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(io("work in"))?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().map_err(io("open a route socket in"))?;
                tokio::spawn(connection);
                Ok(work(handle).await)
            })
        };
        thread::scope(|scope| {
            let worker = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, enter).map_err(io("work in"))?;
            worker.join().map_err(|_| NetnsError::Worker(self.path.clone()))?
        })
    }
}
