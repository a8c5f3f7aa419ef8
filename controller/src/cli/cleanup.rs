//! `shunt cleanup`.

use std::{fs, io, path::Path, process::ExitCode};

use anyhow::{Context, bail};

use super::{Dirs, output};
use crate::{
    install, ipam,
    kernel::{cleanup, links, netlink::Netlink, pins::PinDir},
    socket::{
        self,
        claim::{self, Claim, Holder},
    },
    takeover::record::Record,
};

/// Remove every trace of a stopped agent from this node
#[derive(Debug, clap::Args)]
pub(super) struct Cleanup {}

impl Cleanup {
    pub(super) fn run(self, dirs: &Dirs) -> anyhow::Result<ExitCode> {
        let (pin_dir, state_dir) = (dirs.found_pin_dir(), dirs.found_state_dir());
        // Written down again, so that a second try finds the same directories.
        let holder =
            Holder { pid: std::process::id(), node: String::new(), pin_dir: pin_dir.clone(), state_dir: state_dir.clone() };
        let claim = Claim::take(&dirs.run_dir, &holder).context("not cleaned up")?;
        if Record::path(&state_dir).exists() {
            bail!(
                "not cleaned up: this node was taken over from flannel and its pods depend on it; put it back with `shunt rollback`"
            );
        }
        let pods = pods_left(&state_dir);
        let (removed, errors) = cleanup::remove_all(&PinDir::new(&pin_dir));
        let mut errors: Vec<anyhow::Error> = errors.into_iter().map(Into::into).collect();
        output::line(&format!(
            "removed {} links and {} maps from {}, {} routes, {} devices",
            removed.links,
            removed.maps,
            pin_dir.display(),
            removed.routes,
            removed.devices
        ))?;
        let (restored, refused) = install::take_back(&state_dir, pods);
        errors.extend(refused.into_iter().map(Into::into));
        output::line(&format!("put back {} kernel settings, removed {} CNI files", restored.settings, restored.files))?;
        for left in &restored.left {
            output::line(left)?;
        }
        if let Err(error) = ipam::remove(&state_dir) {
            errors.push(error.into());
        }
        errors.extend(remove_dir_if_empty(&state_dir).err());
        // They lead the next cleanup to the same directories.
        if errors.is_empty() && !restored.again {
            errors.extend(remove_run_files(&dirs.run_dir).err());
        }
        drop(claim);
        for error in &errors {
            eprintln!("shunt: {error:#}");
        }
        Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Pods of the address book whose interface stands. What cannot be told counts as none: the rest is removed all the same.
fn pods_left(state_dir: &Path) -> usize {
    let (Ok(pods), Ok(mut netlink)) = (ipam::read_pods(state_dir), Netlink::open()) else { return 0 };
    let present = links::list(&mut netlink).unwrap_or_default();
    pods.iter().filter(|pod| present.iter().any(|link| link.name == pod.host_interface)).count()
}

fn remove_run_files(run_dir: &Path) -> anyhow::Result<()> {
    for path in [socket::path(run_dir), run_dir.join(claim::LOCK_FILE)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    remove_dir_if_empty(run_dir)
}

/// What others keep in a directory keeps the directory.
fn remove_dir_if_empty(dir: &Path) -> anyhow::Result<()> {
    match fs::remove_dir(dir) {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy
            ) =>
        {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}
