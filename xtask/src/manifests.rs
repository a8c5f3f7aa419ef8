//! `cargo xtask manifests`: renders every kustomization and checks it against the schemas that Kubernetes publishes.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    kustomize::Kustomize,
    run::{say, section},
    schemas::Schemas,
    workspace,
};

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The command.
///
/// # Errors
/// A kustomization doesn't render, or gives what Kubernetes would refuse.
pub(crate) fn main(_args: &Args) -> Result<()> {
    all()?;
    println!("{}", rendered().display());
    Ok(())
}

/// Where each kustomization's documents are once rendered, one file each.
pub(crate) fn rendered() -> PathBuf {
    workspace::target_dir().join("manifests")
}

/// Renders and checks all.
///
/// # Errors
/// A kustomization doesn't render, or gives what Kubernetes would refuse.
pub(crate) fn all() -> Result<()> {
    let kustomize = Kustomize::get()?;
    let schemas = Schemas::get()?;
    section("Manifests");
    say(&kustomize.describe());
    let manifests = workspace::root().join("manifests");
    let out = rendered();
    // What an overlay that is gone has left would be checked for ever.
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;

    let mut files = Vec::new();
    for (name, dir) in kustomizations(&manifests)? {
        let file = out.join(format!("{name}.yaml"));
        fs::write(&file, kustomize.render(&dir)?).with_context(|| format!("cannot write {}", file.display()))?;
        files.push(file);
    }
    files.extend(yaml_files(&manifests.join("examples/cluster"))?);
    schemas.check(&files)
}

/// The whole, by the name `base`, and every overlay by its own.
fn kustomizations(manifests: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = vec![("base".to_owned(), manifests.to_owned())];
    for dir in sorted(&manifests.join("overlays"))? {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(dir.join("kustomization.yaml").is_file(), "{} has no kustomization.yaml", dir.display());
        found.push((name, dir));
    }
    Ok(found)
}

fn yaml_files(dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(sorted(dir)?.into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "yaml")).collect())
}

fn sorted(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_overlay_is_found_and_one_without_a_kustomization_is_refused() {
        let dir = std::env::temp_dir().join(format!("shunt-manifests-{}", std::process::id()));
        for name in ["b", "a"] {
            fs::create_dir_all(dir.join("overlays").join(name)).unwrap();
            fs::write(dir.join("overlays").join(name).join("kustomization.yaml"), "").unwrap();
        }
        let names: Vec<_> = kustomizations(&dir).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["base", "a", "b"]);
        fs::create_dir(dir.join("overlays/c")).unwrap();
        let error = kustomizations(&dir).unwrap_err().to_string();
        assert!(error.contains("overlays/c has no kustomization.yaml"), "{error}");
        fs::remove_dir_all(dir).unwrap();
    }
}
