//! The pages for operators are whole: each names all of what it is about, and what it points to is there.

use std::{collections::BTreeSet, fs, path::Path};

use shunt::config::{Config, ConfigError};
use shunt_common::verdict::DropReason;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The first cells of a table with this heading, in backquotes in the page.
fn first_cells(page: &str, heading: &str) -> BTreeSet<String> {
    let mut lines = page.lines().skip_while(|line| !line.starts_with(heading));
    assert!(lines.next().is_some(), "no table has the heading {heading:?}");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.strip_prefix("| `")?.split_once('`').map(|(cell, _)| cell.to_owned())).collect()
}

#[test]
fn troubleshooting_explains_every_reason_for_a_drop_and_no_other() {
    let explained = first_cells(&page("docs/troubleshooting.md"), "| reason |");
    let reasons: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.name().to_owned()).collect();
    assert_eq!(explained, reasons);
}

#[test]
fn configuration_has_every_key_and_no_other() {
    let explained = first_cells(&page("docs/configuration.md"), "| key |");
    // A key that is like no other is answered with the list of all.
    let error = Config::parse("----------: 1").unwrap_err();
    assert!(matches!(&error, ConfigError::UnknownKey { nearest: None, .. }), "{error}");
    let text = error.to_string();
    let known: BTreeSet<_> = text.split_once("the keys are ").unwrap().1.split(", ").map(str::to_owned).collect();
    assert_eq!(explained, known);
}

#[test]
fn the_example_of_a_configuration_has_every_key_at_its_default() {
    let example = page("manifests/examples/agent.yaml");
    assert_eq!(Config::parse(&example).unwrap(), Config::default());
    for key in first_cells(&page("docs/configuration.md"), "| key |") {
        assert!(example.contains(&format!("{key}:")), "manifests/examples/agent.yaml lacks {key}");
    }
}

/// Every page below a directory, by its path from the root.
fn pages_below(directory: &str) -> Vec<String> {
    let mut pages = Vec::new();
    for entry in fs::read_dir(root().join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{directory}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            pages.extend(pages_below(&path));
        } else if path.ends_with(".md") {
            pages.push(path);
        }
    }
    pages
}

#[test]
fn pages_that_are_named_are_there() {
    let mut pages = pages_below("docs");
    pages.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "manifests/README.md"].map(str::to_owned));
    for name in pages {
        let text = page(&name);
        // Every second piece stands between backquotes.
        let named = text.split('`').skip(1).step_by(2).filter(|named| named.ends_with(".md"));
        let linked = text.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
        let linked = linked.filter(|target| !target.contains("://") && !target.starts_with('#'));
        for target in named.chain(linked) {
            let beside = root().join(&name).with_file_name(target);
            assert!(root().join(target).exists() || beside.exists(), "{name} names {target}, which is not there");
        }
    }
}
