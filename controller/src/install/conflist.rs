//! The network configuration that tells the container runtime of us.

use std::{fs, io, path::Path};

use serde_json::{Value, json};

use crate::disk::{self, DiskError};

/// Its file's name. Runtimes take the first in the directory by name.
pub const NAME: &str = "10-shunt.conflist";

/// The type that names our plugin, which is the file name of its binary too.
pub const TYPE: &str = super::plugin::NAME;

/// Whoever may look at the runtime's configuration may look at ours.
const MODE: u32 = 0o644;

/// A larger file is no network configuration.
const MAX_BYTES: u64 = 1 << 20;

/// The file's text.
#[must_use]
pub fn text(agent_socket: &Path) -> String {
    let plugin = json!({ "type": TYPE, "agentSocket": agent_socket, "capabilities": { "portMappings": true } });
    format!("{:#}\n", json!({ "cniVersion": "1.1.0", "name": "shunt", "plugins": [plugin] }))
}

/// Writes it if it is not there or differs; whether it was written.
///
/// # Errors
/// The file system refuses.
pub fn ensure(path: &Path, text: &str) -> Result<bool, DiskError> {
    match fs::read(path) {
        Ok(present) if present == text.as_bytes() => return Ok(false),
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(DiskError { action: "read", path: path.to_owned(), source });
        }
        _ => {}
    }
    disk::replace(path, text.as_bytes(), MODE)?;
    Ok(true)
}

/// What an operator should know of other configurations in the directory: those that the runtime takes before ours, and those that
/// name our plugin too.
///
/// # Errors
/// The directory cannot be read.
pub fn rivals(dir: &Path) -> Result<Vec<String>, DiskError> {
    let failed = |source| DiskError { action: "read", path: dir.to_owned(), source };
    let mut notes = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        notes.extend(rivalry(&path, names_ours(&path)));
    }
    notes.sort();
    Ok(notes)
}

/// libcni takes files with these endings, in the order of their names.
fn rivalry(path: &Path, names_ours: bool) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let is_configuration =
        path.extension().is_some_and(|ending| ["conf", "conflist", "json"].iter().any(|known| ending == *known));
    if !is_configuration || name == NAME {
        return None;
    }
    if name < NAME {
        return Some(format!(
            "the container runtime takes the CNI configuration {} before {NAME}, so that pods are not added to shunt: \
             remove or rename it",
            path.display()
        ));
    }
    names_ours.then(|| {
        format!(
            "the CNI configuration {} names the plugin {TYPE} beside {NAME}, which is the one that is kept: remove it",
            path.display()
        )
    })
}

/// Whether a file is a configuration of our plugin.
pub(super) fn names_ours(path: &Path) -> bool {
    let is_plausible = fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_BYTES);
    let text = is_plausible.then(|| fs::read(path).ok()).flatten();
    let Some(config) = text.and_then(|text| serde_json::from_slice::<Value>(&text).ok()) else { return false };
    let plugins = config["plugins"].as_array().into_iter().flatten();
    plugins.chain([&config]).any(|plugin| plugin["type"] == TYPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_the_manifests() {
        let ours: Value = serde_json::from_str(&text(Path::new("/run/shunt/agent.sock"))).unwrap();
        let shipped: Value = serde_json::from_str(include_str!("../../../manifests/cni/10-shunt.conflist")).unwrap();
        assert_eq!(ours, shipped);
    }

    #[test]
    fn what_the_runtime_takes_first_and_what_names_us_twice_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let ours = text(Path::new("/run/shunt/agent.sock"));
        for (name, content) in [
            (NAME, ours.as_str()),
            ("05-cilium.conflist", "{}"),
            ("10-flannel.conflist", "not even JSON"),
            ("05-not-yet.conflist.new", "{}"),
            ("87-podman-bridge.conflist", r#"{"plugins":[{"type":"bridge"}]}"#),
            ("99-old.conflist", r#"{"plugins":[{"type":"shunt"}]}"#),
            ("99-older.conf", r#"{"type":"shunt"}"#),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
        }
        fs::create_dir(dir.path().join("99-dir.conf")).unwrap();
        let notes = rivals(dir.path()).unwrap();
        let named = |name: &str| notes.iter().filter(|note| note.contains(name)).count();
        assert_eq!(notes.len(), 4, "{notes:?}");
        for name in ["05-cilium.conflist", "10-flannel.conflist", "99-old.conflist", "99-older.conf"] {
            assert_eq!(named(name), 1, "{name}: {notes:?}");
        }
    }
}
