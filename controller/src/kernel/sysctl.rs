//! Kernel settings of this network namespace that the dataplane depends on, each with its reason.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::LazyLock,
};

/// Where a container has the node's settings: its own /proc/sys is read-only, and runtimes mount nothing over that.
const MOUNTED: &str = "/host/proc/sys/net";
const OWN: &str = "/proc/sys/net";

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

/// `ip_forward` sets it on every interface, but others (systemd-networkd's `IPForward=no`) set it per interface.
const FORWARDING_REASON: &str =
    "the host's stack forwards what the fast path leaves to it, by the interface that it came in by";

/// Nothing of ours speaks IPv6 yet, so that the host must not start to on our devices.
fn ipv6_off(interface: &str) -> Sysctl {
    Sysctl {
        key: format!("ipv6/conf/{interface}/disable_ipv6"),
        value: "1",
        reason: "the host's neighbour discovery on our devices would be dropped and counted as a fault",
        optional: true,
    }
}

/// What the node needs of what is not ours: the host as a whole, and the underlay.
#[must_use]
pub fn of_host(underlay: &str) -> Vec<Sysctl> {
    vec![
        required("ipv4/ip_forward".to_owned(), "1", "the host's stack forwards what the fast path leaves to it"),
        required(format!("ipv4/conf/{underlay}/forwarding"), "1", FORWARDING_REASON),
        required(format!("ipv4/conf/{underlay}/rp_filter"), "2", RP_FILTER_REASON),
    ]
}

/// Without it they are martians (`fib_validate_source` in net/ipv4/fib_frontend.c).
fn accept_local(interface: &str) -> Sysctl {
    required(
        format!("ipv4/conf/{interface}/accept_local"),
        "1",
        "a process of the node that asks one of the node's own node ports gets the answer from that address",
    )
}

/// What the tunnel device needs, which goes with it.
#[must_use]
pub fn of_tunnel(tunnel: &str) -> Vec<Sysctl> {
    vec![
        required(format!("ipv4/conf/{tunnel}/forwarding"), "1", FORWARDING_REASON),
        required(format!("ipv4/conf/{tunnel}/rp_filter"), "2", RP_FILTER_REASON),
        accept_local(tunnel),
        ipv6_off(tunnel),
    ]
}

/// What the host side of each pod needs.
#[must_use]
pub fn of_pod(interface: &str) -> Vec<Sysctl> {
    vec![
        required(format!("ipv4/conf/{interface}/forwarding"), "1", FORWARDING_REASON),
        required(format!("ipv4/conf/{interface}/rp_filter"), "2", RP_FILTER_REASON),
        accept_local(interface),
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

/// The value that a setting has now; `None` if the kernel has none of that name.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn present(key: &str) -> io::Result<Option<String>> {
    match read(&path(key)) {
        Ok(bytes) => {
            let text = str::from_utf8(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            Ok(Some(text.trim().to_owned()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Bytes that a setting is read with, and how many for one that fills these. The longest is a set of ports
/// (`proc_do_large_bitmap` in kernel/sysctl.c): 65,536 of them with at most six bytes for each.
const LENGTHS: [usize; 2] = [4096, 6 * 65_536];

/// A setting's file by a single `read()`: the handlers in kernel/sysctl.c have nothing to say at another position than the first,
/// so whoever reads piece by piece, as `fs::read_to_string` does, takes the first piece for the whole.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for length in LENGTHS {
        bytes.resize(length, 0);
        let count = fs::File::open(path)?.read(&mut bytes)?;
        bytes.truncate(count);
        if count < length {
            break;
        }
    }
    Ok(bytes)
}

/// Writes a value.
///
/// # Errors
/// There is no such setting, it may not be written, or the value is refused.
pub fn write(key: &str, value: &str) -> io::Result<()> {
    // Without the end of the line an empty set would be no write at all.
    fs::write(path(key), format!("{value}\n"))
}

/// The file of a setting. Both directories are of this process' network namespace, whoever mounted them.
#[must_use]
pub fn path(key: &str) -> PathBuf {
    static ROOT: LazyLock<&Path> =
        LazyLock::new(|| [MOUNTED, OWN].map(Path::new).into_iter().find(|dir| dir.is_dir()).unwrap_or(Path::new(OWN)));
    ROOT.join(key)
}

/// Those that are not as they should be, with the value that each has now.
///
/// # Errors
/// The first that cannot be read, or that this kernel lacks.
pub fn differing(settings: &[Sysctl]) -> Result<Vec<(&Sysctl, String)>, SysctlError> {
    let mut differing = Vec::new();
    for setting in settings {
        match present(&setting.key) {
            Ok(Some(value)) if value == setting.value => {}
            Ok(Some(value)) => differing.push((setting, value)),
            Ok(None) if setting.optional => {}
            Ok(None) => return Err(failed(setting)(io::ErrorKind::NotFound.into())),
            Err(error) => return Err(failed(setting)(error)),
        }
    }
    Ok(differing)
}

/// Writes settings that differ; those in force already are left alone, so that a read-only /proc/sys with the right values will do.
///
/// # Errors
/// The first that could not be written, with the reason for it.
pub fn apply(settings: &[Sysctl]) -> Result<(), SysctlError> {
    for (setting, _) in differing(settings)? {
        set(setting)?;
    }
    Ok(())
}

/// Writes one setting.
///
/// # Errors
/// It could not be written, with the reason for it.
pub fn set(setting: &Sysctl) -> Result<(), SysctlError> {
    write(&setting.key, setting.value).map_err(failed(setting))
}

fn failed(setting: &Sysctl) -> impl FnOnce(io::Error) -> SysctlError {
    let (key, value, reason) = (setting.key.clone(), setting.value, setting.reason);
    move |source| SysctlError { key, value, reason, source }
}

/// What another network's bridge needs while pods of its are ours.
#[must_use]
pub fn of_adopted_bridge(bridge: &str) -> Vec<Sysctl> {
    vec![
        required(format!("ipv4/conf/{bridge}/rp_filter"), "2", RP_FILTER_REASON),
        accept_local(bridge),
        required(
            format!("ipv4/conf/{bridge}/proxy_arp"),
            "1",
            "pods on the bridge ask it for the addresses of pods that are not on it",
        ),
        required(
            format!("ipv4/neigh/{bridge}/proxy_delay"),
            "0",
            "the kernel otherwise waits up to 0.8 s before it answers for a pod that is not on the bridge",
        ),
    ]
}

/// What another network's tunnel device needs while packets still come in by it and go out by ours.
#[must_use]
pub fn of_idle_tunnel(tunnel: &str) -> Vec<Sysctl> {
    vec![required(format!("ipv4/conf/{tunnel}/rp_filter"), "2", RP_FILTER_REASON)]
}

/// The ports that the kernel gives to sockets that ask for none: first and last.
#[must_use]
pub fn local_port_range() -> Option<(u16, u16)> {
    let text = present("ipv4/ip_local_port_range").ok()??;
    let mut ports = text.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_with_a_dot_is_one_directory() {
        for settings in [of_pod("eth0.100"), of_tunnel("eth0.100"), of_host("eth0.100").split_off(1)] {
            assert!(settings.iter().all(|setting| setting.key.contains("/eth0.100/")), "{settings:?}");
        }
    }

    #[test]
    fn a_missing_setting_is_refused_with_its_reason_unless_it_is_optional() {
        let missing = |optional| Sysctl { key: "ipv4/none_such".to_owned(), value: "1", reason: "of a test", optional };
        assert!(apply(&[missing(true)]).is_ok());
        let error = apply(&[missing(false)]).unwrap_err().to_string();
        assert!(error.contains("net/ipv4/none_such to 1") && error.contains("of a test"), "{error}");
        assert_eq!(present("ipv4/none_such").unwrap(), None);
    }

    #[test]
    fn what_differs_is_told_with_its_present_value() {
        let key = "ipv4/ip_default_ttl".to_owned();
        let value = present(&key).unwrap().unwrap();
        let setting = Sysctl { key, value: "never", reason: "of a test", optional: false };
        assert_eq!(differing(std::slice::from_ref(&setting)).unwrap(), [(&setting, value)]);
    }
}
