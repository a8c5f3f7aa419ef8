//! `cargo xtask image`: the static binary as a container image, without a container tool.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::Arch;

use crate::{
    build, run,
    run::{say, section},
    workspace,
};

mod archive;
mod cross;

/// Registry and repository of the image; the manifests name it too.
const NAME: &str = "ghcr.io/shunt-net/shunt";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What a node may have to pull: bytes.
const LARGEST: usize = 15 * 1000 * 1000;

/// Arguments.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the image runs on [default: this machine's]
    #[arg(long, value_enum)]
    arch: Option<Platform>,
    /// Where to write the archive [default: target/image/shunt-VERSION-ARCH.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// What an image can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Platform {
    Amd64,
    Arm64,
}

impl Platform {
    fn of_this_machine() -> Result<Self> {
        match env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("no image is made for {other}: name amd64 or arm64 with --arch"),
        }
    }

    /// The word for it in images and file names.
    fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    fn arch(self) -> Arch {
        match self {
            Self::Amd64 => Arch::Amd64,
            Self::Arm64 => Arch::ARM64,
        }
    }

    /// As Rust and GNU's tools call the processor.
    fn machine(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.machine())
    }
}

/// The command.
///
/// # Errors
/// The build failed, a tool is missing, or the image is too large.
pub(crate) fn main(args: &Args) -> Result<()> {
    let platform = args.arch.map_or_else(Platform::of_this_machine, Ok)?;
    let output = match &args.output {
        Some(file) => file.clone(),
        None => file(platform),
    };
    write(platform, &output)?;
    println!("{}", output.display());
    Ok(())
}

/// Builds the image of this machine.
///
/// # Errors
/// As the command.
pub(crate) fn of_this_machine() -> Result<()> {
    write(Platform::of_this_machine()?, &file_of_this_machine()?)
}

/// Where the image of this machine is once it is built.
///
/// # Errors
/// None is made for its processor.
pub(crate) fn file_of_this_machine() -> Result<PathBuf> {
    Platform::of_this_machine().map(file)
}

fn file(platform: Platform) -> PathBuf {
    workspace::target_dir().join("image").join(format!("shunt-{VERSION}-{}.tar", platform.name()))
}

fn write(platform: Platform, output: &Path) -> Result<()> {
    let tools = cross::Tools::get(platform)?;
    let binary = build::shipped(&platform.target(), tools.linker.as_deref())?;
    section("Image");
    let program = stripped(&binary, &tools.strip)?;
    let size = program.len();
    let image = archive::Image {
        entrypoint: "/shunt",
        command: &["agent"],
        program,
        arch: platform.arch(),
        name: NAME,
        version: VERSION,
        labels: labels(),
    };
    let archive = image.archive()?;
    say(&format!("{NAME}:{VERSION} for linux/{}", platform.name()));
    say(&format!("program {}, archive {}", megabytes(size), megabytes(archive.len())));
    check_size(archive.len())?;
    replace(output, &archive).with_context(|| format!("cannot write the image to {}", output.display()))
}

/// The program without symbols. They stay in the one that was built, for who profiles or debugs.
fn stripped(binary: &Path, strip: &Path) -> Result<Vec<u8>> {
    let copy = binary.with_extension("stripped");
    run::run(Command::new(strip).arg("--strip-all").arg("-o").arg(&copy).arg(binary))?;
    fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))
}

fn check_size(bytes: usize) -> Result<()> {
    ensure!(
        bytes <= LARGEST,
        "the archive takes {} and may take {}: look at what grew with `cargo bloat --release --package shunt --crates`",
        megabytes(bytes),
        megabytes(LARGEST)
    );
    Ok(())
}

fn megabytes(bytes: usize) -> String {
    format!("{}.{:02} MB", bytes / 1_000_000, bytes % 1_000_000 / 10_000)
}

/// What `docker inspect` and registries show. The commit, where this is a git checkout, tells images of one version apart.
fn labels() -> BTreeMap<&'static str, String> {
    let mut labels = BTreeMap::from([
        ("org.opencontainers.image.title", "shunt".to_owned()),
        ("org.opencontainers.image.description", "The network of a Kubernetes node: eBPF programs and their agent".to_owned()),
        ("org.opencontainers.image.licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ("org.opencontainers.image.source", env!("CARGO_PKG_REPOSITORY").to_owned()),
        ("org.opencontainers.image.version", VERSION.to_owned()),
    ]);
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]).current_dir(workspace::root());
    if let Some(commit) = run::output(&mut git) {
        labels.insert("org.opencontainers.image.revision", commit);
    }
    labels
}

/// Writes beside the file and puts it in place at once: who reads it never finds half of one.
fn replace(output: &Path, archive: &[u8]) -> Result<()> {
    if let Some(dir) = output.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut name = output.file_name().context("this is no name for a file")?.to_owned();
    name.push(".part");
    let part = output.with_file_name(name);
    fs::write(&part, archive)?;
    Ok(fs::rename(&part, output)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_beyond_the_limit_is_refused_with_its_size() {
        assert!(check_size(LARGEST).is_ok());
        let error = check_size(LARGEST + 10_000).unwrap_err().to_string();
        assert!(error.contains("takes 15.01 MB and may take 15.00 MB"), "{error}");
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_stays_beside_it() {
        let dir = env::temp_dir().join(format!("shunt-image-{}", std::process::id()));
        let file = dir.join("deep/image.tar");
        replace(&file, b"first").unwrap();
        replace(&file, b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.join("deep")).unwrap().count(), 1);
        assert!(replace(Path::new("/"), b"").is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
