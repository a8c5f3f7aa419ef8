//! The baseline: sizes of programs and times of ways as they were committed, in `tests/baseline/programs.json`.
//!
//! Instructions and stack depths depend on the compiler and on the kernel's verifier: with those that the file names they are compared exactly, with
//! others within a tolerance. Times are compared as multiples of an empty program's, generously: what is shown is a way that has become another.

use std::{
    collections::BTreeMap,
    fmt::{Display, Write as _},
    fs,
    io::Write as _,
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};
use shunt::kernel::programs::OBJECT;

use super::{
    size::{self, Size},
    time,
};

/// How much larger a program may be under another compiler or kernel, and how much machine code may differ anyway: it depends on the CPU.
const TOLERANCE: f64 = 1.25;
/// How many times longer than in the baseline a way may take.
const SLOWER: f64 = 2.0;
/// A time that differs by less is not renewed, so that a renewal shows what has changed.
const SAME_TIME: f64 = 1.15;

/// How to renew it.
const RENEW: &str = "cargo xtask baseline";

/// What is committed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Baseline {
    /// What built the programs, as the object says.
    compiler: String,
    /// What verified them: release and machine.
    kernel: String,
    /// Sizes, by program.
    programs: BTreeMap<String, Size>,
    /// Times as multiples of an empty program's, by way.
    paths: BTreeMap<String, f64>,
}

/// Holds programs to the baseline, or with `BLESS` in the environment renews it.
///
/// # Errors
/// Programs differ from it, or could not be measured.
pub fn compare() -> Result<()> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/baseline/programs.json"));
    let now = Baseline::now()?;
    let is_blessed = std::env::var_os("BLESS").is_some();
    let text = fs::read_to_string(&path);
    if is_blessed {
        let before = text.ok().and_then(|text| serde_json::from_str(&text).ok());
        return fs::write(&path, now.renewing(before).text()?).with_context(|| format!("cannot write {}", path.display()));
    }
    let text = text.with_context(|| format!("{} cannot be read; `{RENEW}` makes it", path.display()))?;
    let before: Baseline =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged; `{RENEW}` makes it anew", path.display()))?;
    if !now.is_of_the_same_tools(&before) {
        // Past the test harness, which keeps what a passing test prints to itself.
        writeln!(
            std::io::stderr(),
            "programs are compared with their baseline within {TOLERANCE} only: it is for {} and Linux {}, these are for {} and Linux {}",
            before.compiler,
            before.kernel,
            now.compiler,
            now.kernel
        )?;
    }
    let differences = now.differences(&before);
    ensure!(
        differences.is_empty(),
        "programs are not those of tests/baseline/programs.json:\n{differences}if that is meant, renew it with `{RENEW}` and commit it with the change"
    );
    Ok(())
}

impl Baseline {
    /// Of the programs that are built in.
    fn now() -> Result<Self> {
        const ROUNDS: usize = 5;
        const RUNS: u16 = 1000;
        let name = uname()?;
        let times = time::measure(ROUNDS, RUNS)?;
        Ok(Self {
            compiler: compiler(OBJECT)?,
            kernel: format!("{} {}", name.release().display(), name.machine().display()),
            programs: size::all()?,
            paths: times.into_iter().map(|time| (time.name.clone(), (time.ratio() * 100.0).round() / 100.0)).collect(),
        })
    }

    fn is_of_the_same_tools(&self, before: &Self) -> bool {
        self.compiler == before.compiler && self.kernel == before.kernel
    }

    /// With times of the one before where they are still true.
    fn renewing(mut self, before: Option<Self>) -> Self {
        for (name, old) in before.map(|before| before.paths).unwrap_or_default() {
            if let Some(now) = self.paths.get_mut(&name)
                && *now < old * SAME_TIME
                && old < *now * SAME_TIME
            {
                *now = old;
            }
        }
        self
    }

    /// What differs, a line each.
    fn differences(&self, before: &Self) -> String {
        let exact = self.is_of_the_same_tools(before);
        let mut lines = String::new();
        let mut differs = |name: &str, what: &str, now: &dyn Display, before: &dyn Display| {
            let _ = writeln!(lines, "    {name}: {what} {now}, in the baseline {before}");
        };
        for (name, size) in &self.programs {
            let Some(old) = before.programs.get(name) else {
                differs(name, "the program is", &"there", &"not");
                continue;
            };
            for (what, now, old, exact) in [
                ("instructions verified", size.verified, old.verified, exact),
                ("instructions after verification", size.translated, old.translated, exact),
                ("bytes of machine code", size.machine_code, old.machine_code, false),
            ] {
                if if exact { now != old } else { f64::from(now) > f64::from(old) * TOLERANCE } {
                    differs(name, what, &now, &old);
                }
            }
            if exact && size.stack != old.stack {
                differs(name, "bytes of stack", &format!("{:?}", size.stack), &format!("{:?}", old.stack));
            }
        }
        for (name, now) in &self.paths {
            match before.paths.get(name) {
                Some(old) if *now > old * SLOWER => differs(name, "times an empty program", now, old),
                Some(_) => {}
                None => differs(name, "the way is", &"there", &"not"),
            }
        }
        let (programs, paths) = (before.programs.keys(), before.paths.keys());
        let gone = programs
            .filter(|name| !self.programs.contains_key(*name))
            .chain(paths.filter(|name| !self.paths.contains_key(*name)));
        for name in gone {
            differs(name, "it is", &"gone", &"there");
        }
        lines
    }

    /// As JSON with a line for each program and way, so that a difference reads well.
    fn text(&self) -> Result<String> {
        fn rows<T: Serialize>(map: &BTreeMap<String, T>) -> Result<String> {
            let row = |(name, value): (&String, &T)| -> Result<String> {
                Ok(format!("    {}: {}", serde_json::to_string(name)?, serde_json::to_string(value)?))
            };
            Ok(map.iter().map(row).collect::<Result<Vec<_>>>()?.join(",\n"))
        }
        Ok(format!(
            "{{\n  \"compiler\": {},\n  \"kernel\": {},\n  \"programs\": {{\n{}\n  }},\n  \"paths\": {{\n{}\n  }}\n}}\n",
            serde_json::to_string(&self.compiler)?,
            serde_json::to_string(&self.kernel)?,
            rows(&self.programs)?,
            rows(&self.paths)?
        ))
    }
}

/// The compiler that an object's debug information names.
fn compiler(object: &[u8]) -> Result<String> {
    const MARK: &[u8] = b"rustc version ";
    let Some(start) = object.windows(MARK.len()).position(|bytes| bytes == MARK) else {
        bail!("the eBPF object doesn't say what built it: is it without debug information?");
    };
    let said: String = object[start..].iter().take(100).map_while(|&byte| (byte != 0).then_some(char::from(byte))).collect();
    // Up to the first parenthesis' end: release, commit and date.
    Ok(said.split_inclusive(')').next().unwrap_or(&said).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        let size = Size { verified: 1000, translated: 100, machine_code: 500, stack: vec![64, 0] };
        Baseline {
            compiler: "rustc version 1.96.0 (ac68faa20 2026-05-25)".into(),
            kernel: "6.12.0 x86_64".into(),
            programs: [("from_pod".to_owned(), size)].into(),
            paths: [("from_pod: new flow".to_owned(), 5.0)].into(),
        }
    }

    fn changed(change: impl FnOnce(&mut Baseline)) -> Baseline {
        let mut changed = baseline();
        change(&mut changed);
        changed
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = baseline().text().unwrap();
        assert_eq!(serde_json::from_str::<Baseline>(&text).unwrap(), baseline());
    }

    #[test]
    fn one_instruction_is_a_difference_unless_tools_differ() {
        let one_more = |baseline: &mut Baseline| baseline.programs.get_mut("from_pod").unwrap().verified += 1;
        assert_eq!(baseline().differences(&baseline()), "");
        let difference = changed(one_more).differences(&baseline());
        assert_eq!(difference, "    from_pod: instructions verified 1001, in the baseline 1000\n");
        let on_another_kernel = changed(|baseline| {
            one_more(baseline);
            baseline.kernel = "7.2.0 x86_64".into();
            baseline.programs.get_mut("from_pod").unwrap().stack = vec![72, 0];
        });
        assert_eq!(on_another_kernel.differences(&baseline()), "");
        let much_more = changed(|baseline| {
            baseline.compiler = "rustc version 1.97.0".into();
            baseline.programs.get_mut("from_pod").unwrap().verified = 1300;
        });
        assert_eq!(much_more.differences(&baseline()).lines().count(), 1);
    }

    #[test]
    fn stacks_times_and_names_are_compared_too() {
        for (what, now) in [
            ("a deeper stack", changed(|baseline| baseline.programs.get_mut("from_pod").unwrap().stack = vec![64, 8])),
            ("machine code", changed(|baseline| baseline.programs.get_mut("from_pod").unwrap().machine_code = 700)),
            ("a slower way", changed(|baseline| *baseline.paths.get_mut("from_pod: new flow").unwrap() = 10.1)),
            ("a way that is gone", changed(|baseline| baseline.paths.clear())),
            (
                "a new program",
                changed(|baseline| {
                    let size = baseline.programs["from_pod"].clone();
                    baseline.programs.insert("to_pod".into(), size);
                }),
            ),
        ] {
            assert_eq!(now.differences(&baseline()).lines().count(), 1, "{what}");
        }
        assert_eq!(
            changed(|baseline| *baseline.paths.get_mut("from_pod: new flow").unwrap() = 9.0).differences(&baseline()),
            ""
        );
    }

    #[test]
    fn a_renewal_leaves_times_that_are_still_true() {
        let near = changed(|baseline| *baseline.paths.get_mut("from_pod: new flow").unwrap() = 5.3);
        assert_eq!(near.clone().renewing(Some(baseline())), baseline());
        assert_eq!(near.clone().renewing(None), near);
        let far = changed(|baseline| *baseline.paths.get_mut("from_pod: new flow").unwrap() = 4.0);
        assert_eq!(far.clone().renewing(Some(baseline())), far);
    }

    #[test]
    fn a_compiler_is_named_by_its_object() {
        let object = b"\0clang LLVM (rustc version 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball))\0";
        assert_eq!(compiler(object).unwrap(), "rustc version 1.96.0 (ac68faa20 2026-05-25)");
        assert!(compiler(b"stripped").is_err());
    }
}
