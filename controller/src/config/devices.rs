//! `devices`: which interfaces are wires besides the underlay.

use glob::Pattern;
use serde_yaml::Value;

use super::{ConfigError, values::typed};

const KEY: &str = "devices";

/// What a name of an interface has at most (`IFNAMSIZ` in include/uapi/linux/if.h, less the NUL).
const NAME_MAX: usize = 15;

/// Which interfaces are wires, as far as their names say. The underlay always is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All.
    All,
    /// Those whose names match one of these patterns, as a shell's.
    Matching(Vec<Pattern>),
}

impl Devices {
    /// Reads the key's value.
    pub(super) fn read(value: Value) -> Result<Self, ConfigError> {
        let refuse = |problem: String| ConfigError::Value { key: KEY, problem };
        let names: Vec<String> = typed(KEY, value, "must be a list of interfaces, like [\"eth1\", \"storage*\"]")?;
        if names.is_empty() {
            return Err(refuse(
                "is an empty list: leave the key out for all interfaces, or name the underlay for no other".to_owned(),
            ));
        }
        names.iter().map(|name| pattern(name).map_err(refuse)).collect::<Result<_, _>>().map(Self::Matching)
    }

    /// Whether an interface of this name is one of them.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }
}

/// A name or pattern, or what is wrong with it.
fn pattern(text: &str) -> Result<Pattern, String> {
    let refuse = |problem: &str| Err(format!("has {text:?}: {problem}"));
    if text.is_empty() {
        return refuse("no interface has an empty name");
    }
    if let Some(start) = text.strip_suffix('+') {
        return refuse(&format!("what follows is said with an asterisk: did you mean {start}*?"));
    }
    // As the kernel has it (`dev_valid_name` in net/core/dev.c).
    if let Some(letter) = text.chars().find(|letter| letter.is_whitespace() || matches!(letter, '/' | ':')) {
        return refuse(&format!("no interface's name has {letter:?}"));
    }
    if text.len() > NAME_MAX && !text.contains(['*', '?', '[']) {
        return refuse(&format!("an interface's name has {NAME_MAX} letters at most"));
    }
    Pattern::new(text).or_else(|error| refuse(&format!("this is no pattern: {}", error.msg)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn names_match_as_in_a_shell() {
        let Devices::Matching(patterns) = Config::parse("devices: [eth1, 'storage*', '*.[57]', br?]").unwrap().devices else {
            panic!("all match")
        };
        let devices = Devices::Matching(patterns);
        for name in ["eth1", "storage", "storage0", "eth0.5", "bond0.7", "br0"] {
            assert!(devices.has(name), "{name}");
        }
        for name in ["eth10", "eth", "my-storage", "eth0.6", "br", "br10", "ETH1", ""] {
            assert!(!devices.has(name), "{name}");
        }
    }

    #[test]
    fn all_are_wires_unless_some_are_named() {
        for text in ["", "devices:", "devices: ['*']"] {
            assert!(Config::parse(text).unwrap().devices.has("eth1"), "{text}");
        }
    }

    #[test]
    fn what_is_no_interfaces_name_is_refused() {
        for (text, expected) in [
            ("devices: eth1", "`devices` is `eth1`: it must be a list of interfaces"),
            ("devices: []", "`devices` is an empty list: leave the key out for all"),
            ("devices: ['']", "`devices` has \"\": no interface has an empty name"),
            ("devices: [eth+]", "`devices` has \"eth+\": what follows is said with an asterisk: did you mean eth*?"),
            ("devices: [eth0 eth1]", "no interface's name has ' '"),
            ("devices: ['eth0:1']", "no interface's name has ':'"),
            ("devices: [a-much-longer-name]", "an interface's name has 15 letters at most"),
            ("devices: ['eth[0']", "`devices` has \"eth[0\": this is no pattern: "),
            ("devices: ['eth***']", "`devices` has \"eth***\": this is no pattern: "),
            ("devices: [{}]", "must be a list of interfaces"),
        ] {
            let error = Config::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}, not {expected:?}");
        }
    }
}
