//! The claim to a run directory: one agent a directory, held by a lock that ends with the process.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

/// Name of the lock file in a run directory.
pub const LOCK_FILE: &str = "agent.lock";

/// Who holds, or last held, a run directory. Stays in the lock file when the agent is gone, so that the command line finds
/// what a dead agent left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// `--node-name`, or the command that holds the directory.
    pub node: String,
    /// Where its maps and links are pinned.
    pub pin_dir: PathBuf,
    /// Where its addresses are kept.
    pub state_dir: PathBuf,
}

/// Why a run directory cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A live process has it.
    #[error("another agent is running here{}: it holds {}; stop it, or choose another --run-dir", pid_note(.holder), .lock.display())]
    Held {
        /// The lock file.
        lock: PathBuf,
        /// Who it is, if the file says so.
        holder: Option<Holder>,
    },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn pid_note(holder: &Option<Holder>) -> String {
    holder.as_ref().map(|holder| format!(" (pid {})", holder.pid)).unwrap_or_default()
}

/// A held run directory. Released when dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct Claim {
    run_dir: PathBuf,
    _lock: Flock<File>,
}

impl Claim {
    /// Takes a run directory (made if missing, mode 0755) and writes down who has it.
    ///
    /// # Errors
    /// Another process holds it, or the directory cannot be written.
    pub fn take(run_dir: &Path, holder: &Holder) -> Result<Self, ClaimError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ClaimError::Io { action, path, source }
        };
        fs::create_dir_all(run_dir).map_err(io("create the run directory", run_dir))?;
        let path = run_dir.join(LOCK_FILE);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io("open", &path))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, Errno::EWOULDBLOCK)) => return Err(ClaimError::Held { lock: path, holder: last_holder(run_dir) }),
            Err((_, errno)) => return Err(io("lock", &path)(errno.into())),
        };
        let text = serde_json::to_string(holder).map_err(|error| io("write", &path)(error.into()))?;
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{text}")).map_err(io("write", &path))?;
        Ok(Self { run_dir: run_dir.to_owned(), _lock: lock })
    }

    /// Listens at [`super::path`], mode 0600, replacing the socket of a dead agent. Needs a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn listen(&self) -> Result<UnixListener, ClaimError> {
        let path = super::path(&self.run_dir);
        let io = |action| {
            let path = path.clone();
            move |source| ClaimError::Io { action, path, source }
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("replace")(error)),
            _ => {}
        }
        // Bound under a name of its own and renamed when its mode is right: nobody meets a socket that is open to all.
        let fresh = self.run_dir.join("agent.sock.new");
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(io("listen at"))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map_err(io("restrict"))?;
        fs::rename(&fresh, &path).map_err(io("publish"))?;
        Ok(listener)
    }
}

/// Who holds, or last held, a run directory; `None` if that cannot be read.
#[must_use]
pub fn last_holder(run_dir: &Path) -> Option<Holder> {
    let mut text = String::new();
    File::open(run_dir.join(LOCK_FILE)).ok()?.take(64 * 1024).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(dir: &Path) -> Holder {
        Holder { pid: std::process::id(), node: "n1".to_owned(), pin_dir: dir.join("pins"), state_dir: dir.join("state") }
    }

    #[test]
    fn one_agent_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("deep/run");
        let claim = Claim::take(&run_dir, &holder(dir.path())).unwrap();
        let error = Claim::take(&run_dir, &holder(dir.path())).unwrap_err().to_string();
        assert!(error.contains(&format!("another agent is running here (pid {})", std::process::id())), "{error}");
        drop(claim);
        assert_eq!(last_holder(&run_dir), Some(holder(dir.path())), "what a dead agent left can be found");
        Claim::take(&run_dir, &holder(dir.path())).unwrap();
    }

    #[test]
    fn a_garbled_lock_file_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join(LOCK_FILE),
            "{\"pid\": 99999999999999, garbage \u{0} that is longer than what will be written",
        )
        .unwrap();
        assert_eq!(last_holder(dir.path()), None);
        let _claim = Claim::take(dir.path(), &holder(dir.path())).unwrap();
        assert_eq!(last_holder(dir.path()), Some(holder(dir.path())));
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_and_is_for_root() {
        let dir = tempfile::tempdir().unwrap();
        let claim = Claim::take(dir.path(), &holder(dir.path())).unwrap();
        drop(claim.listen().unwrap());
        let _listener = claim.listen().unwrap();
        let mode = fs::metadata(super::super::path(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        tokio::net::UnixStream::connect(super::super::path(dir.path())).await.unwrap();
    }
}
