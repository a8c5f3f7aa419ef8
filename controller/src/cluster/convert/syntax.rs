//! Values as the API writes them: names, addresses, ports, protocols. An error is the message; the caller knows the field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::model::Protocol;

/// A DNS label (RFC 1123): at most 63 of a-z, 0-9 and '-', not '-' first or last.
pub(super) fn label(text: &str) -> Result<(), String> {
    if is_label(text) {
        Ok(())
    } else {
        Err(format!(
            "{} is not a name: want 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit",
            quote(text)
        ))
    }
}

/// Labels joined by dots, at most 253 characters.
pub(super) fn subdomain(text: &str) -> Result<(), String> {
    if text.len() <= 253 && text.split('.').all(is_label) {
        Ok(())
    } else {
        Err(format!("{} is not a name: want labels of a-z, 0-9 and '-' with dots between, at most 253 characters", quote(text)))
    }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63 && ends.iter().all(|end| end.is_some_and(inner)) && text.bytes().all(|byte| inner(byte) || byte == b'-')
}

/// The value of a label, as a zone's name is: at most 63 of letters, digits, '-', '_' and '.', a letter or digit first and last.
pub(super) fn label_value(text: &str) -> Result<(), String> {
    let ends = [text.bytes().next(), text.bytes().last()];
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if text.len() <= 63
        && text.bytes().all(is_known)
        && ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
    {
        Ok(())
    } else {
        Err(format!("{} is no value of a label: want 1 to 63 letters, digits, '-', '_' and '.'", quote(text)))
    }
}

/// An IANA service name (RFC 6335, section 5.1), which names a port of a container.
pub(super) fn port_name(text: &str) -> Result<(), String> {
    let is_known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=15).contains(&text.len())
        && text.bytes().all(is_known)
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.contains("--")
    {
        Ok(())
    } else {
        Err(format!(
            "{} is not the name of a port: want 1 to 15 of a-z, 0-9 and single '-', with a letter among them",
            quote(text)
        ))
    }
}

pub(super) fn port(number: i32) -> Result<u16, String> {
    u16::try_from(number).ok().filter(|&port| port > 0).ok_or_else(|| format!("{number} is no port; want 1 to 65535"))
}

pub(super) fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{} is no protocol; want TCP, UDP or SCTP", quote(other))),
    }
}

pub(super) fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{} is no IP address; want one such as 10.96.0.10 or fd00::10", quote(text)))
}

/// An address that a Service or an endpoint can have: not one that only means something on one link, or in one host, or for many.
pub(super) fn unicast(text: &str) -> Result<IpAddr, String> {
    let address = ip(text)?;
    let why_not = match address {
        IpAddr::V4(ip) if ip.is_unspecified() || ip.octets()[0] == 0 => Some("an unspecified"),
        IpAddr::V4(ip) if ip.is_loopback() => Some("a loopback"),
        IpAddr::V4(ip) if ip.is_link_local() => Some("a link-local"),
        IpAddr::V4(ip) if ip.is_multicast() || ip == Ipv4Addr::BROADCAST => Some("a multicast or broadcast"),
        IpAddr::V6(ip) if ip == Ipv6Addr::UNSPECIFIED => Some("an unspecified"),
        IpAddr::V6(ip) if ip.is_loopback() => Some("a loopback"),
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some("a link-local"),
        IpAddr::V6(ip) if ip.is_multicast() => Some("a multicast"),
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => Some("an IPv4-mapped"),
        _ => None,
    };
    why_not.map_or(Ok(address), |why_not| {
        Err(format!("{address} is {why_not} address, which cannot be used here; want a unicast one"))
    })
}

/// A prefix; bits beyond its length are dropped, as the API server does.
pub(super) fn prefix(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| format!("{} is no CIDR; want one such as 10.244.1.0/24", quote(text)))
}

/// For messages: quoted, control characters escaped, cut where it gets long.
pub(super) fn quote(text: &str) -> String {
    const SHOWN: usize = 80;
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{:?}...", &text[..cut]),
        None => format!("{text:?}"),
    }
}
