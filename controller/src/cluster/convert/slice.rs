//! discovery.k8s.io/v1 EndpointSlice.

use std::{collections::BTreeSet, net::IpAddr, time::SystemTime};

use k8s_openapi::{api::discovery::v1 as discovery, jiff::Timestamp};

use super::{Names, Refusal, is_ours, syntax};
use crate::model::{Endpoint, EndpointPort, EndpointSlice, Hints, Name};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// When the change of a pod or Service happened that the slice's writer followed last.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// As the API server allows (pkg/apis/discovery/validation).
const MAX_ENDPOINTS: usize = 1000;
const MAX_PORTS: usize = 20_000;
const MAX_ADDRESSES: usize = 100;
const MAX_HINTS: usize = 8;

/// `None` if the slice is no Service's that is served here, or of names instead of addresses.
pub(super) fn convert(slice: &discovery::EndpointSlice, names: &mut Names) -> Result<Option<(Name, EndpointSlice)>, Refusal> {
    let is_family: fn(&IpAddr) -> bool = match slice.address_type.as_str() {
        "IPv4" => IpAddr::is_ipv4,
        "IPv6" => IpAddr::is_ipv6,
        "FQDN" => return Ok(None),
        other => {
            return Err(Refusal::new("addressType", format!("{} is no type; want IPv4, IPv6 or FQDN", syntax::quote(other))));
        }
    };
    let given_ports = slice.ports.as_deref().unwrap_or_default();
    let given_endpoints = slice.endpoints.as_deref().unwrap_or_default();
    for (field, count, max) in [("endpoints", given_endpoints.len(), MAX_ENDPOINTS), ("ports", given_ports.len(), MAX_PORTS)] {
        if count > max {
            return Err(Refusal::new(
                field,
                format!("has {count} entries, at most {max} are allowed; split it into several slices"),
            ));
        }
    }
    let ports = ports(given_ports, names)?;
    let endpoints: Box<[Endpoint]> = given_endpoints
        .iter()
        .enumerate()
        .map(|(i, it)| {
            endpoint(it, is_family, &slice.address_type, names).map_err(|refusal| refusal.within(&format!("endpoints[{i}]")))
        })
        .collect::<Result<_, _>>()?;
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)).filter(|name| !name.is_empty());
    let Some(service) = service.filter(|_| is_ours(&slice.metadata)) else { return Ok(None) };
    syntax::label(service).map_err(|message| Refusal::new(format!("metadata.labels[{SERVICE_NAME}]"), message))?;
    Ok(Some((names.intern(service), EndpointSlice { ports, endpoints })))
}

/// It is told for measuring alone: one that cannot be read is none.
pub(super) fn triggered(slice: &discovery::EndpointSlice) -> Option<SystemTime> {
    let text = slice.metadata.annotations.as_ref()?.get(TRIGGER_TIME)?;
    text.parse::<Timestamp>().ok().map(SystemTime::from)
}

fn ports(given: &[discovery::EndpointPort], names: &mut Names) -> Result<Box<[EndpointPort]>, Refusal> {
    let mut taken_names = BTreeSet::new();
    let mut ports = Vec::with_capacity(given.len());
    for (i, port) in given.iter().enumerate() {
        let refuse = |field: &str, message: String| Refusal::new(format!("ports[{i}].{field}"), message);
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            syntax::label(name).map_err(|message| refuse("name", message))?;
        }
        if !taken_names.insert(name) {
            return Err(refuse("name", format!("{name:?} names another port of the slice already; give it one of its own")));
        }
        let protocol = syntax::protocol(port.protocol.as_deref()).map_err(|message| refuse("protocol", message))?;
        // A port without a number stands for all ports, which no Service asks for.
        let Some(number) = port.port else { continue };
        let number = syntax::port(number).map_err(|message| refuse("port", message))?;
        ports.push(EndpointPort { name: names.intern(name), port: number, protocol });
    }
    Ok(ports.into())
}

fn endpoint(
    endpoint: &discovery::Endpoint,
    is_family: fn(&IpAddr) -> bool,
    family: &str,
    names: &mut Names,
) -> Result<Endpoint, Refusal> {
    let mut addresses = Vec::with_capacity(1);
    for (i, address) in endpoint.addresses.iter().enumerate() {
        let refuse = |message: String| Refusal::new(format!("addresses[{i}]"), message);
        let address = syntax::unicast(address).map_err(refuse)?;
        if !is_family(&address) {
            return Err(refuse(format!(
                "{address} is not of the slice's addressType {family}; put it into a slice of its own family"
            )));
        }
        addresses.push(address);
    }
    if addresses.len() > MAX_ADDRESSES {
        return Err(Refusal::new("addresses", format!("has {} entries, at most {MAX_ADDRESSES} are allowed", addresses.len())));
    }
    let Some(&address) = addresses.first() else {
        return Err(Refusal::new("addresses", "is required; give the endpoint's address, or remove the endpoint"));
    };
    let node = endpoint.node_name.as_deref().filter(|name| !name.is_empty());
    if let Some(node) = node {
        syntax::subdomain(node).map_err(|message| Refusal::new("nodeName", message))?;
    }
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|it| it.ready).unwrap_or(true);
    Ok(Endpoint {
        address,
        ready,
        serving: conditions.and_then(|it| it.serving).unwrap_or(ready),
        terminating: conditions.and_then(|it| it.terminating).unwrap_or(false),
        node: node.map(|node| names.intern(node)),
        hints: hints(endpoint.hints.as_ref(), names)?,
    })
}

fn hints(given: Option<&discovery::EndpointHints>, names: &mut Names) -> Result<Option<Box<Hints>>, Refusal> {
    let Some(given) = given else { return Ok(None) };
    let zones = given.for_zones.iter().flatten().map(|zone| zone.name.as_str()).collect();
    let nodes = given.for_nodes.iter().flatten().map(|node| node.name.as_str()).collect();
    let mut list = |field: &str, values: Vec<&str>, check: fn(&str) -> Result<(), String>| {
        if values.len() > MAX_HINTS {
            let message = format!("has {} entries, at most {MAX_HINTS} are allowed", values.len());
            return Err(Refusal::new(format!("hints.{field}"), message));
        }
        for (i, value) in values.iter().enumerate() {
            check(value).map_err(|message| Refusal::new(format!("hints.{field}[{i}].name"), message))?;
        }
        Ok(values.into_iter().map(|value| names.intern(value)).collect::<Box<[Name]>>())
    };
    let hints =
        Hints { zones: list("forZones", zones, syntax::label_value)?, nodes: list("forNodes", nodes, syntax::subdomain)? };
    Ok((!hints.zones.is_empty() || !hints.nodes.is_empty()).then(|| hints.into()))
}
