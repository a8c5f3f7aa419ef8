//! Connect-time translation: the programs at system calls about a socket's peer and at a socket's end, attached to a cgroup and all below it.
//!
//! Programs of others at the same cgroup run beside them. Which sockets are ours they tell by the map `CLIENTS`.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, Program, ProgramError,
    links::{FdLink, LinkError},
};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use shunt_common::{connect::Frontend, net::V4};

use super::{
    pins::PinDir,
    programs::{Programs, ProgramsError, link_error, program_error},
    sys::{self, Target},
    table::Table,
};

/// Removes the entries of sockets that end.
const RELEASE: &str = "sock_release";

/// The programs, by the names that the object file and the pins have for them, in the order in which they are attached: what makes entries of
/// `CONNECTED` comes after what uses and removes them. Who removes links goes by the names in order: there, too, the latter stay longer.
const PROGRAMS: [&str; 5] = [RELEASE, "getpeername4", "getpeername6", "connect4", "connect6"];

/// The map `CONNECTED`.
pub type Connected = Table<u64, Frontend<V4>>;

/// What pins of links have in the place of an interface.
const PLACE: &str = "cgroup";

/// No cgroup v2 hierarchy.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} is not a cgroup v2 directory: mount one (`mount -t cgroup2 none DIR`) and name it with --cgroup", path.display()
)]
pub struct NoCgroup {
    path: PathBuf,
}

/// A cgroup v2 directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The one at a path, or where version 1 has the rest, at `unified` below it (as systemd mounts both).
    ///
    /// # Errors
    /// There is none.
    pub fn find(path: &Path) -> Result<Self, NoCgroup> {
        let is_v2 = |path: &PathBuf| statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC);
        let found = [path.to_owned(), path.join("unified")].into_iter().find(is_v2);
        found.map(|path| Self { path }).ok_or_else(|| NoCgroup { path: path.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number, as links know it; `None` once it is gone.
    fn id(&self) -> Option<u64> {
        // A directory's inode (fs/kernfs, on machines of 64 bits).
        fs::metadata(&self.path).ok().map(|metadata| metadata.ino())
    }
}

impl Programs {
    /// Attaches the programs to a cgroup, or replaces those that run there, each in one step. All of them are verified before.
    ///
    /// # Errors
    /// The kernel refuses, or a link cannot be pinned; some may be attached.
    pub fn attach_connect(&mut self, cgroup: &Cgroup, connected: &Connected) -> Result<(), ProgramsError> {
        let place = cgroup.path.display().to_string();
        for name in PROGRAMS {
            let loaded = match self.connect(name)? {
                Program::CgroupSock(program) => program.load(),
                Program::CgroupSockAddr(program) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            loaded.map_err(program_error("load", name, ""))?;
        }
        let dir = File::open(&cgroup.path).map_err(link_error("open the cgroup for", PROGRAMS[0], &place))?;
        // At another cgroup, what makes entries goes before what removes them.
        for name in PROGRAMS.into_iter().rev() {
            let pin = link_name(&self.dir, name);
            let is_here = |target| matches!(target, Target::Cgroup(id) if Some(id) == cgroup.id());
            if self.dir.link_target(&pin)?.is_some_and(|target| !is_here(target)) {
                self.dir.remove_link(&pin)?;
            }
        }
        for name in PROGRAMS {
            self.attach_one(name, &dir, &place, connected)?;
        }
        Ok(())
    }

    /// Attaches one that has no link at another cgroup.
    fn attach_one(&mut self, name: &'static str, dir: &File, place: &str, connected: &Connected) -> Result<(), ProgramsError> {
        let path = self.dir.link(name, PLACE);
        if self.dir.link_target(&link_name(&self.dir, name))?.is_some() {
            let replaced = sys::open_pin(&path).and_then(|link| {
                let program = self.connect(name).map_err(io::Error::other)?;
                sys::update_link(link.as_fd(), program.fd().map_err(io::Error::other)?.as_fd())
            });
            return replaced.map_err(link_error("replace the program of", name, place));
        }
        // Alone on its link; beside all others at the cgroup, as links always are.
        let link = match self.connect(name)? {
            Program::CgroupSock(program) => {
                program.attach(dir, CgroupAttachMode::Single).and_then(|id| program.take_link(id)).map(FdLink::try_from)
            }
            Program::CgroupSockAddr(program) => {
                program.attach(dir, CgroupAttachMode::Single).and_then(|id| program.take_link(id)).map(FdLink::try_from)
            }
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        let link = link.map_err(program_error("attach", name, place))?.map_err(link_error::<LinkError>("pin", name, place))?;
        if name == RELEASE {
            // While it was not in force sockets have come to their end unseen. Before it is pinned: whoever finds its link knows that this is done.
            connected.clear()?;
        }
        link.pin(path).map(drop).map_err(link_error("pin", name, place))
    }

    fn connect(&mut self, name: &'static str) -> Result<&mut Program, ProgramsError> {
        self.ebpf.program_mut(name).ok_or(ProgramsError::NoSuchProgram { program: name })
    }
}

/// Names of the pinned links.
pub fn link_names(dir: &PinDir) -> impl Iterator<Item = String> + '_ {
    PROGRAMS.into_iter().map(|name| link_name(dir, name))
}

fn link_name(dir: &PinDir, program: &str) -> String {
    let path = dir.link(program, PLACE);
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether all programs are attached to this very cgroup.
///
/// # Errors
/// A link cannot be read.
pub fn is_attached(dir: &PinDir, cgroup: &Cgroup) -> Result<bool, ProgramsError> {
    let wanted = cgroup.id().map(Target::Cgroup);
    for name in link_names(dir) {
        let target = dir.link_target(&name)?;
        if target.is_none() || target != wanted {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_removes_entries_comes_before_what_makes_them_and_its_link_goes_after() {
        let dir = PinDir::new("/sys/fs/bpf/shunt");
        let mut names: Vec<String> = link_names(&dir).collect();
        assert_eq!(names.first(), Some(&link_name(&dir, RELEASE)));
        // As all that removes links goes by.
        names.sort_unstable();
        assert_eq!(names.last(), Some(&link_name(&dir, RELEASE)));
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_named() {
        let error = Cgroup::find(Path::new("/proc")).unwrap_err().to_string();
        assert!(error.starts_with("/proc is not a cgroup v2 directory") && error.contains("--cgroup"), "{error}");
        assert!(Cgroup::find(Path::new("/nowhere")).is_err());
    }
}
