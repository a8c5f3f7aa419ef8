//! Tests that ask what an end-to-end test of Kubernetes asks carry its name, and the table of them in CONTRIBUTING.md is true.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Above the names in the documentation of a test, one a line.
const MARK: &str = "/// End to end:";
const HEADING: &str = "| end to end | here |";

/// Names of end-to-end tests by the file or directory and the function of the test that carries them.
type Carried = BTreeMap<(String, String), BTreeSet<String>>;

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned)
}

/// The table's rows.
fn table(page: &str) -> Carried {
    let rows = page.lines().skip_while(|line| *line != HEADING).skip(2).take_while(|line| line.starts_with('|'));
    let rows = rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
        let [names, test] = cells[..] else { panic!("not two cells: {row}") };
        let test: Vec<_> = quoted(test).collect();
        let [file, function] = &test[..] else { panic!("not a file and a function: {row}") };
        ((file.clone(), function.clone()), quoted(names).collect())
    });
    rows.collect()
}

/// The names that tests of a file carry.
///
/// # Panics
/// Something that is no test carries one.
fn carried(file: &str, source: &str, all: &mut Carried) {
    let twice = source.split_once("both_translations!(").and_then(|(_, rest)| rest.split_once(')'));
    let twice: BTreeSet<_> = twice.map_or("", |(list, _)| list).split(',').map(str::trim).collect();
    let (mut names, mut is_marked, mut is_test) = (BTreeSet::new(), false, false);
    for line in source.lines() {
        if let Some(function) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')).map(|(name, _)| name) {
            if !names.is_empty() {
                assert!(is_test || twice.contains(function), "{file}: {function} is no test");
                all.insert((file.to_owned(), function.to_owned()), std::mem::take(&mut names));
            }
        } else if line.starts_with("///") {
            is_marked |= line == MARK;
            names.extend(quoted(line).filter(|_| is_marked && line != MARK));
            continue;
        } else if line == "#[test]" {
            is_test = true;
            continue;
        }
        assert!(names.is_empty(), "{file}: {names:?} stand above no test");
        (is_marked, is_test) = (false, false);
    }
}

/// All sources of tests below a directory; what is in a directory of its own goes by that one's name.
fn sources(dir: &Path, name: Option<&str>, all: &mut Carried) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let own = path.file_stem().unwrap().to_str().unwrap();
        let name = name.unwrap_or(own);
        if path.is_dir() {
            sources(&path, Some(name), all);
        } else if !path.ends_with("end_to_end_names.rs") {
            carried(name, &fs::read_to_string(&path).unwrap(), all);
        }
    }
}

#[test]
fn the_table_names_the_tests_that_carry_the_names() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = table(&fs::read_to_string(tests.with_file_name("CONTRIBUTING.md")).unwrap());
    let mut found = Carried::new();
    sources(&tests.join("tests"), None, &mut found);
    assert!(!told.is_empty(), "CONTRIBUTING.md has no table with the heading {HEADING}");
    assert_eq!(told, found, "CONTRIBUTING.md on the left, the tests on the right");
}

#[test]
fn a_name_is_a_tests_above_which_it_stands() {
    let source = "both_translations!(\n    twice,\n);\n\n/// About it.\n///\n/// End to end:\n/// - `should a`\n/// - `should b`\nfn twice(t: T) {\n}\n\n\
                  /// Not `a name`.\nfn other() {\n}\n\n/// End to end:\n/// - `should c`\n#[test]\nfn once() {\n}\n";
    let mut found = Carried::new();
    carried("file", source, &mut found);
    let page = "text\n\n| end to end | here |\n| --- | --- |\n| `should a`, `should b` | `file`: `twice` |\n| `should c` | `file`: `once` |\n\nmore";
    assert_eq!(found, table(page));
    assert_eq!(found.len(), 2);
    for wrong in
        ["/// End to end:\n/// - `should a`\nfn no_test() {\n}\n", "/// End to end:\n/// - `should a`\nconst A: u8 = 0;\n"]
    {
        assert!(std::panic::catch_unwind(|| carried("file", wrong, &mut Carried::new())).is_err(), "{wrong}");
    }
}
