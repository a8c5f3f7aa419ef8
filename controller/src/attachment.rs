//! One pod's attachment to the network: its key, and the names and MACs that follow from it.
//!
//! The plugin, the agent and the address book all name an attachment this way.

use std::{fmt, net::Ipv4Addr, num::NonZeroU16, path::PathBuf};

use serde::{Deserialize, Serialize};
use shunt_common::net::Mac;

use crate::model::{HostPort, ObjectName, Protocol};

/// The MAC of every host-side veth: what a pod has for its gateway. Set at creation, so that nobody rewrites it.
pub const HOST_MAC: Mac = Mac { bytes: [0xee; 6] };

/// What identifies an attachment: the runtime's container id and the interface's name in the pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// What Kubernetes' runtimes say of a pod in `CNI_ARGS`; empty where they don't.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodIdentity {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`.
    pub uid: String,
}

impl PodIdentity {
    /// Whether both are known to be one pod: what runtimes say when they make a pod's sandbox anew.
    #[must_use]
    pub fn is_same_pod(&self, other: &Self) -> bool {
        if self.uid.is_empty() || other.uid.is_empty() {
            return !self.name.is_empty() && (&self.namespace, &self.name) == (&other.namespace, &other.name);
        }
        self.uid == other.uid
    }
}

/// A port of the node that leads to a pod: an item of CNI's `portMappings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The port at the node.
    pub host_port: NonZeroU16,
    /// Protocol.
    pub protocol: Protocol,
    /// The node's address that it is limited to; any of the node's if unset.
    #[serde(default, rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<Ipv4Addr>,
    /// The port at the pod.
    pub container_port: NonZeroU16,
}

impl PortMapping {
    /// Whether there is a packet that both are meant for.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        (self.host_port, self.protocol) == (other.host_port, other.protocol)
            && self.host_ip.zip(other.host_ip).is_none_or(|(one, another)| one == another)
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.host_ip {
            write!(f, "{address}:")?;
        }
        write!(f, "{}->{}/{}", self.host_port, self.container_port, self.protocol)
    }
}

/// An attachment with all that was given to it: a record of the address book.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// The attachment.
    pub attachment: AttachmentKey,
    /// The network's name.
    pub network: String,
    /// Whose it is.
    pub pod: PodIdentity,
    /// Its address.
    pub address: Ipv4Addr,
    /// MAC of the pod's end.
    #[serde(with = "mac_text")]
    pub mac: Mac,
    /// The host-side end.
    pub host_interface: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
}

impl Pod {
    /// Namespace and name if the runtime told them, else the attachment.
    #[must_use]
    pub fn title(&self) -> String {
        if self.pod.name.is_empty() { self.attachment.to_string() } else { format!("{}/{}", self.pod.namespace, self.pod.name) }
    }

    /// Whether ports of the node lead to it.
    #[must_use]
    pub fn has_host_ports(&self) -> bool {
        !self.port_mappings.is_empty()
    }

    /// What the node's ports that lead to it are for the rest of the dataplane.
    pub fn host_ports(&self) -> impl Iterator<Item = HostPort> {
        self.port_mappings.iter().map(|mapping| HostPort {
            host_ip: mapping.host_ip,
            host_port: mapping.host_port.get(),
            protocol: mapping.protocol,
            pod: match self.pod.name.as_str() {
                "" => ObjectName::new("", self.attachment.to_string()),
                name => ObjectName::new(self.pod.namespace.as_str(), name),
            },
            pod_ip: self.address,
            pod_port: mapping.container_port.get(),
        })
    }

    /// Whether another network's plugin made its interfaces, and it was taken over while it ran.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.host_interface != self.attachment.host_interface()
    }
}

/// Why a text cannot be part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Against the CNI specification's rule for container ids.
    #[error(
        "container id {0:?} is not valid: it must start with a letter or digit, followed by letters, digits, '_', '.' or '-', \
         at most {MAX_CONTAINER_ID} in all"
    )]
    ContainerId(String),
    /// Against Linux' rule for interface names.
    #[error(
        "interface name {0:?} is not valid: it must have 1 to 15 bytes, none of them '/', ':', a space or a control character, \
         and be neither \".\" nor \"..\""
    )]
    Ifname(String),
}

/// Longer ids are refused; runtimes use 64 hexadecimal digits.
const MAX_CONTAINER_ID: usize = 256;
/// IFNAMSIZ without its NUL (include/uapi/linux/if.h).
const MAX_IFNAME: usize = 15;

impl AttachmentKey {
    /// Checks both parts against the CNI specification, "Parameters".
    ///
    /// # Errors
    /// The part that is not valid.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Result<Self, KeyError> {
        let key = Self { container_id: container_id.into(), ifname: ifname.into() };
        key.validate()?;
        Ok(key)
    }

    /// The checks of [`AttachmentKey::new`], for a key that came over a socket or from a file.
    ///
    /// # Errors
    /// The part that is not valid.
    pub fn validate(&self) -> Result<(), KeyError> {
        let id = self.container_id.as_bytes();
        let id_is_valid = id.first().is_some_and(u8::is_ascii_alphanumeric)
            && id.len() <= MAX_CONTAINER_ID
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if !id_is_valid {
            return Err(KeyError::ContainerId(self.container_id.clone()));
        }
        let name = self.ifname.as_str();
        let name_is_valid = (1..=MAX_IFNAME).contains(&name.len())
            && name != "."
            && name != ".."
            && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
        if name_is_valid { Ok(()) } else { Err(KeyError::Ifname(self.ifname.clone())) }
    }

    /// The host-side veth: `shunt` and ten hexadecimal digits of a hash (FNV-1a, 64 bits, its upper 40) of both parts.
    #[must_use]
    pub fn host_interface(&self) -> String {
        let bytes = self.container_id.bytes().chain([b'/']).chain(self.ifname.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("shunt{:010x}", hash >> 24)
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.container_id, self.ifname)
    }
}

/// The MAC of a pod's interface: locally administered `72:70`, then the four bytes of its address.
#[must_use]
pub const fn pod_mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac { bytes: [0x72, 0x70, a, b, c, d] }
}

/// A MAC as text in JSON: `#[serde(with = "mac_text")]`.
pub mod mac_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use shunt_common::net::Mac;

    /// As six colon-separated hexadecimal bytes.
    ///
    /// # Errors
    /// The serializer's own.
    pub fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(mac)
    }

    /// The reverse of [`serialize`].
    ///
    /// # Errors
    /// The text is no MAC.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_interface_names_fit_and_stay_what_they_are() {
        let key = AttachmentKey::new("0123456789abcdef", "eth0").unwrap();
        assert_eq!(key.host_interface().len(), 15);
        assert_eq!(key.host_interface(), key.clone().host_interface());
        let other = AttachmentKey::new("0123456789abcdef", "eth1").unwrap();
        assert_ne!(key.host_interface(), other.host_interface());
    }

    #[test]
    fn keys_are_held_to_the_specification() {
        for id in ["", "-a", "a b", "a/b", "é", &"a".repeat(257)] {
            assert_eq!(AttachmentKey::new(id, "eth0"), Err(KeyError::ContainerId(id.to_owned())));
        }
        for name in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\0b", "0123456789abcdef"] {
            assert_eq!(AttachmentKey::new("a", name), Err(KeyError::Ifname(name.to_owned())));
        }
        for (id, name) in [("a", "e"), ("A_.-9", "0123456789abcde"), ("9", "...")] {
            AttachmentKey::new(id, name).unwrap();
        }
    }
}
