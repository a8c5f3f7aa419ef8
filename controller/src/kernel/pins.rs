//! Where maps and links are pinned, and whether a pinned map can be used on.
//!
//! A map whose layout, type or capacity is not what this program wants is built beside the old one as `NAME_vVERSION_new`, filled,
//! and renamed over it once the programs have been swapped. Whoever is stopped in between begins anew: the pin without the suffix is
//! always the one that packets meet.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::maps::{MapError, MapInfo};
use shunt_common::maps::{ALL, MapSpec};

use super::sys::{self, Target};

/// Suffix of a map that is being filled to replace another.
const BESIDE: &str = "_new";

/// Why pins cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The object file lacks a map.
    #[error("the eBPF object has no map {name}: it was built from other sources; run `cargo xtask build`")]
    NoSuchMap {
        /// Map.
        name: &'static str,
    },
    /// The filesystem refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses to describe a map.
    #[error("cannot read what is pinned at {}", path.display())]
    Map {
        /// The pin.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<MapError>,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError + use<> {
    let path = path.to_owned();
    move |source| PinError::Io { action, path, source }
}

/// The directory of all pins of one agent.
#[derive(Clone, Debug)]
pub struct PinDir {
    root: PathBuf,
}

/// What the object wants of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Entries, or bytes of a ring buffer.
    pub capacity: u32,
    /// `BPF_F_*` of creation.
    pub flags: u32,
}

/// What becomes of a map on start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// None is pinned under this name and version.
    Create,
    /// The pinned one fits.
    Reuse,
    /// The pinned one does not fit: build beside it.
    Replace {
        /// Keys and values are the same, only the capacity differs: entries can be copied.
        same_layout: bool,
    },
}

impl Adoption {
    /// Compares what is pinned with what is wanted.
    #[must_use]
    pub fn of(pinned: Option<Shape>, wanted: Shape) -> Self {
        match pinned {
            None => Self::Create,
            Some(shape) if shape == wanted => Self::Reuse,
            Some(shape) => Self::Replace { same_layout: Shape { capacity: wanted.capacity, ..shape } == wanted },
        }
    }
}

/// Every map with what becomes of it and where it is for now.
#[derive(Clone, Debug)]
pub struct MapPins {
    dir: PinDir,
    maps: BTreeMap<&'static str, (MapSpec, Adoption)>,
}

impl PinDir {
    /// At a path on a BPF filesystem.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The directory of links.
    #[must_use]
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The pin of a map in use.
    #[must_use]
    pub fn map(&self, spec: &MapSpec) -> PathBuf {
        self.root.join(format!("{}_v{}", spec.name, spec.version))
    }

    /// The pin of a link, by program and interface.
    #[must_use]
    pub fn link(&self, program: &str, interface: &str) -> PathBuf {
        self.links().join(Self::link_name(program, interface))
    }

    /// The name of a link's pin: names on a BPF filesystem take no dots, and those of interfaces no colons.
    #[must_use]
    pub fn link_name(program: &str, interface: &str) -> String {
        format!("{program}_{}", interface.replace('.', ":"))
    }

    /// Creates the directories.
    ///
    /// # Errors
    /// The parent doesn't exist, is read-only, ...
    pub fn create(&self) -> Result<(), PinError> {
        let links = self.links();
        fs::create_dir_all(&links).map_err(io_error("create directory", &links))
    }

    /// Decides for every map whether the pinned one is used on, and forgets what an earlier attempt left half built.
    ///
    /// # Errors
    /// The object lacks a map; the directory cannot be read or written.
    pub fn plan(&self, wanted: impl Fn(&MapSpec) -> Option<Shape>) -> Result<MapPins, PinError> {
        let mut maps = BTreeMap::new();
        for spec in ALL {
            let path = self.map(spec);
            let wanted = wanted(spec).ok_or(PinError::NoSuchMap { name: spec.name })?;
            let pinned = if path.exists() {
                let info =
                    MapInfo::from_pin(&path).map_err(|error| PinError::Map { path: path.clone(), source: Box::new(error) })?;
                Some(Shape {
                    kind: info.map_type().map_or(0, |kind| kind as u32),
                    key: info.key_size(),
                    value: info.value_size(),
                    capacity: info.max_entries(),
                    flags: info.map_flags(),
                })
            } else {
                None
            };
            remove_if_there(&beside(&path))?;
            maps.insert(spec.name, (*spec, Adoption::of(pinned, wanted)));
        }
        Ok(MapPins { dir: self.clone(), maps })
    }

    /// Names of all pinned links.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn link_names(&self) -> Result<Vec<String>, PinError> {
        names(&self.links())
    }

    /// What the pinned link of this name is attached to; `None` if there is no such pin.
    ///
    /// # Errors
    /// It cannot be opened, or is no link.
    pub fn link_target(&self, name: &str) -> Result<Option<Target>, PinError> {
        let path = self.links().join(name);
        match sys::open_pin(&path) {
            Ok(link) => sys::link_target(link.as_fd()).map(Some).map_err(io_error("read the link pinned at", &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("open the link pinned at", &path)(error)),
        }
    }

    /// Removes a pinned link and detaches its program.
    ///
    /// # Errors
    /// The pin is there but cannot be removed.
    pub fn remove_link(&self, name: &str) -> Result<(), PinError> {
        let path = self.links().join(name);
        // Without this the program would run until the kernel has freed the pin's inode, a grace period later. One that cannot be
        // detached this way still goes then.
        if let Ok(link) = sys::open_pin(&path) {
            let _ = sys::detach_link(link.as_fd());
        }
        remove_if_there(&path)
    }

    /// Names of all pinned maps of ours, in whatever version.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn map_names(&self) -> Result<Vec<String>, PinError> {
        let mut names = names(&self.root)?;
        names.retain(|name| version_of(name).is_some());
        Ok(names)
    }

    /// Removes a pinned map.
    ///
    /// # Errors
    /// The pin is there but cannot be removed.
    pub fn remove_map(&self, name: &str) -> Result<(), PinError> {
        remove_if_there(&self.root.join(name))
    }

    /// Removes the pins of links whose interface is gone; their names.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn collect_dead_links(&self) -> Result<Vec<String>, PinError> {
        let mut dead = self.link_names()?;
        let mut failure = None;
        dead.retain(|name| match self.link_target(name) {
            Ok(target) => target == Some(Target::Interface(0)),
            Err(error) => {
                failure = Some(error);
                false
            }
        });
        for name in &dead {
            self.remove_link(name)?;
        }
        failure.map_or(Ok(dead), Err)
    }
}

impl MapPins {
    /// Where the map with this name is to be pinned and found for now.
    #[must_use]
    pub fn path(&self, spec: &MapSpec) -> PathBuf {
        let path = self.dir.map(spec);
        if matches!(self.adoption(spec), Adoption::Replace { .. }) { beside(&path) } else { path }
    }

    /// What becomes of a map.
    #[must_use]
    pub fn adoption(&self, spec: &MapSpec) -> Adoption {
        self.maps.get(spec.name).map_or(Adoption::Create, |(_, adoption)| *adoption)
    }

    /// Maps that are used on, with what becomes of each.
    pub fn iter(&self) -> impl Iterator<Item = (&MapSpec, Adoption)> {
        self.maps.values().map(|(spec, adoption)| (spec, *adoption))
    }

    /// Lets maps that were built beside others take their places, and removes pins of other versions. Only once no program uses
    /// the old ones any more.
    ///
    /// # Errors
    /// The directory cannot be read or written.
    pub fn settle(&mut self) -> Result<(), PinError> {
        for (spec, adoption) in self.maps.values_mut() {
            if matches!(adoption, Adoption::Replace { .. }) {
                let path = self.dir.map(spec);
                fs::rename(beside(&path), &path).map_err(io_error("rename a map to", &path))?;
                *adoption = Adoption::Reuse;
            }
        }
        for name in names(&self.dir.root)? {
            if is_other_version(&name) {
                remove_if_there(&self.dir.root.join(name))?;
            }
        }
        Ok(())
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BESIDE);
    PathBuf::from(name)
}

/// The map and version of a pin's name, if it is the pin of a map of ours.
fn version_of(name: &str) -> Option<(&'static MapSpec, u32)> {
    ALL.iter().find_map(|spec| {
        let version = name.strip_prefix(spec.name)?.strip_prefix("_v")?;
        let version = version.strip_suffix(BESIDE).unwrap_or(version);
        Some((spec, version.parse().ok()?))
    })
}

/// Whether this is the pin of a map of ours in a version that this program doesn't use.
fn is_other_version(name: &str) -> bool {
    version_of(name).is_some_and(|(spec, version)| version != spec.version)
}

fn names(dir: &Path) -> Result<Vec<String>, PinError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read directory", dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(io_error("read directory", dir))?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn remove_if_there(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Shape = Shape { kind: 1, key: 8, value: 12, capacity: 100, flags: 0 };

    #[test]
    fn a_map_is_used_on_only_if_everything_fits() {
        assert_eq!(Adoption::of(None, WANTED), Adoption::Create);
        assert_eq!(Adoption::of(Some(WANTED), WANTED), Adoption::Reuse);
        let smaller = Shape { capacity: 50, ..WANTED };
        assert_eq!(Adoption::of(Some(smaller), WANTED), Adoption::Replace { same_layout: true });
        for other in [Shape { key: 12, ..WANTED }, Shape { kind: 2, ..WANTED }, Shape { value: 4, capacity: 50, ..WANTED }] {
            assert_eq!(Adoption::of(Some(other), WANTED), Adoption::Replace { same_layout: false });
        }
    }

    #[test]
    fn only_other_versions_of_our_maps_are_removed() {
        let present = shunt_common::maps::SERVICES.version;
        let (own, own_new) = (format!("SERVICES_v{present}"), format!("SERVICES_v{present}_new"));
        for (name, other) in [
            (own.as_str(), false),
            ("SERVICES_v700", true),
            ("SERVICES_v700_new", true),
            (own_new.as_str(), false),
            ("SERVICES", false),
            ("SERVICES_vx", false),
            ("links", false),
            ("THEIRS_v7", false),
        ] {
            assert_eq!(is_other_version(name), other, "{name}");
        }
    }

    #[test]
    fn a_link_is_named_by_hook_and_interface_without_dots() {
        let pins = PinDir::new("/sys/fs/bpf/shunt");
        assert_eq!(pins.link("from_wire", "eth0.100"), Path::new("/sys/fs/bpf/shunt/links/from_wire_eth0:100"));
    }
}
