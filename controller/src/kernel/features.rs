//! What the node has to offer before anything is loaded: each check says what is missing and what to do.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// TCX links, without which programs cannot be pinned where they are attached (Linux 6.6).
const KERNEL: (u32, u32) = (6, 6);

/// Capabilities by number (include/uapi/linux/capability.h), and what each is needed for.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "devices, routes, neighbours and attaching programs"),
    (39, "CAP_BPF", "maps and programs"),
    (38, "CAP_PERFMON", "programs that handle packet pointers"),
];

/// Has what CAP_BPF and CAP_PERFMON are parts of.
const CAP_SYS_ADMIN: u32 = 21;

/// The usual place of a BPF filesystem.
const BPFFS: &str = "/sys/fs/bpf";

/// What is missing.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// Too old.
    #[error(
        "the kernel is {release}, shunt needs Linux {}.{} or later (TCX links, which let programs outlive the agent): \
         boot a newer kernel", KERNEL.0, KERNEL.1
    )]
    Kernel {
        /// What `uname -r` says.
        release: String,
    },
    /// Not permitted.
    #[error("missing {}: run the agent as root, or grant them (in Kubernetes: securityContext.capabilities.add)", missing.join(", "))]
    Capabilities {
        /// Names and uses.
        missing: Vec<String>,
    },
    /// Nowhere to pin.
    #[error(
        "the pin directory {} is not on a BPF filesystem, and none can be mounted at {}: run `mount -t bpf bpf {}` on the node \
         (in Kubernetes: a hostPath volume of {BPFFS} with mountPropagation)", pin_dir.display(), at.display(), at.display()
    )]
    BpfFilesystem {
        /// The pin directory.
        pin_dir: PathBuf,
        /// Where a mount was tried.
        at: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// No cgroup directory.
    #[error("the cgroup directory {} does not exist: name the cgroup v2 directory of this node's processes with --cgroup", path.display())]
    Cgroup {
        /// As given.
        path: PathBuf,
    },
    /// /proc or /sys cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Checks kernel, capabilities and the cgroup directory.
///
/// # Errors
/// The first thing that is missing.
pub fn check(cgroup: &Path) -> Result<(), FeatureError> {
    let read =
        |path: &str| fs::read_to_string(path).map_err(|source| FeatureError::Unreadable { path: PathBuf::from(path), source });
    check_release(read("/proc/sys/kernel/osrelease")?.trim())?;
    check_capabilities(&read("/proc/self/status")?)?;
    if !cgroup.is_dir() {
        return Err(FeatureError::Cgroup { path: cgroup.to_owned() });
    }
    Ok(())
}

fn check_release(release: &str) -> Result<(), FeatureError> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL { Ok(()) } else { Err(FeatureError::Kernel { release: release.to_owned() }) }
}

fn check_capabilities(status: &str) -> Result<(), FeatureError> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .filter(|(bit, name, _)| !has(*bit) && (*name == "CAP_NET_ADMIN" || !has(CAP_SYS_ADMIN)))
        .map(|(_, name, used_for)| format!("{name} (for {used_for})"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(FeatureError::Capabilities { missing }) }
}

/// Makes sure that the pin directory is, or can be made, on a BPF filesystem; where one had to be mounted for it, if so.
///
/// # Errors
/// There is none and none can be mounted.
pub fn ensure_bpffs(pin_dir: &Path) -> Result<Option<PathBuf>, FeatureError> {
    let existing = pin_dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let kind = statfs(existing)
        .map_err(|errno| FeatureError::Unreadable { path: existing.to_owned(), source: errno.into() })?
        .filesystem_type();
    if kind == BPF_FS_MAGIC {
        return Ok(None);
    }
    let at = if pin_dir.starts_with(BPFFS) { Path::new(BPFFS) } else { pin_dir };
    let mounted = fs::create_dir_all(at)
        .and_then(|()| mount(Some("bpf"), at, Some("bpf"), MsFlags::empty(), Some("mode=0700")).map_err(io::Error::from));
    match mounted {
        Ok(()) => Ok(Some(at.to_owned())),
        Err(source) => Err(FeatureError::BpfFilesystem { pin_dir: pin_dir.to_owned(), at: at.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, new_enough) in [
            ("6.18.44-fc-v657", true),
            ("6.6.0", true),
            ("6.6", true),
            ("10.0.1", true),
            ("6.5.13-200.fc38.x86_64", false),
            ("6.1.0-13-amd64", false),
            ("5.15.0-91-generic", false),
            ("", false),
        ] {
            assert_eq!(check_release(release).is_ok(), new_enough, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named_with_their_use() {
        let status = |mask: u64| format!("Name:\tshunt\nCapInh:\t0000000000000000\nCapEff:\t{mask:016x}\n");
        assert!(check_capabilities(&status(0x1ff_ffff_ffff)).is_ok());
        assert!(check_capabilities(&status(1 << 12 | 1 << 21)).is_ok(), "CAP_SYS_ADMIN includes the BPF ones");
        let error = check_capabilities(&status(1 << 12)).unwrap_err().to_string();
        assert!(error.contains("CAP_BPF (for maps and programs)") && !error.contains("NET_ADMIN"), "{error}");
        let error = check_capabilities(&status(1 << 21)).unwrap_err().to_string();
        assert!(error.contains("CAP_NET_ADMIN") && !error.contains("CAP_BPF"), "{error}");
        assert!(check_capabilities("").is_err());
    }

    #[test]
    fn a_missing_cgroup_directory_is_named() {
        let error = FeatureError::Cgroup { path: "/nowhere".into() }.to_string();
        assert!(error.contains("/nowhere") && error.contains("--cgroup"), "{error}");
    }
}
