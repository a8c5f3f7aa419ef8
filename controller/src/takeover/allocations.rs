//! What CNI's own files say of pods: host-local's allocations, `CNI_DIR/networks/NETWORK/ADDRESS`, and the runtime's results,
//! `CNI_DIR/results/NETWORK-CONTAINER-IFNAME`.

use std::{
    collections::BTreeMap,
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::TakeoverError;
use crate::attachment::{AttachmentKey, PodIdentity};

/// An address that host-local has given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The network's name.
    pub network: String,
    /// The address.
    pub address: Ipv4Addr,
    /// To whom.
    pub attachment: AttachmentKey,
}

/// What the runtime kept of an attachment's result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// What it said of the pod.
    pub pod: PodIdentity,
    /// Paths of the namespaces that the result names.
    pub sandboxes: Vec<PathBuf>,
}

/// Where host-local keeps them, a directory for each network.
#[must_use]
pub fn networks(cni_dir: &Path) -> PathBuf {
    cni_dir.join("networks")
}

/// All allocations of IPv4 addresses. A file that holds none, as host-local's lock and its memory of the last address, is passed over.
///
/// # Errors
/// A directory or file cannot be read.
pub fn read(cni_dir: &Path) -> Result<Vec<Allocation>, TakeoverError> {
    let mut found = Vec::new();
    for network in entries(&networks(cni_dir))? {
        if !network.is_dir() {
            continue;
        }
        for file in entries(&network)? {
            let Some(address) = name(&file).parse().ok() else { continue };
            let text = match fs::read_to_string(&file) {
                // Given back this very moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text.map_err(refused("read", &file))?,
            };
            if let Some(attachment) = owner(&text) {
                found.push(Allocation { network: name(&network), address, attachment });
            }
        }
    }
    Ok(found)
}

/// Container id, and since host-local 0.7 the interface's name, on lines of their own.
fn owner(text: &str) -> Option<AttachmentKey> {
    let mut lines = text.split(['\r', '\n']).filter(|line| !line.is_empty());
    AttachmentKey::new(lines.next()?, lines.next().unwrap_or("eth0")).ok()
}

/// Writes an allocation as host-local would, so that it gives the address to nobody else.
///
/// # Errors
/// It cannot be written.
pub fn write(cni_dir: &Path, allocation: &Allocation) -> Result<(), TakeoverError> {
    let dir = networks(cni_dir).join(&allocation.network);
    fs::create_dir_all(&dir).map_err(refused("create", &dir))?;
    let path = dir.join(allocation.address.to_string());
    let text = format!("{}\r\n{}", allocation.attachment.container_id, allocation.attachment.ifname);
    fs::write(&path, text).map_err(refused("write", &path))
}

/// Removes an attachment's allocation of an address, if it is still its own.
///
/// # Errors
/// It cannot be read or removed.
pub fn release(cni_dir: &Path, network: &str, address: Ipv4Addr, owned_by: &AttachmentKey) -> Result<(), TakeoverError> {
    let path = networks(cni_dir).join(network).join(address.to_string());
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(refused("read", &path)(error)),
        Ok(text) if owner(&text).as_ref() == Some(owned_by) => fs::remove_file(&path).map_err(refused("remove", &path)),
        Ok(_) => Ok(()),
    }
}

/// Whether host-local holds an address for somebody.
#[must_use]
pub fn holds(cni_dir: &Path, address: Ipv4Addr) -> bool {
    let networks = entries(&networks(cni_dir)).unwrap_or_default();
    networks.iter().any(|network| network.join(address.to_string()).exists())
}

/// The parts that matter of a file of the runtime's.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheFile {
    container_id: String,
    if_name: String,
    #[serde(default)]
    cni_args: Vec<[String; 2]>,
    #[serde(default)]
    result: ResultPart,
}

#[derive(Default, Deserialize)]
struct ResultPart {
    #[serde(default)]
    interfaces: Vec<InterfacePart>,
}

#[derive(Deserialize)]
struct InterfacePart {
    #[serde(default)]
    sandbox: String,
}

/// What the runtime kept, by attachment. A file that is something else tells nothing: what matters is what the kernel says.
#[must_use]
pub fn results(cni_dir: &Path) -> BTreeMap<AttachmentKey, Kept> {
    let mut kept = BTreeMap::new();
    for file in entries(&cni_dir.join("results")).unwrap_or_default() {
        let Some(parsed) = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<CacheFile>(&text).ok()) else {
            continue;
        };
        let Ok(attachment) = AttachmentKey::new(parsed.container_id, parsed.if_name) else { continue };
        let mut pod = PodIdentity::default();
        for [key, value] in parsed.cni_args {
            match key.as_str() {
                "K8S_POD_NAMESPACE" => pod.namespace = value,
                "K8S_POD_NAME" => pod.name = value,
                "K8S_POD_UID" => pod.uid = value,
                _ => {}
            }
        }
        let sandboxes = parsed.result.interfaces.into_iter().map(|interface| interface.sandbox).filter(|path| !path.is_empty());
        kept.insert(attachment, Kept { pod, sandboxes: sandboxes.map(PathBuf::from).collect() });
    }
    kept
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, TakeoverError> {
    let listed = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listed => listed.map_err(refused("read", dir))?,
    };
    let mut paths = Vec::new();
    for entry in listed {
        paths.push(entry.map_err(refused("read", dir))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn refused(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TakeoverError + use<> {
    let path = path.to_owned();
    move |source| TakeoverError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_read_as_host_local_writes_them() {
        let dir = tempfile::tempdir().unwrap();
        let network = dir.path().join("networks/cbr0");
        fs::create_dir_all(&network).unwrap();
        for (name, text) in [
            ("10.244.1.5", "abc\r\neth0"),
            ("10.244.1.6", "def"),
            ("10.244.1.7", ""),
            ("last_reserved_ip.0", "10.244.1.6"),
            ("lock", ""),
        ] {
            fs::write(network.join(name), text).unwrap();
        }
        let read = read(dir.path()).unwrap();
        let owners: Vec<_> = read.iter().map(|found| (found.address.octets()[3], found.attachment.to_string())).collect();
        assert_eq!(owners, [(5, "abc eth0".to_owned()), (6, "def eth0".to_owned())]);
        assert!(holds(dir.path(), "10.244.1.7".parse().unwrap()), "whoever it belongs to");

        let other = AttachmentKey::new("other", "eth0").unwrap();
        release(dir.path(), "cbr0", read[0].address, &other).unwrap();
        assert!(holds(dir.path(), read[0].address), "not its own");
        release(dir.path(), "cbr0", read[0].address, &read[0].attachment).unwrap();
        assert!(!holds(dir.path(), read[0].address));
        write(dir.path(), &read[0]).unwrap();
        assert_eq!(super::read(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn what_the_runtime_kept_names_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("results");
        fs::create_dir_all(&results).unwrap();
        let text = r#"{"kind":"cniCacheV1","containerId":"abc","ifName":"eth0","networkName":"cbr0",
            "cniArgs":[["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","web-1"]],
            "result":{"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/var/run/netns/cni-1"}]}}"#;
        fs::write(results.join("cbr0-abc-eth0"), text).unwrap();
        fs::write(results.join("damaged"), "{").unwrap();
        let kept = super::results(dir.path());
        let kept = &kept[&AttachmentKey::new("abc", "eth0").unwrap()];
        assert_eq!((kept.pod.namespace.as_str(), kept.pod.name.as_str()), ("default", "web-1"));
        assert_eq!(kept.sandboxes, [PathBuf::from("/var/run/netns/cni-1")]);
    }
}
