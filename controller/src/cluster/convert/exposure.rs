//! How a v1 Service is reached from the outside: node ports, load balancers, external IPs.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{Refusal, service, syntax};
use crate::model::{Exposure, Protocol, ServicePort};

/// `None` of a Service that only has a ClusterIP.
pub(super) fn convert(service: &core::Service, kind: &str, ports: &[ServicePort]) -> Result<Option<Box<Exposure>>, Refusal> {
    let spec = service.spec.as_ref();
    let is_load_balancer = kind == "LoadBalancer";
    node_ports(kind, ports)?;
    let given = spec.and_then(|spec| spec.external_ips.as_deref()).unwrap_or_default();
    let external_ips = unique(given, "spec.externalIPs", syntax::unicast)?;
    let policy = spec.and_then(|spec| spec.external_traffic_policy.as_deref());
    let local = service::policy(policy, "spec.externalTrafficPolicy")?;
    let is_exposed = kind != "ClusterIP" || !external_ips.is_empty();
    if local && !is_exposed {
        let message = "Local needs a way in from the outside; use type NodePort or LoadBalancer, or remove it";
        return Err(Refusal::new("spec.externalTrafficPolicy", message));
    }
    let given = spec.and_then(|spec| spec.load_balancer_source_ranges.as_deref()).unwrap_or_default();
    let source_ranges: Box<[IpNet]> = unique(given, "spec.loadBalancerSourceRanges", |text| syntax::prefix(text.trim()))?;
    let health_check_port = health_check_port(spec, is_load_balancer && local)?;
    for (is_set, field) in [
        (!source_ranges.is_empty(), "spec.loadBalancerSourceRanges"),
        (spec.is_some_and(|spec| spec.allocate_load_balancer_node_ports.is_some()), "spec.allocateLoadBalancerNodePorts"),
    ] {
        if is_set && !is_load_balancer {
            return Err(Refusal::new(field, format!("is not possible for type {kind}; use type LoadBalancer, or remove it")));
        }
    }
    let load_balancer_ips = if is_load_balancer { ingress(service)? } else { [].into() };
    Ok(is_exposed.then(|| Exposure { load_balancer_ips, external_ips, local, source_ranges, health_check_port }.into()))
}

fn node_ports(kind: &str, ports: &[ServicePort]) -> Result<(), Refusal> {
    let mut taken: BTreeSet<(u16, Protocol)> = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let Some(node_port) = port.node_port else { continue };
        let refuse = |message: String| Err(Refusal::new(format!("spec.ports[{i}].nodePort"), message));
        if kind == "ClusterIP" {
            return refuse("is not possible for type ClusterIP; use type NodePort or LoadBalancer, or remove it".to_owned());
        }
        if !taken.insert((node_port, port.protocol)) {
            return refuse(format!("{node_port} with this protocol is another port's already; choose another one"));
        }
    }
    Ok(())
}

fn health_check_port(spec: Option<&core::ServiceSpec>, is_possible: bool) -> Result<Option<u16>, Refusal> {
    let field = "spec.healthCheckNodePort";
    let given = spec.and_then(|spec| spec.health_check_node_port).filter(|&port| port != 0);
    let Some(port) = given.map(syntax::port).transpose().map_err(|message| Refusal::new(field, message))? else {
        return Ok(None);
    };
    if !is_possible {
        let message = "is only for type LoadBalancer with externalTrafficPolicy: Local; remove it";
        return Err(Refusal::new(field, message));
    }
    Ok(Some(port))
}

/// The addresses whose packets reach the nodes as they are. A balancer in mode Proxy sends packets of its own, to node ports or pods.
fn ingress(service: &core::Service) -> Result<Box<[IpAddr]>, Refusal> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let given = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
    let mut ips: Vec<IpAddr> = Vec::new();
    for (i, ingress) in given.iter().enumerate() {
        let refuse = |field: &str, message: String| Refusal::new(format!("status.loadBalancer.ingress[{i}].{field}"), message);
        let is_vip = match ingress.ip_mode.as_deref() {
            None | Some("" | "VIP") => true,
            Some("Proxy") => false,
            Some(other) => {
                return Err(refuse("ipMode", format!("{} is no mode; want VIP or Proxy", syntax::quote(other))));
            }
        };
        let Some(ip) = ingress.ip.as_deref().filter(|ip| !ip.is_empty()) else { continue };
        let ip = syntax::unicast(ip).map_err(|message| refuse("ip", message))?;
        if is_vip && !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    Ok(ips.into())
}

fn unique<T: PartialEq>(given: &[String], field: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Box<[T]>, Refusal> {
    let mut values = Vec::with_capacity(given.len());
    for (i, text) in given.iter().enumerate() {
        let value = parse(text).map_err(|message| Refusal::new(format!("{field}[{i}]"), message))?;
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Ok(values.into())
}
