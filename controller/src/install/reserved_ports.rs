//! Node ports are given to no socket of the node that asks for any port: `net.ipv4.ip_local_reserved_ports`.
//!
//! A socket that got one would lose what is sent to it to a Service. One that asks for such a port by its number gets it all the same, and
//! what is sent to it from elsewhere is the Service's, as beside kube-proxy.

use std::{collections::BTreeSet, fmt::Write as _, io};

use super::Record;
use crate::{disk::DiskError, kernel::sysctl};

const KEY: &str = "ipv4/ip_local_reserved_ports";

/// Why node ports are not reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReservedPortsError {
    /// The kernel, or who mounted its settings.
    #[error(
        "a socket of this node may be given a node port, for net/{KEY} cannot be set; is /proc/sys writable for the agent?"
    )]
    Sysctl(#[from] io::Error),
    /// The kernel's list is none.
    #[error("a socket of this node may be given a node port: {0:?} in net/{KEY} is not understood")]
    Unreadable(String),
    /// The change could not be written down, so it was not made.
    #[error("node ports are not reserved, for `shunt cleanup` would not know to take that back")]
    Record(#[from] DiskError),
}

/// Keeps node ports reserved, beside the ports that others reserve.
#[derive(Debug)]
pub struct ReservedPorts {
    record: Record,
}

impl ReservedPorts {
    /// For the agent that has this record.
    #[must_use]
    pub const fn new(record: Record) -> Self {
        Self { record }
    }

    /// Reserves these ports and no others of ours; what others reserve stays.
    ///
    /// # Errors
    /// The kernel's list cannot be read or written, or the change not be written down.
    pub fn keep(&self, wanted: &BTreeSet<u16>) -> Result<(), ReservedPortsError> {
        let Some(text) = sysctl::present(KEY)? else { return Err(io::Error::from(io::ErrorKind::NotFound).into()) };
        let present = parse(&text)?;
        let ours = match self.record.setting(KEY) {
            Some((before, set)) => &parse(&set)? - &parse(&before)?,
            None => BTreeSet::new(),
        };
        let others = &present - &ours;
        let target = &others | wanted;
        if target != present {
            let target = list(&target);
            self.record.replace_setting(KEY, &list(&others), &target)?;
            sysctl::write(KEY, &target)?;
            tracing::debug!("net/{KEY} is set to {target:?}");
        }
        Ok(())
    }
}

/// Reads the kernel's way of writing a set of ports: `1,3-5` (Documentation/networking/ip-sysctl.rst).
fn parse(text: &str) -> Result<BTreeSet<u16>, ReservedPortsError> {
    let unreadable = || ReservedPortsError::Unreadable(text.to_owned());
    let mut ports = BTreeSet::new();
    for range in text.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| text.parse::<u16>().map_err(|_| unreadable());
        ports.extend(port(first)?..=port(last)?);
    }
    Ok(ports)
}

/// Writes a set of ports as the kernel does.
fn list(ports: &BTreeSet<u16>) -> String {
    let mut text = String::new();
    let mut ports = ports.iter().copied().peekable();
    while let Some(first) = ports.next() {
        let mut last = first;
        while let Some(next) = ports.next_if(|&next| last.checked_add(1) == Some(next)) {
            last = next;
        }
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String does not fail.
        let _ = if first == last { write!(text, "{comma}{first}") } else { write!(text, "{comma}{first}-{last}") };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_as_the_kernel_writes_them_and_read_back() {
        for (ports, text) in [
            (vec![], ""),
            (vec![0], "0"),
            (vec![30_000, 30_001], "30000-30001"),
            (vec![1, 3, 4, 5, 65_534, 65_535], "1,3-5,65534-65535"),
        ] {
            let ports: BTreeSet<u16> = ports.into_iter().collect();
            assert_eq!(list(&ports), text);
            assert_eq!(parse(&format!("{text}\n")).unwrap(), ports);
        }
    }

    #[test]
    fn what_is_no_set_is_named() {
        for text in ["x", "1-", "70000", "5,-"] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("ip_local_reserved_ports"), "{error}");
        }
    }
}
