//! The agent's settings: options of the command line and the YAML file of `--config`.

mod devices;
mod values;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use ipnet::Ipv4Net;
use serde_yaml::Value;

pub use self::devices::Devices;
use self::values::{absolute, cidrs, listen, node_port_addresses, ports, typed, word};

/// What `shunt agent` was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentOptions {
    /// Name of this node's Node object.
    pub node_name: String,
    /// Where cluster state comes from.
    pub source: SourceOptions,
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
    /// Whether what flannel and kube-proxy have on this node is to be taken over.
    pub takeover: bool,
    /// Where CNI's runtime and host-local keep what they have given to pods.
    pub cni_state_dir: PathBuf,
    /// The YAML file's content.
    pub config: Config,
}

/// Where cluster state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceOptions {
    /// A directory of Kubernetes YAML.
    Files(PathBuf),
    /// The API server that the current context of a kubeconfig names.
    Kubeconfig(PathBuf),
    /// The API server of the cluster that the agent runs in as a pod, by the pod's service account.
    InCluster,
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
    /// `httpListen`: where health and metrics are answered; `None` for nowhere.
    pub http_listen: Option<SocketAddr>,
    /// `cniConfDir`: where the CNI configuration is written when pods can be added; if unset, it is not.
    pub cni_conf_dir: Option<PathBuf>,
    /// `cniBinDir`: where the CNI plugin is installed; if unset, it is not.
    pub cni_bin_dir: Option<PathBuf>,
    /// `devices`: which interfaces are wires besides the underlay.
    pub devices: Devices,
    /// `nodePortAddresses`: at which of the node's addresses node ports are.
    pub node_port_addresses: NodePortAddresses,
    /// `nodePort`: by which way a backend on another node answers a client from the outside.
    pub node_port: NodePortMode,
    /// `loadBalancer`: how backends are chosen.
    pub load_balancer: LoadBalancer,
    /// `connectTimeTranslation`.
    pub connect_time_translation: ConnectTimeTranslation,
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

/// At which of a node's addresses node ports are; never at those of the loopback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// At the first address of the Node object.
    Primary,
    /// At all addresses of the node's interfaces within these prefixes.
    Within(Vec<Ipv4Net>),
}

/// By which way a backend on another node answers a client from the outside, who asked this one at a node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortMode {
    /// By this node: the backend sees this node's address.
    Snat,
    /// From its own node: direct server return. The backend sees the client's address.
    Dsr,
}

/// How a backend is chosen for a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// Evenly at random.
    Random,
    /// By the flow's hash over a Maglev table: the same backend whichever node is asked.
    Maglev,
}

/// Whether connections to Services are given a backend when a socket is connected, so that their packets need no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectTimeTranslation {
    /// Where the kernel lets us; packet by packet elsewhere.
    Auto,
    /// Never: packet by packet.
    Off,
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
            http_listen: Some((Ipv4Addr::LOCALHOST, 9466).into()),
            cni_conf_dir: None,
            cni_bin_dir: None,
            devices: Devices::All,
            node_port_addresses: NodePortAddresses::Primary,
            node_port: NodePortMode::Snat,
            load_balancer: LoadBalancer::Random,
            connect_time_translation: ConnectTimeTranslation::Auto,
            log_format: LogFormat::Text,
            log_level: "info".to_owned(),
        }
    }
}

/// Every key that the file may have.
const KEYS: [&str; 17] = [
    "vxlanPort",
    "vni",
    "mtu",
    "masqueradePorts",
    "nonMasqueradeCIDRs",
    "tunnelDecap",
    "conntrackMax",
    "httpListen",
    "cniConfDir",
    "cniBinDir",
    "devices",
    "nodePortAddresses",
    "nodePort",
    "loadBalancer",
    "connectTimeTranslation",
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
            config.non_masquerade_cidrs = cidrs("nonMasqueradeCIDRs", value)?;
        }
        if let Some(value) = get("tunnelDecap") {
            config.tunnel_decap = word("tunnelDecap", &value, [("tc", TunnelDecap::Tc), ("xdp", TunnelDecap::Xdp)])?;
        }
        if let Some(value) = get("conntrackMax") {
            config.conntrack_max = typed("conntrackMax", value, "must be a number of flows from 1024 to 16777216")?;
        }
        if let Some(value) = get("httpListen") {
            config.http_listen = listen(value)?;
        }
        if let Some(value) = get("cniConfDir") {
            config.cni_conf_dir = Some(absolute("cniConfDir", value)?);
        }
        if let Some(value) = get("cniBinDir") {
            config.cni_bin_dir = Some(absolute("cniBinDir", value)?);
        }
        if let Some(value) = get("devices") {
            config.devices = Devices::read(value)?;
        }
        if let Some(value) = get("nodePortAddresses") {
            config.node_port_addresses = node_port_addresses(value)?;
        }
        if let Some(value) = get("nodePort") {
            config.node_port = word("nodePort", &value, [("snat", NodePortMode::Snat), ("dsr", NodePortMode::Dsr)])?;
        }
        if let Some(value) = get("loadBalancer") {
            let words = [("random", LoadBalancer::Random), ("maglev", LoadBalancer::Maglev)];
            config.load_balancer = word("loadBalancer", &value, words)?;
        }
        if let Some(value) = get("connectTimeTranslation") {
            let words = [("auto", ConnectTimeTranslation::Auto), ("off", ConnectTimeTranslation::Off)];
            config.connect_time_translation = word("connectTimeTranslation", &value, words)?;
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
             tunnelDecap: xdp\nconntrackMax: 65536\ndevices: [eth1]\nnodePortAddresses: [192.0.2.0/24]\nnodePort: dsr\nloadBalancer: maglev\n\
             connectTimeTranslation: off\nhttpListen: '[::]:9000'\ncniConfDir: /etc/cni/net.d\ncniBinDir: /opt/cni/bin\nlogFormat: json\n\
             logLevel: info,shunt::cluster=debug\n",
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
                http_listen: Some("[::]:9000".parse().unwrap()),
                cni_conf_dir: Some("/etc/cni/net.d".into()),
                cni_bin_dir: Some("/opt/cni/bin".into()),
                devices: Devices::Matching(vec!["eth1".parse().unwrap()]),
                node_port_addresses: NodePortAddresses::Within(vec!["192.0.2.0/24".parse().unwrap()]),
                node_port: NodePortMode::Dsr,
                load_balancer: LoadBalancer::Maglev,
                connect_time_translation: ConnectTimeTranslation::Off,
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
            ("httpListen: 9466", "`httpListen` is `9466`: it must be an address and a port"),
            ("httpListen: ':9466'", "write \"0.0.0.0:9466\""),
            ("httpListen: 127.0.0.1:0", "`httpListen` is \"127.0.0.1:0\""),
            ("httpListen: localhost:80", "`httpListen` is \"localhost:80\""),
            ("cniConfDir: net.d", "`cniConfDir` is \"net.d\": it must be a directory's absolute path"),
            ("cniBinDir: [/opt]", "`cniBinDir` is `- /opt`: it must be a directory's absolute path"),
            ("nodePortAddresses: secondary", "`nodePortAddresses` is `secondary`: it must be `primary` or a list"),
            ("nodePortAddresses: []", "`nodePortAddresses` is an empty list"),
            ("nodePortAddresses: [127.0.0.0/8]", "no node ports at addresses of the loopback"),
            ("nodePortAddresses: [192.0.2.1/24]", "`nodePortAddresses` has \"192.0.2.1/24\": it has bits beyond its length"),
            ("nodePort: hybrid", "`nodePort` is `hybrid`: it must be `snat` or `dsr`"),
            ("loadBalancer: p2c", "`loadBalancer` is `p2c`: it must be `random` or `maglev`"),
            ("logFormat: xml", "`logFormat` is `xml`: it must be `text` or `json`"),
            ("logLevel: loud=very", "`logLevel` is \"loud=very\""),
        ] {
            let error = Config::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}, not {expected:?}");
        }
    }

    #[test]
    fn http_can_be_turned_off() {
        assert_eq!(Config::parse("httpListen: ''").unwrap().http_listen, None);
        assert_eq!(Config::parse("httpListen:").unwrap().http_listen, Config::default().http_listen);
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
