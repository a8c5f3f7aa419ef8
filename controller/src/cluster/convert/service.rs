//! v1 Service.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};

use super::{Names, Refusal, exposure, is_ours, syntax};
use crate::model::{ObjectName, Service, ServicePort};

/// What the API server fills in: three hours.
const DEFAULT_AFFINITY_SECS: i32 = 10_800;

/// `None` if there is no virtual IP to serve here: headless, ExternalName, or another proxy's.
pub(super) fn convert(service: &core::Service, name: &ObjectName, names: &mut Names) -> Result<Option<Service>, Refusal> {
    let Some(spec) = &service.spec else {
        return Err(Refusal::new("spec", "is required; add it with ports and clusterIP"));
    };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        let message = format!("{} is no type; want ClusterIP, NodePort, LoadBalancer or ExternalName", syntax::quote(kind));
        return Err(Refusal::new("spec.type", message));
    }
    let internal_local = policy(spec.internal_traffic_policy.as_deref(), "spec.internalTrafficPolicy")?;
    policy(spec.external_traffic_policy.as_deref(), "spec.externalTrafficPolicy")?;
    let affinity_secs = session_affinity(spec)?;
    let is_headless = spec.cluster_ip.as_deref() == Some("None") || spec.cluster_ips.iter().flatten().any(|ip| ip == "None");
    let ports = ports(spec, names)?;
    if kind == "ExternalName" {
        let target = spec.external_name.as_deref().unwrap_or_default();
        // A dot at the end says that the name is whole (`ValidateService` in Kubernetes' pkg/apis/core/validation).
        let target = target.strip_suffix('.').unwrap_or(target);
        syntax::subdomain(&target.to_ascii_lowercase()).map_err(|message| Refusal::new("spec.externalName", message))?;
        return Ok(None);
    }
    if is_headless && kind != "ClusterIP" {
        return Err(Refusal::new(
            "spec.clusterIP",
            format!("None is not possible for type {kind}; give an address, or use type ClusterIP"),
        ));
    }
    if is_headless {
        return Ok(None);
    }
    if ports.is_empty() {
        return Err(Refusal::new("spec.ports", "is required; add at least one port, or clusterIP: None"));
    }
    let cluster_ips = cluster_ips(spec)?;
    let exposure = exposure::convert(service, kind, &ports)?;
    if !is_ours(&service.metadata) {
        return Ok(None);
    }
    Ok(Some(Service {
        name: name.clone(),
        created: service.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        cluster_ips,
        exposure,
        ports,
        internal_local,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        affinity_secs,
    }))
}

/// Whether a traffic policy is `Local`.
pub(super) fn policy(text: Option<&str>, field: &str) -> Result<bool, Refusal> {
    match text {
        None | Some("" | "Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => Err(Refusal::new(field, format!("{} is no policy; want Cluster or Local", syntax::quote(other)))),
    }
}

/// For how many seconds a client stays with its backend, if it does.
fn session_affinity(spec: &core::ServiceSpec) -> Result<Option<u32>, Refusal> {
    let is_wanted = match spec.session_affinity.as_deref() {
        None | Some("" | "None") => false,
        Some("ClientIP") => true,
        Some(other) => {
            return Err(Refusal::new(
                "spec.sessionAffinity",
                format!("{} is no affinity; want None or ClientIP", syntax::quote(other)),
            ));
        }
    };
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(DEFAULT_AFFINITY_SECS);
    let seconds = u32::try_from(seconds).ok().filter(|seconds| (1..=86_400).contains(seconds)).ok_or_else(|| {
        Refusal::new(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{seconds} is out of range; want 1 to 86400 seconds"),
        )
    })?;
    Ok(is_wanted.then_some(seconds))
}

fn cluster_ips(spec: &core::ServiceSpec) -> Result<Box<[IpAddr]>, Refusal> {
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    match (single, several) {
        (None, []) => {
            Err(Refusal::new("spec.clusterIP", "is required, for no API server chooses one here; give an address, or None"))
        }
        (Some(single), []) => Ok([syntax::unicast(single).map_err(|message| Refusal::new("spec.clusterIP", message))?].into()),
        (Some(single), [first, ..]) if single != first => {
            let message =
                format!("{} differs from spec.clusterIPs[0], {}; make them equal", syntax::quote(single), syntax::quote(first));
            Err(Refusal::new("spec.clusterIP", message))
        }
        (_, several) => {
            let ips: Box<[IpAddr]> = several
                .iter()
                .enumerate()
                .map(|(i, ip)| syntax::unicast(ip).map_err(|message| Refusal::new(format!("spec.clusterIPs[{i}]"), message)))
                .collect::<Result<_, _>>()?;
            let of_v4 = ips.iter().filter(|ip| ip.is_ipv4()).count();
            if of_v4 > 1 || ips.len() - of_v4 > 1 {
                return Err(Refusal::new("spec.clusterIPs", "has more than one address of a family; leave one of each"));
            }
            Ok(ips)
        }
    }
}

fn ports(spec: &core::ServiceSpec, names: &mut Names) -> Result<Box<[ServicePort]>, Refusal> {
    let given = spec.ports.as_deref().unwrap_or_default();
    let mut taken = BTreeSet::new();
    let mut taken_names = BTreeSet::new();
    let mut ports = Vec::with_capacity(given.len());
    for (i, port) in given.iter().enumerate() {
        let refuse = |field: &str, message: String| Refusal::new(format!("spec.ports[{i}].{field}"), message);
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty() {
            syntax::label(name).map_err(|message| refuse("name", message))?;
        } else if given.len() > 1 {
            return Err(refuse("name", "is required where there are several ports; name each".to_owned()));
        }
        if !taken_names.insert(name) {
            return Err(refuse("name", format!("{name:?} names another port already; give it one of its own")));
        }
        let protocol = syntax::protocol(port.protocol.as_deref()).map_err(|message| refuse("protocol", message))?;
        let number = syntax::port(port.port).map_err(|message| refuse("port", message))?;
        if !taken.insert((number, protocol)) {
            return Err(refuse("port", format!("{number} with this protocol is there already; remove one of the two")));
        }
        match &port.target_port {
            None | Some(IntOrString::Int(0)) => {}
            Some(IntOrString::Int(target)) => {
                syntax::port(*target).map_err(|message| refuse("targetPort", message))?;
            }
            Some(IntOrString::String(target)) if target.is_empty() => {}
            Some(IntOrString::String(target)) => syntax::port_name(target).map_err(|message| refuse("targetPort", message))?,
        }
        let node_port = port.node_port.filter(|&node_port| node_port != 0).map(syntax::port).transpose();
        let node_port = node_port.map_err(|message| refuse("nodePort", message))?;
        ports.push(ServicePort { name: names.intern(name), port: number, node_port, protocol });
    }
    Ok(ports.into())
}
