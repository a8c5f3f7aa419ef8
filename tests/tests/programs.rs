//! Programs are what `tests/baseline/programs.json` says: no instruction more or less, no way much slower. Alone in its process, where it
//! lowers a limit for a moment.
//!
//! `cargo xtask baseline` renews the file; read the difference before you commit it.

use shunt_lab::bench::programs::baseline;

#[test]
fn programs_are_those_of_the_baseline() {
    baseline::compare().unwrap_or_else(|error| panic!("{error:#}"));
}
