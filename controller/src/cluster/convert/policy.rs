//! networking.k8s.io/v1 NetworkPolicy: checked, so that a mistake shows when the policy is written.

use ipnet::IpNet;
use k8s_openapi::{api::networking::v1 as networking, apimachinery::pkg::util::intstr::IntOrString};

use super::{Refusal, syntax};

pub(super) fn check(policy: &networking::NetworkPolicy) -> Result<(), Refusal> {
    let Some(spec) = &policy.spec else { return Ok(()) };
    for (i, kind) in spec.policy_types.iter().flatten().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            let message = format!("{} is no direction; want Ingress or Egress", syntax::quote(kind));
            return Err(Refusal::new(format!("spec.policyTypes[{i}]"), message));
        }
    }
    for (i, rule) in spec.ingress.iter().flatten().enumerate() {
        let path = format!("spec.ingress[{i}]");
        ports(rule.ports.as_deref().unwrap_or_default()).map_err(|refusal| refusal.within(&path))?;
        peers(rule.from.as_deref().unwrap_or_default(), "from").map_err(|refusal| refusal.within(&path))?;
    }
    for (i, rule) in spec.egress.iter().flatten().enumerate() {
        let path = format!("spec.egress[{i}]");
        ports(rule.ports.as_deref().unwrap_or_default()).map_err(|refusal| refusal.within(&path))?;
        peers(rule.to.as_deref().unwrap_or_default(), "to").map_err(|refusal| refusal.within(&path))?;
    }
    Ok(())
}

fn ports(ports: &[networking::NetworkPolicyPort]) -> Result<(), Refusal> {
    for (i, port) in ports.iter().enumerate() {
        let refuse = |field: &str, message: String| Refusal::new(format!("ports[{i}].{field}"), message);
        syntax::protocol(port.protocol.as_deref()).map_err(|message| refuse("protocol", message))?;
        let first = match &port.port {
            Some(IntOrString::Int(number)) => Some(syntax::port(*number).map_err(|message| refuse("port", message))?),
            Some(IntOrString::String(name)) => {
                syntax::port_name(name).map_err(|message| refuse("port", message))?;
                None
            }
            None => None,
        };
        match (first, port.end_port) {
            (_, None) => {}
            (None, Some(_)) => {
                return Err(refuse("endPort", "needs a number in port; give the first of the range there".to_owned()));
            }
            (Some(first), Some(last)) => {
                let last = syntax::port(last).map_err(|message| refuse("endPort", message))?;
                if last < first {
                    return Err(refuse("endPort", format!("{last} is before port {first}; want the last of the range")));
                }
            }
        }
    }
    Ok(())
}

fn peers(peers: &[networking::NetworkPolicyPeer], list: &str) -> Result<(), Refusal> {
    for (i, peer) in peers.iter().enumerate() {
        let refuse = |field: &str, message: String| Refusal::new(format!("{list}[{i}].{field}"), message);
        let has_selector = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        let Some(block) = &peer.ip_block else {
            if has_selector {
                continue;
            }
            return Err(Refusal::new(
                format!("{list}[{i}]"),
                "selects nothing; give a podSelector, a namespaceSelector or an ipBlock",
            ));
        };
        if has_selector {
            return Err(refuse("ipBlock", "cannot stand beside a selector; make it a peer of its own".to_owned()));
        }
        let range = syntax::prefix(&block.cidr).map_err(|message| refuse("ipBlock.cidr", message))?;
        for (n, except) in block.except.iter().flatten().enumerate() {
            let field = format!("ipBlock.except[{n}]");
            let except: IpNet = syntax::prefix(except).map_err(|message| refuse(&field, message))?;
            if !range.contains(&except) || range == except {
                return Err(refuse(&field, format!("{except} is not a part of {range}; want a smaller range within it")));
            }
        }
    }
    Ok(())
}
