//! What the Node object says of our tunnel end and of the network: which patch, if any, makes it true.

use std::net::Ipv4Addr;

use k8s_openapi::{
    api::core::v1::{Node, NodeCondition},
    apimachinery::pkg::apis::meta::v1::Time,
};
use serde_json::{Map, Value, json};
use shunt_common::net::Mac;

use crate::cluster::flannel::{BACKEND_DATA, BACKEND_TYPE, PUBLIC_IP, PUBLIC_IP_OVERWRITE, SUBNET_MANAGER};

const CONDITION: &str = "NetworkUnavailable";
const REASON: &str = "ShuntIsUp";
const MESSAGE: &str = "shunt's dataplane is in force on this node";

/// Where other nodes send this node's pods' packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelEnd {
    /// Outer source and destination.
    pub ip: Ipv4Addr,
    /// Inner destination.
    pub mac: Mac,
    /// VXLAN network identifier.
    pub vni: u32,
}

/// The strategic merge patch of the Node's status subresource that says what is so, with nothing in it that is said already. Its
/// conditions merge by type, so that it takes nothing from kubelet; the uid keeps it from a Node made anew by the same name.
#[must_use]
pub fn patch(node: &Node, end: &TunnelEnd, now: Time) -> Option<Value> {
    let annotations = annotations(node, end);
    let condition = condition(node, now);
    if annotations.is_empty() && condition.is_none() {
        return None;
    }
    let mut patch = json!({ "metadata": {} });
    if let Some(uid) = &node.metadata.uid {
        patch["metadata"]["uid"] = json!(uid);
    }
    if !annotations.is_empty() {
        patch["metadata"]["annotations"] = annotations.into();
    }
    if let Some(condition) = condition {
        patch["status"] = json!({ "conditions": [condition] });
    }
    Some(patch)
}

/// Those that flannel writes for a node of its VXLAN backend, as far as they differ: nodes that run it take ours for one of theirs.
fn annotations(node: &Node, end: &TunnelEnd) -> Map<String, Value> {
    let present = |key: &str| node.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let overwrite = present(PUBLIC_IP_OVERWRITE).and_then(|text| text.parse::<Ipv4Addr>().ok());
    // In the order of flannel's struct. What stands behind that its nodes don't read, and one that writes its own takes it away: so a
    // node that is given back to flannel is sent no more of what only ours understand.
    let data = format!(r#"{{"VNI":{},"VtepMAC":"{}","DirectReturn":true}}"#, end.vni, end.mac);
    let wanted = [
        (BACKEND_TYPE, "vxlan".to_owned()),
        (BACKEND_DATA, data),
        (PUBLIC_IP, overwrite.unwrap_or(end.ip).to_string()),
        (SUBNET_MANAGER, "true".to_owned()),
    ];
    wanted
        .into_iter()
        .filter(|(key, value)| present(key) != Some(value))
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect()
}

/// `NetworkUnavailable` set to False, unless it is by us. The node lifecycle controller takes the taint away that goes with it. A
/// dataplane that fails later does not set it to True: pods that run are best left where they are.
fn condition(node: &Node, now: Time) -> Option<NodeCondition> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let present = conditions.and_then(|all| all.iter().find(|condition| condition.type_ == CONDITION));
    let is_false = present.is_some_and(|condition| condition.status == "False");
    if is_false && present.is_some_and(|condition| condition.reason.as_deref() == Some(REASON)) {
        return None;
    }
    let since = present.filter(|_| is_false).and_then(|condition| condition.last_transition_time.clone());
    Some(NodeCondition {
        type_: CONDITION.to_owned(),
        status: "False".to_owned(),
        reason: Some(REASON.to_owned()),
        message: Some(MESSAGE.to_owned()),
        last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
        last_heartbeat_time: Some(now),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac { bytes: [0x72, 0x73, 192, 0, 2, 1] };
    const END: TunnelEnd = TunnelEnd { ip: Ipv4Addr::new(192, 0, 2, 1), mac: MAC, vni: 1 };
    const DATA: &str = r#"{"VNI":1,"VtepMAC":"72:73:c0:00:02:01","DirectReturn":true}"#;

    fn now() -> Time {
        serde_json::from_value(json!("2026-01-02T03:04:05Z")).unwrap()
    }

    fn node(annotations: Value, conditions: Value) -> Node {
        let meta = json!({ "name": "n1", "uid": "u1", "annotations": annotations });
        serde_json::from_value(json!({ "metadata": meta, "status": { "conditions": conditions } })).unwrap()
    }

    fn settled() -> Value {
        json!({ BACKEND_TYPE: "vxlan", BACKEND_DATA: DATA, PUBLIC_IP: "192.0.2.1", SUBNET_MANAGER: "true", "other": "stays" })
    }

    fn up() -> Value {
        json!([{ "type": CONDITION, "status": "False", "reason": REASON }, { "type": "Ready", "status": "True" }])
    }

    #[test]
    fn a_node_that_says_so_already_needs_nothing() {
        assert_eq!(patch(&node(settled(), up()), &END, now()), None);
    }

    #[test]
    fn a_new_node_is_told_of_everything() {
        let expected = json!({
            "metadata": { "uid": "u1", "annotations": {
                BACKEND_TYPE: "vxlan", BACKEND_DATA: DATA, PUBLIC_IP: "192.0.2.1", SUBNET_MANAGER: "true" } },
            "status": { "conditions": [{
                "type": CONDITION, "status": "False", "reason": REASON, "message": MESSAGE,
                "lastHeartbeatTime": "2026-01-02T03:04:05Z", "lastTransitionTime": "2026-01-02T03:04:05Z" }] },
        });
        assert_eq!(patch(&node(json!({}), json!([])), &END, now()).unwrap(), expected);
        let bare: Node = serde_json::from_value(json!({ "metadata": { "name": "n1" } })).unwrap();
        let patch = patch(&bare, &END, now()).unwrap();
        assert_eq!(patch["metadata"].as_object().unwrap().len(), 1, "no uid where there is none");
    }

    #[test]
    fn only_what_differs_is_written() {
        for (key, value, expected) in [
            (BACKEND_TYPE, "host-gw", "vxlan"),
            (BACKEND_DATA, "null", DATA),
            (BACKEND_DATA, r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#, DATA),
            (BACKEND_DATA, r#"{"VNI":1,"VtepMAC":"72:73:c0:00:02:01"}"#, DATA),
            (PUBLIC_IP, "203.0.113.1", "192.0.2.1"),
            (SUBNET_MANAGER, "false", "true"),
        ] {
            let mut annotations = settled();
            annotations[key] = value.into();
            let patch = patch(&node(annotations, up()), &END, now()).unwrap();
            assert_eq!(patch, json!({ "metadata": { "uid": "u1", "annotations": { key: expected } } }));
        }
    }

    #[test]
    fn an_overwritten_public_ip_is_honoured_if_it_is_one() {
        for (overwrite, expected) in [("203.0.113.9", "203.0.113.9"), ("nonsense", "192.0.2.1"), ("fd00::1", "192.0.2.1")] {
            let mut annotations = settled();
            annotations[PUBLIC_IP_OVERWRITE] = overwrite.into();
            annotations[PUBLIC_IP] = "".into();
            let patch = patch(&node(annotations.clone(), up()), &END, now()).unwrap();
            assert_eq!(patch["metadata"]["annotations"], json!({ PUBLIC_IP: expected }));
            annotations[PUBLIC_IP] = expected.into();
            assert_eq!(super::patch(&node(annotations, up()), &END, now()), None);
        }
    }

    #[test]
    fn the_condition_is_set_again_when_it_is_reset_and_keeps_its_time_when_only_the_reason_differs() {
        let before = "2025-01-01T00:00:00Z";
        for (status, reason, since) in [
            ("True", "NoRouteCreated", "2026-01-02T03:04:05Z"),
            ("Unknown", REASON, "2026-01-02T03:04:05Z"),
            ("False", "FlannelIsUp", before),
        ] {
            let present = json!([{ "type": CONDITION, "status": status, "reason": reason, "lastTransitionTime": before }]);
            let patch = patch(&node(settled(), present), &END, now()).unwrap();
            let condition = &patch["status"]["conditions"][0];
            assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!(REASON)));
            assert_eq!(condition["lastTransitionTime"], since);
            assert!(patch["metadata"].get("annotations").is_none());
        }
    }
}
