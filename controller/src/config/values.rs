//! How the values of the settings are written: each reader says of its key what is wrong, and what would be right.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::Ipv4Net;
use serde::de::DeserializeOwned;
use serde_yaml::Value;

use super::{ConfigError, NodePortAddresses, PortRange};

/// A value of a type that reads itself.
pub(super) fn typed<T: DeserializeOwned>(key: &'static str, value: Value, expected: &str) -> Result<T, ConfigError> {
    let text = shown(&value);
    serde_yaml::from_value(value).map_err(|_| ConfigError::Value { key, problem: format!("is {text}: it {expected}") })
}

/// One of a few words.
pub(super) fn word<T: Copy, const N: usize>(key: &'static str, value: &Value, words: [(&str, T); N]) -> Result<T, ConfigError> {
    let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let choices = words.map(|(word, _)| format!("`{word}`")).join(" or ");
        ConfigError::Value { key, problem: format!("is {}: it must be {choices}", shown(value)) }
    })
}

/// A path from the root.
pub(super) fn absolute(key: &'static str, value: Value) -> Result<PathBuf, ConfigError> {
    let expected = "must be a directory's absolute path, like \"/etc/cni/net.d\"";
    let path: PathBuf = typed(key, value, expected)?;
    if path.is_absolute() {
        return Ok(path);
    }
    Err(ConfigError::Value { key, problem: format!("is {:?}: it {expected}", path.display().to_string()) })
}

/// `masqueradePorts`.
pub(super) fn ports(value: Value) -> Result<PortRange, ConfigError> {
    let key = "masqueradePorts";
    let expected = "must be two ports with a hyphen, like \"10000-29999\"";
    let text: String = typed(key, value, expected)?;
    let range = text
        .split_once('-')
        .and_then(|(first, last)| Some(PortRange { first: first.trim().parse().ok()?, last: last.trim().parse().ok()? }));
    range.ok_or_else(|| ConfigError::Value { key, problem: format!("is {text:?}: it {expected}") })
}

/// `httpListen`.
pub(super) fn listen(value: Value) -> Result<Option<SocketAddr>, ConfigError> {
    let key = "httpListen";
    let expected = "must be an address and a port, like \"127.0.0.1:9466\" or \"[::]:9466\", or \"\" for none";
    let text: String = typed(key, value, expected)?;
    if text.is_empty() {
        return Ok(None);
    }
    let address: Option<SocketAddr> = text.parse().ok();
    address.filter(|address| address.port() != 0).map(Some).ok_or_else(|| {
        let hint = match text.strip_prefix(':') {
            Some(port) if port.parse::<u16>().is_ok() => format!("; for every address of the node write \"0.0.0.0:{port}\""),
            _ => String::new(),
        };
        ConfigError::Value { key, problem: format!("is {text:?}: it {expected}{hint}") }
    })
}

/// `nodePortAddresses`.
pub(super) fn node_port_addresses(value: Value) -> Result<NodePortAddresses, ConfigError> {
    let key = "nodePortAddresses";
    if value.as_str() == Some("primary") {
        return Ok(NodePortAddresses::Primary);
    }
    if !value.is_sequence() {
        let problem = format!("is {}: it must be `primary` or a list of prefixes, like [\"192.0.2.0/24\"]", shown(&value));
        return Err(ConfigError::Value { key, problem });
    }
    let ranges = cidrs(key, value)?;
    if ranges.is_empty() {
        let problem = "is an empty list: name at least one prefix, or `primary`".to_owned();
        return Err(ConfigError::Value { key, problem });
    }
    if let Some(range) = ranges.iter().find(|range| range.prefix_len() > 0 && range.network().is_loopback()) {
        let problem = format!("has {range}: there are no node ports at addresses of the loopback");
        return Err(ConfigError::Value { key, problem });
    }
    Ok(NodePortAddresses::Within(ranges))
}

/// A list of prefixes.
pub(super) fn cidrs(key: &'static str, value: Value) -> Result<Vec<Ipv4Net>, ConfigError> {
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
