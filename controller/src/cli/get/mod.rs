//! `shunt get`: what the kernel holds, read from the pins. Needs no agent.

mod conntrack;
mod flow_state;
mod frontends;
mod rows;

use std::process::ExitCode;

use anyhow::Context;

use super::{
    Dirs,
    output::{self, Format, Row},
};
use crate::{
    ipam,
    kernel::{pins::PinDir, read::Reader},
};

/// Show what the kernel holds now; works without an agent
#[derive(Debug, clap::Args)]
pub(super) struct Get {
    /// What to show
    #[arg(value_enum)]
    what: What,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// Nodes: addresses, tunnel ends, pod ranges
    Nodes,
    /// Pods of this node
    Pods,
    /// Frontends of Services and host ports, with their policies and backends
    Services,
    /// Backends
    Backends,
    /// Prefixes and where they lead
    Routes,
    /// Tracked flows
    Conntrack,
    /// Dropped packets by reason
    Drops,
}

impl Get {
    pub(super) fn run(self, dirs: &Dirs) -> anyhow::Result<ExitCode> {
        let reader = open(dirs)?;
        match self.what {
            What::Nodes => self.show(&rows::nodes(&reader.addresses()?, &reader.routes()?)),
            What::Pods => {
                // Names are a convenience: the kernel knows addresses and interfaces alone.
                let known = ipam::read_pods(&dirs.found_state_dir()).unwrap_or_else(|error| {
                    eprintln!("shunt: pods are shown without names: {error}");
                    Vec::new()
                });
                self.show(&rows::pods(&reader.addresses()?, &known))
            }
            What::Services => self.show(&frontends::rows(reader.services()?)),
            What::Backends => self.show(&rows::backends(&reader.backends()?)),
            What::Routes => self.show(&rows::routes(&reader.routes()?)),
            What::Conntrack => {
                let flows = reader.conntrack()?;
                self.show(&conntrack::rows(flows, conntrack::now()?))
            }
            What::Drops => self.show(&rows::drops(&reader.drops()?)),
        }
    }

    fn show<R: Row>(&self, rows: &[R]) -> anyhow::Result<ExitCode> {
        output::rows(rows, self.output)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The pinned maps.
pub(super) fn open(dirs: &Dirs) -> anyhow::Result<Reader> {
    let pin_dir = dirs.found_pin_dir();
    Reader::open(&PinDir::new(&pin_dir)).with_context(|| format!("no dataplane can be read from {}", pin_dir.display()))
}
