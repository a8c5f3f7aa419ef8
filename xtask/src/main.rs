//! Development commands: `cargo xtask COMMAND`. One file a command; nothing here links the project itself.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod baseline;
mod bench;
mod build;
mod demo;
mod image;
mod kustomize;
mod lab;
mod lint;
mod load;
mod machine;
mod manifests;
mod packages;
mod run;
mod schemas;
mod test;
mod toolchain;
mod workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, tests and shows shunt", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the eBPF programs and the static binary; prints the binary's path last
    Build(build::Args),
    /// Build, load and attach on this machine, apart from everything else; detach on Ctrl-C
    Load(load::Args),
    /// Build a container image with the static binary alone; prints the archive's path last
    Image(image::Args),
    /// Render the manifests and check them against the schemas of Kubernetes; prints where they are last
    Manifests(manifests::Args),
    /// Check formatting, clippy and documentation, with warnings as errors
    Lint(lint::Args),
    /// Everything that must hold: lint, unit and packet tests, and the lab
    Test(test::Args),
    /// Two nodes, pods on each and a Service, shown in a minute
    Demo(demo::Args),
    /// Keep a lab of network namespaces to play with
    Lab(lab::Args),
    /// Measure against a bare wire, flannel's way and kube-proxy's rules
    Bench(bench::Args),
    /// Renew the committed sizes and times of the eBPF programs, after a change that is meant to change them
    Baseline(baseline::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Build(args) => build::main(&args),
        Command::Load(args) => load::main(&args),
        Command::Image(args) => image::main(&args),
        Command::Manifests(args) => manifests::main(&args),
        Command::Lint(args) => lint::main(&args),
        Command::Test(args) => test::main(&args),
        Command::Demo(args) => demo::main(&args),
        Command::Lab(args) => lab::main(&args),
        Command::Bench(args) => bench::main(&args),
        Command::Baseline(args) => baseline::main(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
