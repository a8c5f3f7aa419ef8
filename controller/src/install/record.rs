//! What was changed on the node, on disk before it is changed: STATE_DIR/`node.json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use super::{conflist, plugin};
use crate::{
    disk::{self, DiskError},
    kernel::sysctl,
};

const NAME: &str = "node.json";
const MODE: u32 = 0o600;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    /// Kernel settings by their path below /proc/sys/net.
    #[serde(default)]
    settings: BTreeMap<String, Setting>,
    /// The CNI plugin and configuration.
    #[serde(default)]
    files: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Setting {
    /// Before the first change of ours.
    before: String,
    /// What we made of it.
    set: String,
}

/// The record of an agent. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Record {
    path: PathBuf,
    content: Arc<Mutex<Content>>,
}

impl Record {
    /// The one of a state directory that exists. One that cannot be read is begun anew: it is for tidiness alone, and not worth a
    /// node without network.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn open(state_dir: &Path) -> Result<Self, DiskError> {
        let path = state_dir.join(NAME);
        let content = read(&path)?.unwrap_or_else(|problem| {
            tracing::warn!(path = %path.display(), "what was changed on this node before is not known any more: {problem}");
            Content::default()
        });
        Ok(Self { path, content: Arc::new(Mutex::new(content)) })
    }

    /// Writes down that a setting is about to be changed. What it was before the first change stays.
    pub(super) fn note_setting(&self, key: &str, before: &str, set: &str) -> Result<(), DiskError> {
        self.change(|content| {
            let known = content.settings.get(key).map(|known| known.before.clone());
            let setting = Setting { before: known.unwrap_or_else(|| before.to_owned()), set: set.to_owned() };
            content.settings.insert(key.to_owned(), setting);
        })
    }

    /// The same for a setting that others change too: what it would be without us may be another each time.
    pub(super) fn replace_setting(&self, key: &str, before: &str, set: &str) -> Result<(), DiskError> {
        self.change(|content| {
            content.settings.insert(key.to_owned(), Setting { before: before.to_owned(), set: set.to_owned() });
        })
    }

    /// What a setting was before us, and what we made of it.
    pub(super) fn setting(&self, key: &str) -> Option<(String, String)> {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        content.settings.get(key).map(|setting| (setting.before.clone(), setting.set.clone()))
    }

    /// Writes down that a file is about to be made.
    pub(super) fn note_file(&self, path: &Path) -> Result<(), DiskError> {
        self.change(|content| {
            content.files.insert(path.to_owned());
        })
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> Result<(), DiskError> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = content.clone();
        change(&mut changed);
        if changed != *content {
            write(&self.path, &changed)?;
            *content = changed;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Result<Content, serde_json::Error>, DiskError> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ok(Content::default())),
        Err(source) => Err(DiskError { action: "read", path: path.to_owned(), source }),
    }
}

fn write(path: &Path, content: &Content) -> Result<(), DiskError> {
    let failed = |error: serde_json::Error| DiskError { action: "write", path: path.to_owned(), source: error.into() };
    let mut text = serde_json::to_vec_pretty(content).map_err(failed)?;
    text.push(b'\n');
    disk::replace(path, &text, MODE)
}

/// What [`take_back`] did, and what it left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Settings that have their old value again.
    pub settings: usize,
    /// Files that were removed.
    pub files: usize,
    /// What was left as it is, and why.
    pub left: Vec<String>,
    /// Whether the record stays for another cleanup.
    pub again: bool,
}

/// Takes back what the agent of a state directory changed on the node, as far as it is still as the agent left it. Files stay while
/// `pods` of ours are left, whose runtime needs them. Doing it twice is no error.
pub fn take_back(state_dir: &Path, pods: usize) -> (Restored, Vec<DiskError>) {
    let path = state_dir.join(NAME);
    let mut restored = Restored::default();
    let mut errors = Vec::new();
    let mut content = match read(&path) {
        Ok(Ok(content)) => content,
        Ok(Err(problem)) => {
            restored.left.push(format!("{} cannot be read ({problem}): kernel settings stay as they are", path.display()));
            Content::default()
        }
        Err(error) => return (restored, vec![error]),
    };
    content.settings.retain(|key, setting| match restore(key, setting) {
        Ok(outcome) => {
            restored.settings += usize::from(outcome.is_none());
            restored.left.extend(outcome);
            false
        }
        Err(source) => {
            errors.push(DiskError { action: "restore", path: sysctl::path(key), source });
            true
        }
    });
    content.files.retain(|file| {
        if pods > 0 {
            restored.left.push(format!(
                "{} stays: {pods} pod(s) of shunt were still on this node. Delete them, and clean up again",
                file.display()
            ));
            return true;
        }
        match remove(file) {
            Ok(outcome) => {
                restored.files += usize::from(outcome.is_none());
                restored.left.extend(outcome);
                false
            }
            Err(error) => {
                errors.push(error);
                true
            }
        }
    });
    restored.again = content != Content::default();
    let kept = if content == Content::default() { disk::remove(&path).map(drop) } else { write(&path, &content) };
    errors.extend(kept.err());
    (restored, errors)
}

/// `Some` with the reason if it was left.
fn restore(key: &str, setting: &Setting) -> io::Result<Option<String>> {
    match sysctl::present(key)? {
        // With its interface.
        None => Ok(Some(format!("net/{key} is gone"))),
        Some(value) if value != setting.set => {
            Ok(Some(format!("net/{key} is {value}, which somebody set after us ({} before): it stays", setting.before)))
        }
        Some(_) => sysctl::write(key, &setting.before).map(|()| None),
    }
}

/// `Some` with the reason if it was left.
fn remove(file: &Path) -> Result<Option<String>, DiskError> {
    let is_configuration = file.file_name().is_some_and(|name| name == conflist::NAME);
    let is_ours = file.file_name().is_some_and(|name| name == plugin::NAME) || (is_configuration && conflist::names_ours(file));
    if file.exists() && !is_ours {
        return Ok(Some(format!("{} is not as shunt wrote it: it stays", file.display())));
    }
    Ok(if disk::remove(file)? { None } else { Some(format!("{} is gone", file.display())) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_before_us_is_kept_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        for (before, set) in [("0", "1"), ("1", "2")] {
            let record = Record::open(dir.path()).unwrap();
            record.note_setting("ipv4/ip_forward", before, set).unwrap();
        }
        let content = read(&dir.path().join(NAME)).unwrap().unwrap();
        assert_eq!(content.settings["ipv4/ip_forward"], Setting { before: "0".into(), set: "2".into() });
    }

    #[test]
    fn files_are_taken_back_when_no_pod_is_left_and_only_if_they_are_ours() {
        let dir = tempfile::tempdir().unwrap();
        let (conf, binary) = (dir.path().join(conflist::NAME), dir.path().join(plugin::NAME));
        let state = dir.path().join("state");
        fs::create_dir(&state).unwrap();
        let record = Record::open(&state).unwrap();
        fs::write(&conf, conflist::text(Path::new("/run/shunt/agent.sock"))).unwrap();
        fs::write(&binary, "binary").unwrap();
        record.note_file(&conf).unwrap();
        record.note_file(&binary).unwrap();

        let (restored, errors) = take_back(&state, 2);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!((restored.files, restored.left.len()), (0, 2), "{restored:?}");
        assert!(restored.left[0].contains("2 pod(s)") && conf.exists() && binary.exists(), "{restored:?}");

        let text = fs::read(&conf).unwrap();
        fs::write(&conf, "{}").unwrap();
        let (restored, errors) = take_back(&state, 0);
        assert!(errors.is_empty() && restored.files == 1 && conf.exists(), "{restored:?} {errors:?}");
        assert!(!binary.exists());

        Record::open(&state).unwrap().note_file(&conf).unwrap();
        fs::write(&conf, text).unwrap();
        assert_eq!(take_back(&state, 0).0.files, 1);
        assert!(!conf.exists());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "no record of nothing");
        let (restored, errors) = take_back(&state, 0);
        assert!(restored == Restored::default() && errors.is_empty(), "{restored:?} {errors:?}");
    }

    #[test]
    fn a_setting_that_is_gone_or_was_changed_by_somebody_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record::open(dir.path()).unwrap();
        record.note_setting("ipv4/conf/none_such/rp_filter", "1", "2").unwrap();
        record.note_setting("ipv4/ip_default_ttl", "1", "2").unwrap();
        let ttl = sysctl::present("ipv4/ip_default_ttl").unwrap();
        let (restored, errors) = take_back(dir.path(), 0);
        assert!(errors.is_empty() && restored.settings == 0, "{restored:?} {errors:?}");
        assert!(restored.left[0].contains("none_such") && restored.left[1].contains("after us"), "{restored:?}");
        assert_eq!(sysctl::present("ipv4/ip_default_ttl").unwrap(), ttl);
    }

    #[test]
    fn a_damaged_record_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(NAME), "{").unwrap();
        assert!(take_back(dir.path(), 0).0.left[0].contains("cannot be read"));
        fs::write(dir.path().join(NAME), "{").unwrap();
        Record::open(dir.path()).unwrap().note_file(Path::new("/x")).unwrap();
        assert_eq!(read(&dir.path().join(NAME)).unwrap().unwrap().files.len(), 1);
    }
}
