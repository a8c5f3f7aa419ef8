//! The toolchain of the eBPF crate: a compiler whose `core` sources are at hand, and bpf-linker.
//!
//! Looked for in this order, and the first that is there is used as it is:
//!   1. a rustup nightly with the component rust-src,
//!   2. Debian's `rustc-web` with `rust-web-src` (`/usr/bin/rustc`).
//!
//! If neither is there, Debian's packages are installed; where apt doesn't have them, a rustup nightly.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    machine, packages, run,
    run::{say, section},
    workspace,
};

/// Oldest compiler that builds the eBPF crate.
const OLDEST_RUSTC: (u32, u32) = (1, 95);
/// The LLVM that bpf-linker is built with: a linker reads bitcode of its own version and of older ones.
const LLVM: u32 = 22;
const BPF_LINKER: &str = "0.13.0";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What builds the eBPF crate.
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

enum Compiler {
    /// A rustup toolchain by name.
    Rustup(String),
    /// A compiler outside of rustup, run with rustup's cargo.
    Rustc(PathBuf),
}

impl Compiler {
    fn rustc(&self) -> Command {
        match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "rustc"]);
                command
            }
            Self::Rustc(path) => Command::new(path),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Rustup(name) => format!("rustup toolchain {name}"),
            Self::Rustc(path) => path.display().to_string(),
        }
    }

    fn version(&self) -> Option<Version> {
        Version::parse(&run::output(self.rustc().arg("-vV"))?)
    }

    /// Whether it has the sources of `core`, is new enough, and writes a bitcode that our linker reads.
    fn is_usable(&self) -> bool {
        let Some(version) = self.version() else { return false };
        let Some(sysroot) = run::output(self.rustc().args(["--print", "sysroot"])) else { return false };
        if !Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
            return false;
        }
        if version.rustc < OLDEST_RUSTC {
            say(&format!("{} is older than {}.{}: not used", self.name(), OLDEST_RUSTC.0, OLDEST_RUSTC.1));
            return false;
        }
        if version.llvm > LLVM && machine::find_program("bpf-linker").is_none() {
            say(&format!("{} has LLVM {}, and no bpf-linker for it is installed: not used", self.name(), version.llvm));
            return false;
        }
        true
    }
}

impl Toolchain {
    /// Finds it, and installs what is missing.
    ///
    /// # Errors
    /// Something is missing and cannot be installed from here; says which commands would.
    pub(crate) fn get() -> Result<Self> {
        need_c_compiler()?;
        let compiler = match find_compiler() {
            Some(compiler) => compiler,
            None => install_compiler()?,
        };
        let linker = match machine::find_program("bpf-linker") {
            Some(linker) => linker,
            None => install_linker(&compiler)?,
        };
        Ok(Self { compiler, linker })
    }

    /// In one line.
    pub(crate) fn describe(&self) -> String {
        format!("with {} and {}", self.compiler.name(), self.linker.display())
    }

    /// A cargo command in the eBPF crate, free of what the caller's environment says about other targets.
    pub(crate) fn cargo(&self, verb: &str) -> Command {
        let mut command = match &self.compiler {
            Compiler::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]).env_remove("RUSTC");
                command
            }
            Compiler::Rustc(rustc) => {
                let mut command = Command::new(cargo_program());
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        for flag in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTC_WRAPPER",
            "RUSTDOCFLAGS",
        ] {
            command.env_remove(flag);
        }
        command.env("PATH", machine::path_with(&self.linker)).env("CARGO_TARGET_DIR", workspace::target_dir());
        command.current_dir(workspace::root().join("dataplane-ebpf"));
        command.arg(verb).args(["-Z", "build-std=core", "--target", workspace::EBPF_TARGET, "--release"]);
        command
    }
}

/// The cargo that runs us, else the one on `PATH`.
pub(crate) fn cargo_program() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// A cargo command in the workspace with the stable toolchain.
pub(crate) fn cargo(verb: &str) -> Command {
    let mut command = Command::new(cargo_program());
    // A compiler that the caller chose for the eBPF crate must not build the rest.
    command.current_dir(workspace::root()).env_remove("RUSTC").env_remove("RUSTC_BOOTSTRAP").arg(verb);
    command
}

/// Refuses to go on without a component of the stable toolchain.
///
/// # Errors
/// It is missing; names it and the command that installs it.
pub(crate) fn need_component(component: &str, verb: &str) -> Result<()> {
    if run::output(cargo(verb).arg("--version")).is_some() {
        return Ok(());
    }
    say(&format!("missing: {component}; installing it: rustup component add {component}"));
    run::run(Command::new("rustup").args(["component", "add", component]))
        .with_context(|| format!("this toolchain has no {component}: install it with `rustup component add {component}`"))
}

fn find_compiler() -> Option<Compiler> {
    let list = run::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let nightlies = names.filter(|name| name.contains("nightly")).map(|name| Compiler::Rustup(name.to_owned()));
    nightlies.chain([Compiler::Rustc(PathBuf::from(DEBIAN_RUSTC))]).find(Compiler::is_usable)
}

/// What `rustc -vV` says.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    rustc: (u32, u32),
    llvm: u32,
}

impl Version {
    fn parse(report: &str) -> Option<Self> {
        let field = |name: &str| report.lines().find_map(|line| line.strip_prefix(name));
        let mut release = field("release: ")?.split('.').map(str::parse);
        let rustc = (release.next()?.ok()?, release.next()?.ok()?);
        let llvm = field("LLVM version: ")?.split('.').next()?.parse().ok()?;
        Some(Self { rustc, llvm })
    }
}

fn need_c_compiler() -> Result<()> {
    if machine::find_program("cc").is_some() {
        return Ok(());
    }
    section("C compiler");
    say("missing: cc: the linker of every Rust program");
    packages::install(&["gcc", "libc6-dev"])
}

fn install_compiler() -> Result<Compiler> {
    section("eBPF compiler");
    say("eBPF programs need `core` built for their target, so a compiler with its sources: none is installed");
    let new_enough =
        |package: &str| packages::candidate(package).is_some_and(|version| version_of_package(&version) >= Some(OLDEST_RUSTC));
    if packages::has_apt() && new_enough("rustc-web") && new_enough("rust-web-src") {
        packages::install(&["rustc-web", "rust-web-src"])?;
        return find_compiler()
            .context("rustc-web and rust-web-src are installed, but /usr/bin/rustc still has no sources of `core`");
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
    say(&format!("no package of it here; installing a nightly: {}", run::shown(&rustup)));
    run::run(&mut rustup).context(
        "no eBPF compiler; install one with `rustup toolchain install nightly --component rust-src` and run this again",
    )?;
    let list = run::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let name = list.lines().find(|line| line.starts_with("nightly")).and_then(|line| line.split_whitespace().next());
    Ok(Compiler::Rustup(name.unwrap_or("nightly").to_owned()))
}

/// Major and minor of an upstream version in a Debian one: `1.96.0+dfsg1-1~deb12u2`.
fn version_of_package(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.rsplit(':').next()?.split(['.', '+', '-', '~']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn install_linker(compiler: &Compiler) -> Result<PathBuf> {
    section("bpf-linker");
    let llvm = compiler.version().context("the eBPF compiler does not say its version")?.llvm.max(LLVM);
    say(&format!("missing: bpf-linker links eBPF programs; it is built from crates.io and needs LLVM {llvm}"));

    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let by_hand = format!(
        "LLVM_PREFIX={} cargo install bpf-linker --version {BPF_LINKER} --no-default-features --features llvm-{llvm}",
        prefix.display()
    );
    if !prefix.join("include/llvm-c").is_dir() {
        let dev = format!("llvm-{llvm}-dev");
        if !packages::has_apt() || packages::candidate(&dev).is_none() {
            bail!(
                "LLVM {llvm} with its headers is not packaged here; install it (on Debian and Ubuntu from https://apt.llvm.org: {dev}, libpolly-{llvm}-dev), then:\n    {by_hand}"
            );
        }
        packages::install(&[&dev, &format!("libpolly-{llvm}-dev"), "libzstd-dev", "zlib1g-dev", "g++"])?;
    }
    let mut install = cargo("install");
    install.args(["bpf-linker", "--version", BPF_LINKER, "--no-default-features", "--features", &format!("llvm-{llvm}")]);
    install.env("LLVM_PREFIX", &prefix).env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    for flag in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR"] {
        install.env_remove(flag);
    }
    say(&format!("building it, about a minute: {by_hand}"));
    run::run(&mut install)?;
    machine::find_program("bpf-linker").context("bpf-linker was installed but is not where `cargo install` puts programs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_compilers_and_packages_say() {
        let report = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nhost: x86_64\nrelease: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(Version::parse(report), Some(Version { rustc: (1, 96), llvm: 22 }));
        assert_eq!(Version::parse("release: 1.98.0-nightly\nLLVM version: 23.0.0"), Some(Version { rustc: (1, 98), llvm: 23 }));
        assert_eq!(Version::parse("rustc 1.96.0"), None);
        assert_eq!(version_of_package("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(version_of_package("1:22.1.8-1~deb12u1"), Some((22, 1)));
        assert_eq!(version_of_package("none"), None);
    }
}
