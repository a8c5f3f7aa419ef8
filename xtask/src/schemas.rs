//! The schemas that Kubernetes publishes with each version, offline: `kubernetes-validate` from PyPI carries them.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    machine, packages, run,
    run::{say, section},
    workspace,
};

const VALIDATOR: &str = "kubernetes-validate==1.37.0";
const VALIDATOR_VERSION: &str = "1.37.0";
/// The oldest and the newest Kubernetes that the manifests are for: 1.30 brought `appArmorProfile`.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

/// The validator.
pub(crate) struct Schemas {
    program: PathBuf,
}

impl Schemas {
    /// Finds it, or installs it into a Python environment below the target directory.
    ///
    /// # Errors
    /// There is no Python, or PyPI is out of reach; says what would help.
    pub(crate) fn get() -> Result<Self> {
        let dir = workspace::target_dir().join("tools/kubernetes-validate");
        let program = dir.join("bin/kubernetes-validate");
        if run::output(Command::new(&program).arg("--version")).is_none_or(|version| !version.contains(VALIDATOR_VERSION)) {
            section("Kubernetes schemas");
            say(&format!("missing: {VALIDATOR}: the published schemas; installing it from PyPI into {}", dir.display()));
            install(&dir).with_context(|| {
                format!(
                    "no schemas; `python3 -m venv {0} && {0}/bin/pip install {VALIDATOR}` would install them",
                    dir.display()
                )
            })?;
        }
        Ok(Self { program })
    }

    /// Checks files, unknown fields included.
    ///
    /// # Errors
    /// A document is not as a version of Kubernetes wants it; the validator has said which.
    pub(crate) fn check(&self, files: &[PathBuf]) -> Result<()> {
        for version in KUBERNETES {
            let mut command = Command::new(&self.program);
            command.args(["--quiet", "--strict", "--kubernetes-version", version]).args(files);
            run::run(&mut command).with_context(|| format!("not what Kubernetes {version} takes"))?;
        }
        say(&format!("{} files are what Kubernetes {} to {} takes", files.len(), KUBERNETES[0], KUBERNETES[1]));
        Ok(())
    }
}

fn install(dir: &Path) -> Result<()> {
    let environment = || -> Result<()> {
        let Some(python) = machine::find_program("python3") else { bail!("there is no python3") };
        run::run(Command::new(python).args(["-m", "venv", "--clear"]).arg(dir))
    };
    if let Err(error) = environment() {
        say(&format!("{error:#}; on Debian that is python3-venv's"));
        packages::install(&["python3", "python3-venv"])?;
        environment()?;
    }
    let mut pip = Command::new(dir.join("bin/python"));
    run::run(pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "5", VALIDATOR]))
}
