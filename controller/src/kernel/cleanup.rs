//! Removes every trace of one agent from the kernel: links and maps below its pin directory, and in this network namespace its
//! routes, its device and its pods' host sides. Nothing else.

use std::{fs, io, path::PathBuf};

use super::{
    headroom,
    links::{self, LinksError, TUNNEL},
    netlink::Netlink,
    pins::{PinDir, PinError},
    routes,
};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Links, each of which detached a program.
    pub links: usize,
    /// Maps.
    pub maps: usize,
    /// Routes of the host.
    pub routes: usize,
    /// Devices: `shunt0`, pods' host sides and what gives these room.
    pub devices: usize,
}

/// Why something could not be removed; the rest was.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A device or a route.
    #[error(transparent)]
    Links(#[from] LinksError),
    /// The directory.
    #[error("cannot remove {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Netlink(#[source] io::Error),
}

/// Removes everything of the agent with this pin directory, as far as possible. Removing twice is no error.
pub fn remove_all(dir: &PinDir) -> (Removed, Vec<CleanupError>) {
    let mut removed = Removed::default();
    let mut errors = Vec::new();
    // Programs first: packets go by the host's own routes from then on, or nowhere, but never by half a dataplane.
    match dir.link_names() {
        Ok(names) => {
            for name in names {
                match dir.remove_link(&name) {
                    Ok(()) => removed.links += 1,
                    Err(error) => errors.push(error.into()),
                }
            }
        }
        Err(error) => errors.push(error.into()),
    }
    match dir.map_names() {
        Ok(names) => {
            for name in names {
                match dir.remove_map(&name) {
                    Ok(()) => removed.maps += 1,
                    Err(error) => errors.push(error.into()),
                }
            }
        }
        Err(error) => errors.push(error.into()),
    }
    if let Err((path, source)) = remove_directories(dir) {
        errors.push(CleanupError::Directory { path, source });
    }
    match Netlink::open() {
        Ok(mut netlink) => remove_devices(&mut netlink, &mut removed, &mut errors),
        Err(error) => errors.push(CleanupError::Netlink(error)),
    }
    (removed, errors)
}

/// Removes the directories of pins that have none any more.
///
/// # Errors
/// The last that could not be removed, and why.
pub fn remove_directories(dir: &PinDir) -> Result<(), (PathBuf, io::Error)> {
    let mut failure = Ok(());
    for path in [dir.links(), dir.path().to_owned()] {
        if let Err(error) = fs::remove_dir(&path)
            && !is_not_ours(&error)
        {
            failure = Err((path, error));
        }
    }
    failure
}

/// A directory that is gone already, is the root of a BPF filesystem (which is whose who mounted it), or holds what others put there.
fn is_not_ours(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}

fn remove_devices(netlink: &mut Netlink, removed: &mut Removed, errors: &mut Vec<CleanupError>) {
    match routes::remove_all(netlink) {
        Ok(count) => removed.routes = count,
        Err(error) => errors.push(error.into()),
    }
    let devices = match links::list(netlink) {
        Ok(devices) => devices,
        Err(error) => return errors.push(error.into()),
    };
    let is_tunnel = |link: &links::Link| link.name == TUNNEL && matches!(link.kind, links::Kind::Vxlan { .. });
    for link in devices.iter().filter(|link| is_tunnel(link) || links::is_pod_side(link) || headroom::is_ours(link)) {
        match links::delete(netlink, link.index, &link.name) {
            Ok(()) => removed.devices += 1,
            Err(error) => errors.push(error.into()),
        }
    }
}
