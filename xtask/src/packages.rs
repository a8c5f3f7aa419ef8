//! Debian packages: whether they can be had, and installing them in the open.

use std::{process::Command, sync::OnceLock};

use anyhow::{Result, bail};

use crate::{
    machine, run,
    run::{say, shown},
};

/// Programs that the lab and the benchmark use, and the packages that have them.
const LAB_TOOLS: &[(&str, &str, &str)] = &[
    ("ip", "iproute2", "namespaces and links of the lab"),
    ("ethtool", "ethtool", "makes veth pairs behave like wires"),
    ("ping", "iputils-ping", "checks that people know"),
    ("iperf3", "iperf3", "throughput"),
    ("tcpdump", "tcpdump", "verifies checksums on the wire"),
    ("iptables", "iptables", "the plain-kernel node masquerades as flannel does"),
    ("nft", "nftables", "what iptables on Debian is made of"),
];

/// Programs that tests of the image use besides.
const IMAGE_TOOLS: &[(&str, &str, &str)] = &[("skopeo", "skopeo", "reads the image as other tools do")];

/// Makes the lab's tools available.
///
/// # Errors
/// Some are missing and cannot be installed from here; says which commands would.
pub(crate) fn need_lab_tools() -> Result<()> {
    need("Tools of the lab", LAB_TOOLS)
}

/// Makes the tools that look at an image available.
///
/// # Errors
/// Some are missing and cannot be installed from here; says which commands would.
pub(crate) fn need_image_tools() -> Result<()> {
    need("Tools for the image", IMAGE_TOOLS)
}

fn need(title: &str, tools: &[(&str, &str, &str)]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|(program, ..)| machine::find_program(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    run::section(title);
    for (program, package, why) in &missing {
        say(&format!("missing: {program} (package {package}): {why}"));
    }
    let packages: Vec<_> = missing.iter().map(|(_, package, _)| *package).collect();
    install(&packages)
}

/// Whether packages are managed by apt here.
pub(crate) fn has_apt() -> bool {
    machine::find_program("apt-get").is_some()
}

/// The version apt would install (or has), if any. The lists are brought up to date once before.
pub(crate) fn candidate(package: &str) -> Option<String> {
    if machine::is_root() {
        let _ = update();
    }
    let policy = run::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Installs packages with apt.
///
/// # Errors
/// There is no apt, we are not root, or apt fails; says which commands would do it.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let mut command = apt("install");
    command.arg("--no-install-recommends").args(packages);
    if !has_apt() {
        bail!(
            "this system has no apt-get; install the equivalents of these Debian packages and run this again:\n    {}",
            packages.join(" ")
        );
    }
    if !machine::is_root() {
        bail!(
            "installing needs root; run these, then this again:\n    sudo apt-get update\n    sudo apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        );
    }
    update()?;
    say(&format!("installing: {}", shown(&command)));
    run::run(&mut command)
}

fn update() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let outcome = DONE.get_or_init(|| {
        say("bringing the package lists up to date: apt-get update");
        run::run(&mut apt("update")).map_err(|error| format!("{error:#}"))
    });
    outcome.clone().map_err(anyhow::Error::msg)
}

fn apt(verb: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-y", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Use-Pty=0", verb]);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
