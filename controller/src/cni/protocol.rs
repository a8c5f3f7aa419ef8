//! What the CNI specification fixes: versions, the network configuration, results and errors, as JSON.

mod port_mappings;

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use serde_json::{Map, Value, json};
use shunt_common::net::Mac;

use crate::attachment::{AttachmentKey, PortMapping};

/// Versions of the specification that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// Chains and `prevResult`.
    V0_3_1,
    /// CHECK.
    V0_4_0,
    /// Results without an IP version.
    V1_0_0,
    /// GC, STATUS, MTU in results.
    V1_1_0,
}

impl SpecVersion {
    /// All, oldest first.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const NEWEST: Self = Self::V1_1_0;

    /// As it stands in `cniVersion`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version that a configuration speaks, if it can be read and is known.
    #[must_use]
    pub fn of(config: &[u8]) -> Option<Self> {
        let config: Value = serde_json::from_slice(config).ok()?;
        let text = config.get("cniVersion")?.as_str()?;
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

impl fmt::Display for SpecVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Error codes: up to 99 the specification's, from 100 our own.
pub mod code {
    /// Incompatible CNI version.
    pub const VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// Container unknown or does not exist: the runtime need not clean anything up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Environment variables are missing or not valid.
    pub const ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO: u32 = 5;
    /// Content could not be decoded.
    pub const DECODE: u32 = 6;
    /// The network configuration is not valid.
    pub const CONFIG: u32 = 7;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// STATUS: no ADD can be served.
    pub const NOT_AVAILABLE: u32 = 50;
    /// STATUS: no ADD can be served, and existing containers may be cut off.
    pub const LIMITED_CONNECTIVITY: u32 = 51;
    /// The agent or the kernel failed at it.
    pub const FAILED: u32 = 100;
    /// Every address of the Node's podCIDR is taken.
    pub const RANGE_FULL: u32 = 101;
    /// The Node's podCIDR is missing, too small or not the one that pods have addresses of.
    pub const RANGE_UNUSABLE: u32 = 102;
    /// CHECK found something that is not as it should be.
    pub const CHECK_FAILED: u32 = 103;
    /// The pod already has an interface of this name.
    pub const INTERFACE_EXISTS: u32 = 104;
    /// Another pod has a host port that is asked for.
    pub const PORT_TAKEN: u32 = 105;
}

/// An error as the runtime is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}{}{details}", if .details.is_empty() { "" } else { ": " })]
pub struct CniError {
    /// That the error is written in.
    pub version: SpecVersion,
    /// One of [`code`].
    pub code: u32,
    /// What went wrong.
    pub msg: String,
    /// What to do, or what lies beneath.
    pub details: String,
}

impl CniError {
    /// In the newest version, without details.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { version: SpecVersion::NEWEST, code, msg: msg.into(), details: String::new() }
    }

    /// With details.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The specification's error type.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut error = json!({ "cniVersion": self.version.as_str(), "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            error["details"] = json!(self.details);
        }
        error.to_string()
    }
}

/// The network configuration as far as it concerns this plugin; other keys are others' business.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// `cniVersion`.
    pub version: SpecVersion,
    /// `name`.
    pub name: String,
    /// `agentSocket`.
    pub agent_socket: PathBuf,
    /// `dns`, handed through to the result.
    pub dns: Option<Value>,
    /// `prevResult`.
    pub prev_result: Option<PrevResult>,
    /// `runtimeConfig.portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// `cni.dev/valid-attachments`.
    pub valid_attachments: Option<Vec<AttachmentKey>>,
}

/// The result of an earlier ADD, or of an earlier plugin of the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrevResult {
    /// Interfaces in their order.
    pub interfaces: Vec<PrevInterface>,
    /// IPv4 addresses with the index of their interface.
    pub addresses: Vec<(Ipv4Net, Option<usize>)>,
    /// IPv4 destinations of routes.
    pub routes: Vec<Ipv4Net>,
}

/// An interface of an earlier result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrevInterface {
    /// Name.
    pub name: String,
    /// MAC, if it has one that can be read.
    pub mac: Option<Mac>,
    /// MTU, if the result says so (1.1.0).
    pub mtu: Option<u32>,
    /// Namespace; empty on the host.
    pub sandbox: String,
}

impl NetworkConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Codes 1, 2, 6 and 7, naming the field.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        Self::of(object(text)?)
    }

    /// Reads a configuration without what only an ADD needs: what is wrong with that must not keep a pod from being removed.
    ///
    /// # Errors
    /// As [`NetworkConfig::parse`].
    pub fn parse_for_removal(text: &[u8]) -> Result<Self, CniError> {
        let mut config = object(text)?;
        for unneeded in ["prevResult", "runtimeConfig"] {
            config.remove(unneeded);
        }
        Self::of(config)
    }

    fn of(config: Map<String, Value>) -> Result<Self, CniError> {
        let fields = Fields { object: &config, path: "" };
        let version = version(&fields)?;
        Self::rest(version, &fields).map_err(|error| CniError { version, ..error })
    }

    fn rest(version: SpecVersion, fields: &Fields<'_>) -> Result<Self, CniError> {
        let name = fields.text("name")?.unwrap_or_default();
        let bytes = name.as_bytes();
        let is_valid = bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if !is_valid {
            let problem = "it must start with a letter or digit, followed by letters, digits, '_', '.' or '-'";
            return Err(invalid(format!("`name` is {name:?}: {problem}")));
        }
        if fields.text("type")?.is_none_or(str::is_empty) {
            return Err(invalid("`type` is missing: it must be the plugin's name, `shunt`".to_owned()));
        }
        let agent_socket = fields.text("agentSocket")?.unwrap_or("/run/shunt/agent.sock");
        if !agent_socket.starts_with('/') {
            return Err(invalid(format!(
                "`agentSocket` is {agent_socket:?}: it must be an absolute path like /run/shunt/agent.sock"
            )));
        }
        if let Some(ipam) = fields.object("ipam")?.filter(|ipam| !ipam.object.is_empty()) {
            let value = Value::Object(ipam.object.clone());
            let error =
                CniError::new(code::UNSUPPORTED_FIELD, format!("the field `ipam` is not supported; its value is {value}"));
            return Err(error.with_details("shunt gives out the addresses of the Node's podCIDR itself: remove `ipam`"));
        }
        let dns = fields.object("dns")?;
        if let Some(dns) = &dns {
            dns.text("domain")?;
            for list in ["nameservers", "search", "options"] {
                dns.texts(list)?;
            }
        }
        let prev_result = fields.object("prevResult")?.map(|result| prev_result(&result)).transpose()?;
        let valid_attachments = fields.list("cni.dev/valid-attachments")?;
        Ok(Self {
            version,
            name: name.to_owned(),
            agent_socket: agent_socket.into(),
            dns: dns.filter(|dns| !dns.object.is_empty()).map(|dns| Value::Object(dns.object.clone())),
            prev_result,
            port_mappings: port_mappings::parse(fields)?,
            valid_attachments: valid_attachments.map(|list| list.iter().map(valid_attachment).collect()).transpose()?,
        })
    }
}

fn object(text: &[u8]) -> Result<Map<String, Value>, CniError> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err(CniError::new(code::DECODE, "the network configuration is not a JSON object")),
        Err(error) => Err(CniError::new(code::DECODE, format!("the network configuration is not JSON: {error}"))),
    }
}

fn version(fields: &Fields<'_>) -> Result<SpecVersion, CniError> {
    let text = fields.text("cniVersion")?.unwrap_or_default();
    SpecVersion::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
        let known = SpecVersion::ALL.map(SpecVersion::as_str).join(", ");
        CniError::new(code::VERSION, format!("`cniVersion` is {text:?}, which is not supported"))
            .with_details(format!("supported are {known}"))
    })
}

fn valid_attachment(value: &Value) -> Result<AttachmentKey, CniError> {
    let path = "cni.dev/valid-attachments[].";
    let object =
        value.as_object().ok_or_else(|| invalid("`cni.dev/valid-attachments` has an item that is no object".to_owned()))?;
    let fields = Fields { object, path };
    let (id, ifname) = (fields.text("containerID")?, fields.text("ifname")?);
    AttachmentKey::new(id.unwrap_or_default(), ifname.unwrap_or_default())
        .map_err(|error| invalid(format!("`cni.dev/valid-attachments` has an item that is not valid: {error}")))
}

fn prev_result(result: &Fields<'_>) -> Result<PrevResult, CniError> {
    let mut previous = PrevResult::default();
    for interface in result.objects("interfaces", "prevResult.interfaces[].")? {
        previous.interfaces.push(PrevInterface {
            name: interface.text("name")?.unwrap_or_default().to_owned(),
            mac: interface.text("mac")?.and_then(|mac| mac.parse().ok()),
            mtu: interface.number("mtu")?,
            sandbox: interface.text("sandbox")?.unwrap_or_default().to_owned(),
        });
    }
    for ip in result.objects("ips", "prevResult.ips[].")? {
        let text = ip.text("address")?.unwrap_or_default();
        let interface = ip.number("interface")?.map(|index| index as usize);
        match text.parse() {
            Ok(ipnet::IpNet::V4(address)) => previous.addresses.push((address, interface)),
            Ok(ipnet::IpNet::V6(_)) => {}
            Err(_) => {
                return Err(invalid(format!(
                    "`prevResult.ips[].address` is {text:?}: it must be an address with its prefix length"
                )));
            }
        }
    }
    for route in result.objects("routes", "prevResult.routes[].")? {
        let text = route.text("dst")?.unwrap_or_default();
        match text.parse() {
            Ok(ipnet::IpNet::V4(destination)) => previous.routes.push(destination),
            Ok(ipnet::IpNet::V6(_)) => {}
            Err(_) => return Err(invalid(format!("`prevResult.routes[].dst` is {text:?}: it must be a prefix"))),
        }
    }
    Ok(previous)
}

fn invalid(msg: String) -> CniError {
    CniError::new(code::CONFIG, msg)
}

/// An object's fields by type; what has the wrong one is refused by its path. `null` counts as missing.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'static str,
}

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str, value: &Value) -> CniError {
        let text = value.to_string();
        let shown = text.char_indices().nth(80).map_or(text.as_str(), |(end, _)| &text[..end]);
        invalid(format!("`{}{key}` must be {expected}, not {shown}", self.path))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, CniError> {
        self.get(key).map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a string", value))).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<u32>, CniError> {
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        self.get(key).map(|value| number(value).ok_or_else(|| self.wrong(key, "a whole number from 0", value))).transpose()
    }

    fn list(&self, key: &str) -> Result<Option<&'a Vec<Value>>, CniError> {
        self.get(key).map(|value| value.as_array().ok_or_else(|| self.wrong(key, "a list", value))).transpose()
    }

    fn texts(&self, key: &str) -> Result<(), CniError> {
        let list = self.list(key)?.filter(|list| !list.iter().all(Value::is_string));
        list.map_or(Ok(()), |list| Err(self.wrong(key, "a list of strings", &Value::Array(list.clone()))))
    }

    fn object(&self, key: &'static str) -> Result<Option<Fields<'a>>, CniError> {
        let object = |value: &'a Value| value.as_object().ok_or_else(|| self.wrong(key, "an object", value));
        let path = match key {
            "dns" => "dns.",
            "prevResult" => "prevResult.",
            "runtimeConfig" => "runtimeConfig.",
            _ => "",
        };
        self.get(key).map(object).transpose().map(|object| object.map(|object| Fields { object, path }))
    }

    fn objects(&self, key: &str, path: &'static str) -> Result<Vec<Fields<'a>>, CniError> {
        let list = self.list(key)?.map(Vec::as_slice).unwrap_or_default();
        list.iter()
            .map(|value| value.as_object().ok_or_else(|| self.wrong(key, "a list of objects", value)))
            .map(|object| object.map(|object| Fields { object, path }))
            .collect()
    }
}

/// What an ADD reports.
#[derive(Clone, Debug, PartialEq)]
pub struct AddResult {
    /// Host-side interface.
    pub host_interface: String,
    /// Its MAC.
    pub host_mac: Mac,
    /// The interface in the pod.
    pub ifname: String,
    /// Its MAC.
    pub pod_mac: Mac,
    /// `CNI_NETNS`.
    pub sandbox: String,
    /// MTU of both, bytes.
    pub mtu: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// From the configuration.
    pub dns: Option<Value>,
}

impl AddResult {
    /// The specification's success type, as each version has it.
    #[must_use]
    pub fn to_json(&self, version: SpecVersion) -> String {
        let mut host = json!({ "name": self.host_interface, "mac": self.host_mac.to_string() });
        let mut pod = json!({ "name": self.ifname, "mac": self.pod_mac.to_string(), "sandbox": self.sandbox });
        if version >= SpecVersion::V1_1_0 {
            host["mtu"] = json!(self.mtu);
            pod["mtu"] = json!(self.mtu);
        }
        let mut ip = json!({ "address": format!("{}/32", self.address), "gateway": self.gateway, "interface": 1 });
        if version < SpecVersion::V1_0_0 {
            ip["version"] = json!("4");
        }
        let mut result = json!({
            "cniVersion": version.as_str(),
            "interfaces": [host, pod],
            "ips": [ip],
            "routes": [{ "dst": "0.0.0.0/0", "gw": self.gateway }],
        });
        if let Some(dns) = &self.dns {
            result["dns"] = dns.clone();
        }
        result.to_string()
    }
}

/// The answer to VERSION.
#[must_use]
pub fn versions(asked: Option<SpecVersion>) -> String {
    let answer: BTreeMap<&str, Value> = BTreeMap::from([
        ("cniVersion", json!(asked.unwrap_or(SpecVersion::NEWEST).as_str())),
        ("supportedVersions", json!(SpecVersion::ALL.map(SpecVersion::as_str))),
    ]);
    json!(answer).to_string()
}

#[cfg(test)]
mod tests;
