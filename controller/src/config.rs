//! The agent's settings: options of the command line and the YAML file of `--config`.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

/// What `shunt agent` was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// Name of this node's Node object.
    pub node_name: String,
    /// Directory of Kubernetes YAML.
    pub cluster_state: PathBuf,
    /// The underlay interface; if unset, the one that holds the node's InternalIP.
    pub underlay: Option<String>,
    /// Of the socket and the lock.
    pub run_dir: PathBuf,
    /// Of the address book.
    pub state_dir: PathBuf,
    /// Of the maps and links.
    pub pin_dir: PathBuf,
    /// cgroup v2 directory of this node's processes.
    pub cgroup: PathBuf,
    /// The YAML file's content.
    pub config: Config,
}

/// Content of the YAML file; every key is optional.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `vxlanPort`: UDP port of the tunnel, the same on every node.
    pub vxlan_port: u16,
    /// `vni`: VXLAN network identifier, 1 to 2^24 - 1, the same on every node.
    pub vni: u32,
    /// `mtu`: of the pods, bytes; if unset, the underlay's minus 50.
    pub mtu: Option<u32>,
    /// `masqueradePorts`: source ports of flows that leave with the node's address.
    pub masquerade_ports: PortRange,
    /// `nonMasqueradeCIDRs`: destinations that see pods' own addresses.
    pub non_masquerade_cidrs: Vec<Ipv4Net>,
    /// `tunnelDecap`: where VXLAN is popped.
    pub tunnel_decap: TunnelDecap,
    /// `conntrackMax`: tracked flows; the map holds two entries for each.
    pub conntrack_max: u32,
    /// `logFormat`.
    pub log_format: LogFormat,
    /// `logLevel`: error, warn, info, debug or trace, or a filter as `info,shunt::cluster=debug`.
    pub log_level: String,
}

/// An inclusive range of ports, host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

/// Where VXLAN is popped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelDecap {
    /// At TC ingress of the underlay.
    Tc,
    /// In XDP, before an skb exists.
    Xdp,
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            vxlan_port: 8472,
            vni: 1,
            mtu: None,
            masquerade_ports: PortRange { first: 10_000, last: 29_999 },
            non_masquerade_cidrs: Vec::new(),
            tunnel_decap: TunnelDecap::Tc,
            conntrack_max: 262_144,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
        }
    }
}

/// Every key that the file may have.
const KEYS: [&str; 9] = [
    "vxlanPort",
    "vni",
    "mtu",
    "masqueradePorts",
    "nonMasqueradeCIDRs",
    "tunnelDecap",
    "conntrackMax",
    "logFormat",
    "logLevel",
];

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no YAML.
    #[error("the configuration is not YAML: {0}")]
    Syntax(#[from] serde_yaml::Error),
    /// It is YAML but no mapping of keys to values.
    #[error("the configuration must be a mapping of keys to values, like `vxlanPort: 8472`")]
    NoMapping,
    /// A key that means nothing.
    #[error("unknown key `{key}`{}", .nearest.map(|nearest| format!(": did you mean `{nearest}`?"))
        .unwrap_or_else(|| format!("; the keys are {}", KEYS.join(", "))))]
    UnknownKey {
        /// As written.
        key: String,
        /// A known key that is much like it.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be.
    #[error("`{key}` {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// What is wrong with it, by key.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    /// Checks the text of a file. Empty text is the defaults.
    ///
    /// # Errors
    /// What is wrong with it, by key.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mapping = match serde_yaml::from_str(text)? {
            Value::Null => return Ok(Self::default()),
            Value::Mapping(mapping) => mapping,
            _ => return Err(ConfigError::NoMapping),
        };
        for key in mapping.keys() {
            let key = key.as_str().map(str::to_owned).ok_or(ConfigError::NoMapping)?;
            if !KEYS.contains(&key.as_str()) {
                return Err(ConfigError::UnknownKey { nearest: nearest_key(&key), key });
            }
        }
        // `key:` with nothing behind it is the default, as kubectl has it.
        let get = |key: &'static str| mapping.get(key).filter(|value| !value.is_null()).cloned();
        let mut config = Self::default();
        if let Some(value) = get("vxlanPort") {
            config.vxlan_port = typed("vxlanPort", value, "must be a port from 1 to 65535")?;
        }
        if let Some(value) = get("vni") {
            config.vni = typed("vni", value, "must be a number from 1 to 16777215")?;
        }
        if let Some(value) = get("mtu") {
            config.mtu = Some(typed("mtu", value, "must be a number of bytes from 576 to 65485")?);
        }
        if let Some(value) = get("masqueradePorts") {
            config.masquerade_ports = ports(value)?;
        }
        if let Some(value) = get("nonMasqueradeCIDRs") {
            config.non_masquerade_cidrs = cidrs(value)?;
        }
        if let Some(value) = get("tunnelDecap") {
            config.tunnel_decap = word("tunnelDecap", &value, [("tc", TunnelDecap::Tc), ("xdp", TunnelDecap::Xdp)])?;
        }
        if let Some(value) = get("conntrackMax") {
            config.conntrack_max = typed("conntrackMax", value, "must be a number of flows from 1024 to 16777216")?;
        }
        if let Some(value) = get("logFormat") {
            config.log_format = word("logFormat", &value, [("text", LogFormat::Text), ("json", LogFormat::Json)])?;
        }
        if let Some(value) = get("logLevel") {
            config.log_level = typed("logLevel", value, "must be a text, like `info`")?;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key, problem: String| Err(ConfigError::Value { key, problem });
        if self.vxlan_port == 0 {
            return refuse("vxlanPort", "is 0: it must be a port from 1 to 65535".to_owned());
        }
        if !(1..1 << 24).contains(&self.vni) {
            return refuse("vni", format!("is {}: it must be a number from 1 to 16777215", self.vni));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(576..=65_485).contains(mtu)) {
            return refuse("mtu", format!("is {mtu}: it must be a number of bytes from 576 to 65485"));
        }
        let PortRange { first, last } = self.masquerade_ports;
        if first < 1024 {
            return refuse("masqueradePorts", format!("starts at {first}: ports below 1024 belong to the system's services"));
        }
        if first > last {
            return refuse("masqueradePorts", format!("is {first}-{last}: the first port must not be above the last"));
        }
        if last - first < 1023 {
            return refuse("masqueradePorts", format!("is {first}-{last}: fewer than 1024 ports run out too soon"));
        }
        if (first..=last).contains(&self.vxlan_port) {
            let problem = format!("is {first}-{last}, which includes the tunnel's own port {} (`vxlanPort`)", self.vxlan_port);
            return refuse("masqueradePorts", problem);
        }
        if !(1024..=1 << 24).contains(&self.conntrack_max) {
            let problem = format!("is {}: it must be a number of flows from 1024 to 16777216", self.conntrack_max);
            return refuse("conntrackMax", problem);
        }
        match self.log_level.parse::<tracing_subscriber::filter::Targets>() {
            Ok(_) => Ok(()),
            Err(error) => {
                refuse("logLevel", format!("is {:?}: {error}; want error, warn, info, debug or trace", self.log_level))
            }
        }
    }
}

fn typed<T: DeserializeOwned>(key: &'static str, value: Value, expected: &str) -> Result<T, ConfigError> {
    let text = shown(&value);
    serde_yaml::from_value(value).map_err(|_| ConfigError::Value { key, problem: format!("is {text}: it {expected}") })
}

fn word<T: Copy, const N: usize>(key: &'static str, value: &Value, words: [(&str, T); N]) -> Result<T, ConfigError> {
    let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let choices = words.map(|(word, _)| format!("`{word}`")).join(" or ");
        ConfigError::Value { key, problem: format!("is {}: it must be {choices}", shown(value)) }
    })
}

fn ports(value: Value) -> Result<PortRange, ConfigError> {
    let key = "masqueradePorts";
    let expected = "must be two ports with a hyphen, like \"10000-29999\"";
    let text: String = typed(key, value, expected)?;
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some(PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? }));
    range.ok_or_else(|| ConfigError::Value { key, problem: format!("is {text:?}: it {expected}") })
}

fn cidrs(value: Value) -> Result<Vec<Ipv4Net>, ConfigError> {
    let key = "nonMasqueradeCIDRs";
    let texts: Vec<String> = typed(key, value, "must be a list of prefixes, like [\"10.0.0.0/8\"]")?;
    let mut nets = Vec::new();
    for text in texts {
        let refuse = |problem: &str| ConfigError::Value { key, problem: format!("has {text:?}: {problem}") };
        let (address, length) = text.split_once('/').ok_or_else(|| refuse("a prefix needs a length, like 10.0.0.0/8"))?;
        let net = match (address.parse(), length.parse::<u8>()) {
            (Ok(IpAddr::V4(address)), Ok(length)) => {
                Ipv4Net::new(address, length).map_err(|_| refuse("the length of an IPv4 prefix is 0 to 32"))?
            }
            (Ok(IpAddr::V6(_)), _) => return Err(refuse("IPv6 is not carried yet")),
            _ => return Err(refuse("this is no prefix; want one like 10.0.0.0/8")),
        };
        if net.trunc() != net {
            return Err(refuse(&format!("it has bits beyond its length; did you mean {}?", net.trunc())));
        }
        nets.push(net);
    }
    Ok(nets)
}

/// A value as one line of an error, cut short.
fn shown(value: &Value) -> String {
    let text = serde_yaml::to_string(value).unwrap_or_default();
    let line = text.trim().replace('\n', " ");
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("`{}...`", &line[..end]),
        None => format!("`{line}`"),
    }
}

/// The known key that is within a third of its length of edits, letter case aside.
fn nearest_key(key: &str) -> Option<&'static str> {
    let key = key.to_lowercase();
    KEYS.iter()
        .map(|known| (edits(&key, &known.to_lowercase()), *known))
        .filter(|(edits, known)| *edits <= known.len().div_ceil(3))
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's distance.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    // A key beyond any known one's length is like none of them, whatever it costs to say so exactly.
    for (i, a) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_said_is_the_defaults() {
        for text in ["", "---\n", "{}", "# nothing\n", "mtu:\n"] {
            assert_eq!(Config::parse(text).unwrap(), Config::default(), "{text:?}");
        }
    }

    #[test]
    fn everything_can_be_said() {
        let config = Config::parse(
            "vxlanPort: 4789\nvni: 7\nmtu: 1400\nmasqueradePorts: 20000-29999\nnonMasqueradeCIDRs: [10.0.0.0/8]\n\
             tunnelDecap: xdp\nconntrackMax: 65536\nlogFormat: json\nlogLevel: info,shunt::cluster=debug\n",
        )
        .unwrap();
        assert_eq!(
            config,
            Config {
                vxlan_port: 4789,
                vni: 7,
                mtu: Some(1400),
                masquerade_ports: PortRange { first: 20_000, last: 29_999 },
                non_masquerade_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
                tunnel_decap: TunnelDecap::Xdp,
                conntrack_max: 65_536,
                log_format: LogFormat::Json,
                log_level: "info,shunt::cluster=debug".to_owned(),
            }
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_key() {
        for (text, expected) in [
            ("vxlanport: 1", "unknown key `vxlanport`: did you mean `vxlanPort`?"),
            ("masqueradePort: 1-2", "unknown key `masqueradePort`: did you mean `masqueradePorts`?"),
            ("nonMasqueradeCidr: []", "unknown key `nonMasqueradeCidr`: did you mean `nonMasqueradeCIDRs`?"),
            ("colour: red", "unknown key `colour`; the keys are vxlanPort, vni, mtu,"),
            ("- 1", "must be a mapping"),
            ("1: 2", "must be a mapping"),
            ("a: [", "not YAML"),
            ("vni: 1\nvni: 2", "not YAML: duplicate entry with key \"vni\""),
            ("vxlanPort: 0", "`vxlanPort` is 0"),
            ("vxlanPort: 65536", "`vxlanPort` is `65536`: it must be a port"),
            ("vxlanPort: -1", "`vxlanPort` is `-1`"),
            ("vxlanPort: many", "`vxlanPort` is `many`"),
            ("vni: 0", "`vni` is 0"),
            ("vni: 16777216", "`vni` is 16777216"),
            ("mtu: 100", "`mtu` is 100"),
            ("mtu: 65486", "`mtu` is 65486"),
            ("mtu: [1]", "`mtu` is `- 1`"),
            ("masqueradePorts: 10000", "`masqueradePorts` is `10000`"),
            ("masqueradePorts: a-b", "`masqueradePorts` is \"a-b\""),
            ("masqueradePorts: 10000-70000", "`masqueradePorts` is \"10000-70000\""),
            ("masqueradePorts: 29999-10000", "must not be above the last"),
            ("masqueradePorts: 80-20000", "below 1024"),
            ("masqueradePorts: 10000-10001", "fewer than 1024"),
            ("masqueradePorts: 8000-9999", "includes the tunnel's own port 8472"),
            ("nonMasqueradeCIDRs: 10.0.0.0/8", "must be a list"),
            ("nonMasqueradeCIDRs: [10.0.0.0]", "needs a length"),
            ("nonMasqueradeCIDRs: [10.0.0.1/8]", "did you mean 10.0.0.0/8?"),
            ("nonMasqueradeCIDRs: [10.0.0.0/33]", "0 to 32"),
            ("nonMasqueradeCIDRs: ['fd00::/8']", "IPv6 is not carried yet"),
            ("nonMasqueradeCIDRs: [all/0]", "no prefix"),
            ("tunnelDecap: ebpf", "`tunnelDecap` is `ebpf`: it must be `tc` or `xdp`"),
            ("conntrackMax: 1", "`conntrackMax` is 1"),
            ("logFormat: xml", "`logFormat` is `xml`: it must be `text` or `json`"),
            ("logLevel: loud=very", "`logLevel` is \"loud=very\""),
        ] {
            let error = Config::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}, not {expected:?}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::read(Path::new("/nonexistent/shunt.yaml")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/shunt.yaml"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = Config::parse(&text);
        }

        #[test]
        fn no_value_panics(key in proptest::sample::select(&KEYS[..]), value in "[-\\[\\]{}0-9a-z./: \"]{0,24}") {
            let _ = Config::parse(&format!("{key}: {value}"));
        }
    }
}
