//! The binary `shunt`: the CNI plugin when a runtime calls it, else the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    if shunt::cni::is_called() { shunt::cni::main() } else { shunt::cli::main() }
}
