//! Kernel settings of this network namespace that the dataplane depends on, each with its reason.

use std::{fs, io, path::PathBuf};

/// A setting below /proc/sys/net, its value, and what breaks without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Path below /proc/sys/net.
    pub key: String,
    /// What it has to be.
    pub value: &'static str,
    /// Why.
    pub reason: &'static str,
    /// Whether a kernel without it is fine.
    pub optional: bool,
}

/// A setting that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot set net/{key} to {value}, which is needed because {reason}; is /proc/sys writable for the agent?")]
pub struct SysctlError {
    key: String,
    value: &'static str,
    reason: &'static str,
    #[source]
    source: io::Error,
}

fn required(key: String, value: &'static str, reason: &'static str) -> Sysctl {
    Sysctl { key, value, reason, optional: false }
}

/// Loose instead of strict, whatever `conf/all` says: the kernel takes the larger of the two. Off would depend on `conf/all`.
const RP_FILTER_REASON: &str =
    "packets come in by the fast path and go out by the slow one, which a strict reverse path filter drops";

/// Nothing of ours speaks IPv6 yet, so that the host must not start to on our devices.
fn ipv6_off(interface: &str) -> Sysctl {
    Sysctl {
        key: format!("ipv6/conf/{interface}/disable_ipv6"),
        value: "1",
        reason: "the host's neighbour discovery on our devices would be dropped and counted as a fault",
        optional: true,
    }
}

/// What the node needs once.
#[must_use]
pub fn of_node(underlay: &str, tunnel: &str) -> Vec<Sysctl> {
    vec![
        required("ipv4/ip_forward".to_owned(), "1", "the host's stack forwards what the fast path leaves to it"),
        required(format!("ipv4/conf/{tunnel}/rp_filter"), "2", RP_FILTER_REASON),
        required(format!("ipv4/conf/{underlay}/rp_filter"), "2", RP_FILTER_REASON),
        ipv6_off(tunnel),
    ]
}

/// What the host side of each pod needs.
#[must_use]
pub fn of_pod(interface: &str) -> Vec<Sysctl> {
    vec![
        required(format!("ipv4/conf/{interface}/rp_filter"), "2", RP_FILTER_REASON),
        required(
            format!("ipv4/conf/{interface}/proxy_arp"),
            "1",
            "a pod whose neighbour table was flushed asks for its gateway 169.254.1.1, which is no address of the host",
        ),
        required(
            format!("ipv4/neigh/{interface}/proxy_delay"),
            "0",
            "the kernel otherwise waits up to 0.8 s before it answers such a pod",
        ),
        ipv6_off(interface),
    ]
}

/// Writes settings that differ; those in force already are left alone, so that a read-only /proc/sys with the right values will do.
///
/// # Errors
/// The first that could not be written, with the reason for it.
pub fn apply(settings: &[Sysctl]) -> Result<(), SysctlError> {
    for setting in settings {
        let path = PathBuf::from("/proc/sys/net").join(&setting.key);
        let result = match fs::read_to_string(&path) {
            Ok(present) if present.trim() == setting.value => continue,
            Err(error) if error.kind() == io::ErrorKind::NotFound && setting.optional => continue,
            Err(error) => Err(error),
            Ok(_) => fs::write(&path, setting.value),
        };
        result.map_err(|source| SysctlError {
            key: setting.key.clone(),
            value: setting.value,
            reason: setting.reason,
            source,
        })?;
    }
    Ok(())
}

/// The ports that the kernel gives to sockets that ask for none: first and last.
#[must_use]
pub fn local_port_range() -> Option<(u16, u16)> {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = text.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_with_a_dot_is_one_directory() {
        assert!(of_pod("eth0.100").iter().all(|setting| setting.key.contains("/eth0.100/")));
    }

    #[test]
    fn a_missing_setting_is_refused_with_its_reason_unless_it_is_optional() {
        let missing = |optional| Sysctl { key: "ipv4/none_such".to_owned(), value: "1", reason: "of a test", optional };
        assert!(apply(&[missing(true)]).is_ok());
        let error = apply(&[missing(false)]).unwrap_err().to_string();
        assert!(error.contains("net/ipv4/none_such to 1") && error.contains("of a test"), "{error}");
    }
}
