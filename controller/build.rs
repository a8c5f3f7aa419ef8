//! Embeds the eBPF object into the library, so that a node needs one file and no compiler.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Where the eBPF build leaves the object, below the target directory.
const OBJECT: &str = "bpfel-unknown-none/release/shunt-dataplane";

fn main() -> ExitCode {
    match embed() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            println!("cargo::error={reason}");
            ExitCode::FAILURE
        }
    }
}

fn embed() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=SHUNT_DATAPLANE_OBJECT");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: build with cargo")?);
    let object = match env::var_os("SHUNT_DATAPLANE_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => default_object(&out),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let copy = out.join("shunt-dataplane");
    fs::copy(&object, &copy)
        .map_err(|error| format!("the eBPF object {} cannot be read ({error}): run `cargo xtask build`", object.display()))?;
    println!("cargo::rustc-env=SHUNT_EMBEDDED_OBJECT={}", copy.display());
    Ok(())
}

/// The object below the target directory, which is an ancestor of OUT_DIR: two levels up more with an explicit `--target`.
fn default_object(out: &Path) -> PathBuf {
    let candidates = || out.ancestors().skip(3).take(3).map(|dir| dir.join(OBJECT));
    candidates().find(|path| path.exists()).or_else(|| candidates().next()).unwrap_or_else(|| Path::new("target").join(OBJECT))
}
