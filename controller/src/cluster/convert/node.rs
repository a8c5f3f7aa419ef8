//! v1 Node.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use shunt_common::net::Mac;

use super::{Names, Refusal, syntax};
use crate::{
    cluster::flannel::{BACKEND_DATA, BACKEND_TYPE, PUBLIC_IP},
    model::{Name, Node, TunnelEnd},
};

const ZONE: &str = "topology.kubernetes.io/zone";

pub(super) fn convert(node: &core::Node, name: &Name, names: &mut Names) -> Result<Node, Refusal> {
    let labels = node.metadata.labels.as_ref();
    let zone = labels.and_then(|labels| labels.get(ZONE)).filter(|zone| !zone.is_empty());
    Ok(Node {
        name: name.clone(),
        addresses: addresses(node)?,
        pod_cidrs: pod_cidrs(node)?,
        tunnel: tunnel_end(node)?,
        zone: zone.map(|zone| names.intern(zone)),
    })
}

fn addresses(node: &core::Node) -> Result<Vec<IpAddr>, Refusal> {
    let given = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut internal = Vec::new();
    let mut external = Vec::new();
    for (i, address) in given.enumerate() {
        let list = match address.type_.as_str() {
            "InternalIP" => &mut internal,
            "ExternalIP" => &mut external,
            _ => continue,
        };
        let address = syntax::unicast(&address.address)
            .map_err(|message| Refusal::new(format!("status.addresses[{i}].address"), message))?;
        list.push(address);
    }
    external.retain(|address| !internal.contains(address));
    internal.append(&mut external);
    let mut seen = BTreeSet::new();
    internal.retain(|address| seen.insert(*address));
    Ok(internal)
}

fn pod_cidrs(node: &core::Node) -> Result<Vec<IpNet>, Refusal> {
    let Some(spec) = &node.spec else { return Ok(Vec::new()) };
    let single = spec.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty());
    let several = spec.pod_cidrs.as_deref().unwrap_or_default();
    if let (Some(single), Some(first)) = (single, several.first())
        && single != first
    {
        let message =
            format!("{} differs from spec.podCIDRs[0], {}; make them equal", syntax::quote(single), syntax::quote(first));
        return Err(Refusal::new("spec.podCIDR", message));
    }
    if several.is_empty() {
        return single.map(|cidr| pod_cidr(cidr, "spec.podCIDR".to_owned())).into_iter().collect();
    }
    let ranges: Vec<IpNet> =
        several.iter().enumerate().map(|(i, cidr)| pod_cidr(cidr, format!("spec.podCIDRs[{i}]"))).collect::<Result<_, _>>()?;
    let of_v4 = ranges.iter().filter(|range| matches!(range, IpNet::V4(_))).count();
    if of_v4 > 1 || ranges.len() - of_v4 > 1 {
        return Err(Refusal::new("spec.podCIDRs", "has more than one range of an address family; leave one of each"));
    }
    Ok(ranges)
}

fn pod_cidr(text: &str, field: String) -> Result<IpNet, Refusal> {
    let refuse = |message: String| Refusal::new(field.clone(), message);
    let range = syntax::prefix(text).map_err(refuse)?;
    if range.prefix_len() == 0 {
        return Err(refuse(format!("{range} is every address there is; want a node's share, such as 10.244.1.0/24")));
    }
    for end in [range.network(), range.broadcast()] {
        let is_of_pods = match end {
            IpAddr::V4(ip) => ip.octets()[0] != 0 && !ip.is_loopback() && !ip.is_link_local() && ip.octets()[0] < 224,
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && !ip.is_unicast_link_local() && !ip.is_multicast(),
        };
        if !is_of_pods {
            return Err(refuse(format!("{range} reaches into addresses that no pod can have; want a unicast range")));
        }
    }
    Ok(range)
}

fn tunnel_end(node: &core::Node) -> Result<TunnelEnd, Refusal> {
    let annotation = |key: &str| {
        let annotations = node.metadata.annotations.as_ref()?;
        annotations.get(key).map(String::as_str).filter(|value| !value.is_empty())
    };
    let refuse = |key: &str, message: String| Refusal::new(format!("metadata.annotations[{key}]"), message);
    if annotation(BACKEND_TYPE).is_some_and(|backend| backend != "vxlan") {
        return Ok(TunnelEnd::default());
    }
    let public_ip =
        match annotation(PUBLIC_IP).map(syntax::unicast).transpose().map_err(|message| refuse(PUBLIC_IP, message))? {
            Some(IpAddr::V4(ip)) => Some(ip),
            Some(IpAddr::V6(_)) => {
                return Err(refuse(PUBLIC_IP, "is not an IPv4 address; flannel keeps that of IPv6 in public-ipv6".to_owned()));
            }
            None => None,
        };
    let data = annotation(BACKEND_DATA).map(backend_data).transpose().map_err(|message| refuse(BACKEND_DATA, message))?;
    let (vtep_mac, direct_return) = data.unwrap_or_default();
    Ok(TunnelEnd { public_ip, vtep_mac, direct_return })
}

/// The VTEP MAC of flannel's `{"VNI":1,"VtepMAC":"02:42:ac:11:00:02"}`, or of `null` before it has started; and whether ours stands beside it.
fn backend_data(data: &str) -> Result<(Option<Mac>, bool), String> {
    #[derive(serde::Deserialize)]
    struct Data {
        #[serde(rename = "VtepMAC")]
        vtep_mac: Option<String>,
        #[serde(rename = "DirectReturn", default)]
        direct_return: bool,
    }
    let data: Option<Data> = serde_json::from_str(data)
        .map_err(|error| format!("is not the JSON that flannel writes ({error}); let flannel write it, or remove it"))?;
    let Some(data) = data else { return Ok((None, false)) };
    let Some(text) = data.vtep_mac else { return Ok((None, data.direct_return)) };
    let mac: Mac = text.parse().map_err(|error| format!("VtepMAC {}: {error}", syntax::quote(&text)))?;
    if mac == Mac::ZERO || mac.bytes[0] & 1 != 0 {
        return Err(format!("VtepMAC {mac} is not the address of one device; want a unicast one"));
    }
    Ok((Some(mac), data.direct_return))
}
