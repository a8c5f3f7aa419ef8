//! Rendering of kustomizations: by the `kustomize` or `kubectl` at hand, else by Debian's package of it.
//!
//! Debian 12 has none of its own, and Debian 13's runs there. It is fetched and unpacked below the target directory with lists
//! and sources of its own, checked with the keys that the machine trusts already: nothing of the machine's changes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    machine, packages, run,
    run::{say, section},
    workspace,
};

const SUITE: &str = "trixie";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEBIAN: &str = "http://deb.debian.org/debian";
const BY_HAND: &str = "install kustomize 5 (https://kubectl.docs.kubernetes.io/installation/kustomize) or kubectl 1.27 or newer, and run this again";

/// A program that renders.
pub(crate) enum Kustomize {
    /// `kustomize build`.
    Own(PathBuf),
    /// `kubectl kustomize`.
    Kubectl(PathBuf),
}

impl Kustomize {
    /// Finds it, or fetches it.
    ///
    /// # Errors
    /// There is none and it cannot be fetched from here; says what would.
    pub(crate) fn get() -> Result<Self> {
        if let Some(program) = machine::find_program("kustomize") {
            return Ok(Self::Own(program));
        }
        if let Some(kubectl) = machine::find_program("kubectl").filter(|kubectl| is_new_enough(kubectl)) {
            return Ok(Self::Kubectl(kubectl));
        }
        let fetched = tools().join("usr/bin/kustomize");
        if !fetched.is_file() {
            section("kustomize");
            fetch().with_context(|| BY_HAND)?;
            ensure!(fetched.is_file(), "Debian's package of kustomize has no {}: {BY_HAND}", fetched.display());
        }
        Ok(Self::Own(fetched))
    }

    /// In one line.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Own(program) => format!("with {}", program.display()),
            Self::Kubectl(program) => format!("with {} kustomize", program.display()),
        }
    }

    /// The documents that a directory's kustomization gives.
    ///
    /// # Errors
    /// It is not sound; with the program's own words.
    pub(crate) fn render(&self, dir: &Path) -> Result<String> {
        let mut command = match self {
            Self::Own(program) => {
                let mut command = Command::new(program);
                command.arg("build");
                command
            }
            Self::Kubectl(program) => {
                let mut command = Command::new(program);
                command.arg("kustomize");
                command
            }
        };
        let output = command.arg(dir).output().with_context(|| format!("cannot start `{}`", run::shown(&command)))?;
        if !output.status.success() {
            bail!("`{}` failed: {}", run::shown(&command), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn tools() -> PathBuf {
    workspace::target_dir().join("tools/kustomize")
}

/// Whether a kubectl has the kustomize that our files are written for.
fn is_new_enough(kubectl: &Path) -> bool {
    let version = run::output(Command::new(kubectl).args(["version", "--client", "--output=json"]));
    version.is_some_and(|text| major_of_kustomize(&text) >= Some(5))
}

fn major_of_kustomize(version: &str) -> Option<u32> {
    let version: serde_json::Value = serde_json::from_str(version).ok()?;
    version["kustomizeVersion"].as_str()?.trim_start_matches('v').split('.').next()?.parse().ok()
}

fn fetch() -> Result<()> {
    ensure!(
        packages::has_apt() && machine::find_program("dpkg-deb").is_some(),
        "neither kustomize nor kubectl is here, nor apt"
    );
    ensure!(Path::new(KEYRING).is_file(), "neither kustomize nor kubectl is here, and Debian's keys are not at {KEYRING}");
    let dir = tools();
    say(&format!("missing: kustomize: renders the manifests; unpacking Debian's ({SUITE}) below {}", dir.display()));
    let apt = dir.join("apt");
    for place in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(place))?;
    }
    fs::write(apt.join("sources.list"), format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror()))?;
    run::run(private_apt(&apt).arg("update"))?;
    run::run(private_apt(&apt).args(["download", "kustomize"]).current_dir(&apt))?;
    let found = fs::read_dir(&apt)?.filter_map(|entry| Some(entry.ok()?.path()));
    let package = found.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.context("apt downloaded kustomize, but left no package")?;
    run::run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&dir))?;
    Ok(fs::remove_dir_all(apt)?)
}

/// The mirror that this machine has its own packages from.
fn mirror() -> String {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Component: main"]);
    let known = run::output(&mut targets).unwrap_or_default();
    let mirror = known.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    mirror.unwrap_or(DEBIAN).to_owned()
}

/// An apt that knows one source and keeps everything below `dir`.
fn private_apt(dir: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-y"]).env("LC_ALL", "C");
    for (option, value) in [
        ("Dir::Etc::SourceList", dir.join("sources.list")),
        ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
        ("Dir::State::Lists", dir.join("lists")),
        ("Dir::State::Status", PathBuf::from("/dev/null")),
        ("Dir::Cache", dir.join("cache")),
        // The sandbox's user may not enter a checkout.
        ("APT::Sandbox::User", PathBuf::from("root")),
        ("Acquire::Languages", PathBuf::from("none")),
        ("Acquire::Retries", PathBuf::from("3")),
    ] {
        command.arg("-o").arg(format!("{option}={}", value.display()));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kustomize_in_a_kubectl_is_known_by_what_it_says() {
        let said = r#"{"clientVersion":{"gitVersion":"v1.32.3"},"kustomizeVersion":"v5.5.0"}"#;
        assert_eq!(major_of_kustomize(said), Some(5));
        assert_eq!(major_of_kustomize(r#"{"clientVersion":{"gitVersion":"v1.20.2"}}"#), None, "before kubectl said it");
        assert_eq!(major_of_kustomize("Client Version: v1.20.2"), None);
    }
}
