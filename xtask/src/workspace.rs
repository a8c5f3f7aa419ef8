//! Where things are in the working tree.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The eBPF target triple of this byte order.
pub(crate) const EBPF_TARGET: &str = if cfg!(target_endian = "little") { "bpfel-unknown-none" } else { "bpfeb-unknown-none" };

/// The triple that static binaries are built for. Named explicitly so that build scripts and macros don't get its flags.
pub(crate) fn user_target() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// Root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Cargo's target directory.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The linked eBPF object.
pub(crate) fn ebpf_object() -> PathBuf {
    target_dir().join(EBPF_TARGET).join("release").join("shunt-dataplane")
}
