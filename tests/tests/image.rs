//! The container image, taken apart as a runtime does: `SHUNT_IMAGE` names the archive that `cargo xtask image` wrote.
//!
//! That other tools take it is asked of skopeo, once as an OCI archive and once as what `docker save` writes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use shunt_lab::command::{program, run};
use tempfile::TempDir;

fn archive() -> Result<PathBuf> {
    let file = std::env::var_os("SHUNT_IMAGE").context("name the image in SHUNT_IMAGE: `cargo xtask image` prints its path")?;
    fs::canonicalize(&file).with_context(|| format!("no image at {}", file.display()))
}

/// The archive's files, and the layout's documents with every digest on the way checked.
struct Layout {
    dir: TempDir,
    descriptor: Value,
    manifest: Value,
    config: Value,
}

impl Layout {
    fn open() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        run(Command::new("tar").arg("-xf").arg(archive()?).arg("-C").arg(dir.path()))?;
        let index = json(&dir.path().join("index.json"))?;
        let descriptor = index["manifests"][0].clone();
        let manifest = json(&blob(dir.path(), &descriptor)?)?;
        let config = json(&blob(dir.path(), &manifest["config"])?)?;
        Ok(Self { dir, descriptor, manifest, config })
    }

    /// The one layer's file.
    fn layer(&self) -> Result<PathBuf> {
        let layers = self.manifest["layers"].as_array().context("a manifest has layers")?;
        ensure!(layers.len() == 1, "one layer: {layers:?}");
        blob(self.dir.path(), &layers[0])
    }
}

fn json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs::read(path)?).with_context(|| path.display().to_string())
}

/// What a descriptor names; it must have the digest and the size that the descriptor says.
fn blob(dir: &Path, descriptor: &Value) -> Result<PathBuf> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let digest = digest.with_context(|| format!("no digest in {descriptor}"))?;
    let path = dir.join("blobs/sha256").join(digest);
    ensure!(sha256(&path)? == digest, "{} is not what its name says", path.display());
    ensure!(descriptor["size"] == fs::metadata(&path)?.len(), "{} has another size than {descriptor}", path.display());
    Ok(path)
}

fn sha256(path: &Path) -> Result<String> {
    let line = run(Command::new("sha256sum").arg(path))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}

#[test]
fn every_blob_of_the_image_has_its_digest_and_there_is_the_agent_and_nothing_else() -> Result<()> {
    let layout = Layout::open()?;
    for entry in fs::read_dir(layout.dir.path().join("blobs/sha256"))? {
        let entry = entry?;
        assert_eq!(sha256(&entry.path())?, entry.file_name().to_string_lossy());
    }
    let config = &layout.config["config"];
    assert_eq!(config["Entrypoint"], serde_json::json!(["/shunt"]));
    assert_eq!(config["Cmd"], serde_json::json!(["agent"]));
    assert_eq!(config["User"], "0");
    assert_eq!(config["Labels"]["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(layout.config["os"], "linux");
    assert_eq!(layout.config["architecture"], layout.descriptor["platform"]["architecture"]);

    let listed = run(Command::new("tar").args(["--numeric-owner", "-tvzf"]).arg(layout.layer()?))?;
    let lines: Vec<_> = listed.lines().collect();
    assert_eq!(lines.len(), 1, "{listed}");
    assert!(lines[0].starts_with("-rwxr-xr-x 0/0 ") && lines[0].ends_with(" shunt"), "{listed}");
    Ok(())
}

#[test]
fn the_image_is_no_larger_than_a_node_should_have_to_pull() -> Result<()> {
    let (size, limit) = (fs::metadata(archive()?)?.len(), 15_000_000);
    assert!(size <= limit, "{size} bytes of {limit}");
    Ok(())
}

#[test]
fn the_program_of_the_image_runs_where_there_is_nothing_but_itself() -> Result<()> {
    let layout = Layout::open()?;
    let root = tempfile::tempdir()?;
    run(Command::new("tar").arg("-xzf").arg(layout.layer()?).arg("-C").arg(root.path()))?;
    assert_eq!(fs::read_dir(root.path())?.count(), 1);
    let mut chroot = Command::new(program("chroot".as_ref()));
    let said = run(chroot.env_clear().arg(root.path()).args(["/shunt", "--version"]))?;
    assert_eq!(said.trim(), format!("shunt {}", env!("CARGO_PKG_VERSION")));
    Ok(())
}

#[test]
fn another_implementation_takes_the_image_as_oci_and_as_docker_archive() -> Result<()> {
    let layout = Layout::open()?;
    let tag = env!("CARGO_PKG_VERSION");
    let file = archive()?.display().to_string();
    let inspect = |image: &str, options: &[&str]| -> Result<Value> {
        let text = run(Command::new("skopeo").args(["inspect", "--no-tags"]).args(options).arg(image))?;
        serde_json::from_str(&text).with_context(|| text.clone())
    };

    let oci = inspect(&format!("oci-archive:{file}:{tag}"), &[])?;
    assert_eq!(oci["Digest"], layout.descriptor["digest"]);
    let labels: BTreeMap<String, String> = serde_json::from_value(oci["Labels"].clone())?;
    assert_eq!(labels["org.opencontainers.image.version"], tag);

    // By the name that the manifests use: what `docker load` would say that it loaded.
    let docker = format!("docker-archive:{file}:ghcr.io/shunt-net/shunt:{tag}");
    assert_eq!(inspect(&docker, &["--config"])?, layout.config);
    // A copy reads every layer and checks it against its digest, compressed and not.
    let copy = tempfile::tempdir()?;
    run(Command::new("skopeo").args(["copy", "-q", &docker]).arg(format!("dir:{}", copy.path().display())))?;
    Ok(())
}
