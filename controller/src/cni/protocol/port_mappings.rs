//! The capability `portMappings`: which ports of the node lead to the pod (the specification's CONVENTIONS, "Dynamic Plugin specific
//! Fields"). What Kubernetes calls `hostPort` and `hostIP`.

use std::{
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU16,
};

use super::{CniError, Fields, invalid};
use crate::{attachment::PortMapping, model::Protocol};

const PATH: &str = "runtimeConfig.portMappings[].";

/// The mappings of a configuration, in ascending order and none twice. An item without a host port asks for none; one at an IPv6 address
/// is for a pod that has such an address, which ours have not.
pub(super) fn parse(config: &Fields<'_>) -> Result<Vec<PortMapping>, CniError> {
    let Some(runtime) = config.object("runtimeConfig")? else { return Ok(Vec::new()) };
    let mut mappings = Vec::new();
    for item in runtime.objects("portMappings", PATH)? {
        mappings.extend(mapping(&item)?);
    }
    mappings.sort();
    mappings.dedup();
    for (i, mapping) in mappings.iter().enumerate() {
        if let Some(other) = mappings[..i].iter().find(|other| other.overlaps(mapping)) {
            return Err(invalid(format!(
                "`runtimeConfig.portMappings` says {other} and {mapping}: one of the two can be, give the other another hostPort or hostIP"
            )));
        }
    }
    Ok(mappings)
}

fn mapping(item: &Fields<'_>) -> Result<Option<PortMapping>, CniError> {
    let (host_port, container_port) = (port(item, "hostPort")?, port(item, "containerPort")?);
    let (protocol, host_ip) = (protocol(item)?, host_ip(item)?);
    let Some(host_port) = host_port else { return Ok(None) };
    let host_ip = match host_ip {
        None => None,
        Some(IpAddr::V4(address)) => Some(address),
        Some(IpAddr::V6(_)) => return Ok(None),
    };
    let Some(container_port) = container_port else {
        return Err(invalid(format!(
            "`{PATH}containerPort` is missing beside the hostPort {host_port}: it must be 1 to 65535"
        )));
    };
    Ok(Some(PortMapping { host_port, protocol, host_ip, container_port }))
}

/// `None` if it is missing or 0.
fn port(item: &Fields<'_>, key: &str) -> Result<Option<NonZeroU16>, CniError> {
    let Some(number) = item.number(key)? else { return Ok(None) };
    let port = u16::try_from(number).map_err(|_| invalid(format!("`{PATH}{key}` is {number}: it must be 1 to 65535")))?;
    Ok(NonZeroU16::new(port))
}

/// TCP if it is missing, as in a Pod's `ports`.
fn protocol(item: &Fields<'_>) -> Result<Protocol, CniError> {
    let text = item.text("protocol")?.unwrap_or("tcp");
    let known = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
    let found = known.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
    let (_, protocol) = found.ok_or_else(|| invalid(format!("`{PATH}protocol` is {text:?}: it must be tcp, udp or sctp")))?;
    Ok(*protocol)
}

/// `None` stands for any of the node's.
fn host_ip(item: &Fields<'_>) -> Result<Option<IpAddr>, CniError> {
    let text = item.text("hostIP")?.filter(|text| !text.is_empty());
    let parsed = text.map(|text| {
        text.parse()
            .map_err(|_| invalid(format!("`{PATH}hostIP` is {text:?}: it must be an address of this node, or be left out")))
    });
    Ok(parsed.transpose()?.filter(|address| *address != Ipv4Addr::UNSPECIFIED))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{NetworkConfig, code};

    fn config(mappings: &Value) -> Vec<u8> {
        let config = json!({
            "cniVersion": "1.1.0", "name": "n", "type": "shunt", "runtimeConfig": { "portMappings": mappings },
        });
        config.to_string().into_bytes()
    }

    fn shown(mappings: &Value) -> Vec<String> {
        let parsed = NetworkConfig::parse(&config(mappings)).unwrap();
        parsed.port_mappings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_runtimes_say_is_understood() {
        let mappings = json!([
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "" },
            { "hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1" },
            { "hostPort": 53, "containerPort": 5353, "protocol": "UDP", "hostIP": "127.0.0.1" },
            { "hostPort": 53, "containerPort": 53, "hostIP": "0.0.0.0" },
            { "hostPort": 36412, "containerPort": 36412, "protocol": "sctp" },
            { "hostPort": 8080, "containerPort": 80 },
            { "hostPort": 8080, "containerPort": 80, "hostIP": "::" },
            { "hostPort": 8080, "containerPort": 81, "hostIP": "2001:db8::1" },
            { "hostPort": 0, "containerPort": 81 },
            { "containerPort": 82, "protocol": "tcp" },
        ]);
        let expected = ["53->53/TCP", "127.0.0.1:53->5353/UDP", "192.0.2.1:53->5353/UDP", "8080->80/TCP", "36412->36412/SCTP"];
        assert_eq!(shown(&mappings), expected);
        for none in [json!([]), json!(null)] {
            assert_eq!(shown(&none), [""; 0]);
        }
    }

    #[test]
    fn what_cannot_be_is_named_with_code_7_and_keeps_no_pod_from_being_removed() {
        for (mappings, expected) in [
            (json!({}), "`runtimeConfig.portMappings` must be a list"),
            (json!([80]), "`runtimeConfig.portMappings` must be a list of objects"),
            (json!([{ "hostPort": -1 }]), "`runtimeConfig.portMappings[].hostPort` must be a whole number from 0, not -1"),
            (json!([{ "hostPort": 65536 }]), "hostPort` is 65536: it must be 1 to 65535"),
            (json!([{ "hostPort": "80" }]), "hostPort` must be a whole number"),
            (json!([{ "hostPort": 80 }]), "containerPort` is missing beside the hostPort 80"),
            (json!([{ "hostPort": 80, "containerPort": 0 }]), "containerPort` is missing beside the hostPort 80"),
            (json!([{ "hostPort": 80, "containerPort": 70_000 }]), "containerPort` is 70000"),
            (json!([{ "hostPort": 80, "containerPort": 80, "protocol": "icmp" }]), "protocol` is \"icmp\""),
            (json!([{ "hostPort": 80, "containerPort": 80, "protocol": 6 }]), "protocol` must be a string"),
            (json!([{ "hostPort": 80, "containerPort": 80, "hostIP": "here" }]), "hostIP` is \"here\""),
            (json!([{ "hostPort": 80, "containerPort": 80, "hostIP": "192.0.2.1/24" }]), "hostIP` is \"192.0.2.1/24\""),
            (
                json!([{ "hostPort": 80, "containerPort": 80 }, { "hostPort": 80, "containerPort": 81, "hostIP": "192.0.2.1" }]),
                "says 80->80/TCP and 192.0.2.1:80->81/TCP",
            ),
        ] {
            let text = config(&mappings);
            let error = NetworkConfig::parse(&text).unwrap_err();
            assert_eq!(error.code, code::CONFIG, "{error}");
            assert!(error.to_string().contains(expected), "{error}, not {expected}");
            assert_eq!(NetworkConfig::parse_for_removal(&text).unwrap().port_mappings, []);
        }
    }
}
