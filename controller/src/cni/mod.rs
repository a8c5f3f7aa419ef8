//! The CNI plugin: works in the pod's network namespace and asks the agent for all else. It never writes a map.
//!
//! <https://www.cni.dev/docs/spec/>, versions 0.3.1 to 1.1.0.

mod environment;
mod netns;
mod plugin;
mod pod_link;
pub mod protocol;

use std::{
    io::{self, IsTerminal, Read, Write},
    process::ExitCode,
};

use environment::Environment;
use protocol::{CniError, SpecVersion, code};

/// A larger network configuration is refused: the largest honest one is a GC with every attachment of a node.
const MAX_CONFIG: u64 = 4 << 20;

/// Whether this process was called as a plugin.
#[must_use]
pub fn is_called() -> bool {
    std::env::var_os("CNI_COMMAND").is_some()
}

/// One call of the plugin: environment and standard input in, JSON on standard output out, nothing else there.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = Environment::read(|name| std::env::var_os(name)).and_then(|environment| {
        let config = read_config()?;
        plugin::run(&environment, &config).map_err(|error| error.in_version_of(&config))
    });
    let (text, exit) = match outcome {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json()), ExitCode::FAILURE),
    };
    let Some(text) = text else { return exit };
    match writeln!(io::stdout().lock(), "{text}") {
        Ok(()) => exit,
        Err(error) => {
            eprintln!("shunt: cannot write the result: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read_config() -> Result<Vec<u8>, CniError> {
    let stdin = io::stdin().lock();
    let mut config = Vec::new();
    if stdin.is_terminal() {
        // Somebody tries VERSION by hand: there is nothing to wait for.
        return Ok(config);
    }
    stdin.take(MAX_CONFIG + 1).read_to_end(&mut config).map_err(|error| {
        CniError::new(code::IO, format!("cannot read the network configuration from standard input: {error}"))
    })?;
    if config.len() as u64 > MAX_CONFIG {
        return Err(CniError::new(code::IO, format!("the network configuration is longer than {MAX_CONFIG} bytes")));
    }
    Ok(config)
}

impl CniError {
    /// Marks the error with the version that the configuration speaks, as far as that can be read.
    fn in_version_of(mut self, config: &[u8]) -> Self {
        self.version = SpecVersion::of(config).unwrap_or(self.version);
        self
    }
}
