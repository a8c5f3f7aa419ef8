//! flannel's CNI configuration, which runtimes would take before ours: put aside while the node is ours. A name that no runtime reads keeps it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::TakeoverError;

/// What is appended to its name.
const ASIDE: &str = ".before-shunt";

/// Configurations in a directory that make pods by flannel's plugin.
///
/// # Errors
/// The directory cannot be read.
pub fn of_flannel(dir: &Path) -> Result<Vec<PathBuf>, TakeoverError> {
    let refused = |source| TakeoverError::File { action: "read", path: dir.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(refused)? {
        let path = entry.map_err(refused)?.path();
        let is_configuration =
            path.extension().is_some_and(|extension| ["conf", "conflist", "json"].iter().any(|known| extension == *known));
        if is_configuration && fs::read(&path).is_ok_and(|text| names_flannel(&text)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn names_flannel(text: &[u8]) -> bool {
    let Ok(configuration) = serde_json::from_slice::<Value>(text) else { return false };
    let of_list = configuration["plugins"].as_array().and_then(|plugins| plugins.first());
    of_list.unwrap_or(&configuration)["type"] == "flannel"
}

/// Puts one aside. One that is gone is no error.
///
/// # Errors
/// The file system refuses.
pub fn put_aside(path: &Path) -> Result<(), TakeoverError> {
    rename(path, &aside(path))
}

/// The reverse; a configuration that somebody has written anew meanwhile stays.
///
/// # Errors
/// The file system refuses.
pub fn put_back(path: &Path) -> Result<(), TakeoverError> {
    if path.exists() { Ok(()) } else { rename(&aside(path), path) }
}

fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ASIDE);
    name.into()
}

fn rename(from: &Path, to: &Path) -> Result<(), TakeoverError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(|source| TakeoverError::File { action: "rename", path: from.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flannels_configuration_alone_is_put_aside_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("10-flannel.conflist", r#"{"name":"cbr0","plugins":[{"type":"flannel"},{"type":"portmap"}]}"#);
        write("00-old.conf", r#"{"name":"cbr0","type":"flannel"}"#);
        write("10-shunt.conflist", r#"{"name":"shunt","plugins":[{"type":"shunt"}]}"#);
        write("99-damaged.conflist", "{");
        write("notes.txt", r#"{"type":"flannel"}"#);
        let found = of_flannel(dir.path()).unwrap();
        assert_eq!(found, [dir.path().join("00-old.conf"), dir.path().join("10-flannel.conflist")]);
        for path in &found {
            put_aside(path).unwrap();
            put_aside(path).unwrap();
        }
        assert!(of_flannel(dir.path()).unwrap().is_empty());
        write("00-old.conf", "written anew");
        for path in &found {
            put_back(path).unwrap();
        }
        assert_eq!(fs::read_to_string(&found[0]).unwrap(), "written anew");
        assert!(found[1].exists());
    }
}
