//! The same cluster as an API server has it: with all that a real one writes besides what is looked at, since that has to be read over.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::Cluster;

/// A real server's Nodes.
const NODES: &str = include_str!("../../fixtures/kubernetes-1.36/list-nodes.json");

impl Cluster {
    /// Its Nodes, each as large as a real one.
    pub fn node_objects(&self) -> impl Iterator<Item = Value> {
        // It is a part of this program.
        let list: Value = serde_json::from_str(NODES).unwrap_or_default();
        let template = list["items"][0].clone();
        (0..self.nodes).map(move |number| {
            let mut node = template.clone();
            let range = format!("{}/24", super::pod_range(number));
            let name = format!("node-{number}");
            (node["apiVersion"], node["kind"]) = (json!("v1"), json!("Node"));
            node["metadata"]["name"] = json!(name);
            (node["spec"]["podCIDR"], node["spec"]["podCIDRs"]) = (json!(range), json!([range]));
            node["status"]["addresses"] = json!([
                { "type": "InternalIP", "address": super::node_address(number) },
                { "type": "Hostname", "address": name },
            ]);
            node
        })
    }

    /// A Service and its EndpointSlice with so many endpoints.
    #[must_use]
    pub fn objects(&self, service: u32, endpoints: u32) -> [Value; 2] {
        let name = format!("service-{service}");
        let uid = format!("11111111-0000-4000-8000-{service:012x}");
        let ip = Cluster::virtual_ip(service);
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": name, "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": { "app": name },
                "managedFields": [{
                    "manager": "kubectl", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
                    "fieldsV1": {
                        "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
                        "f:spec": {
                            "f:internalTrafficPolicy": {}, "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
                            "f:ports": { ".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {
                                ".": {}, "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {},
                            } },
                        },
                    },
                }],
            },
            "spec": {
                "ports": [{ "name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080 }], "selector": { "app": name },
                "clusterIP": ip, "clusterIPs": [ip], "type": "ClusterIP", "sessionAffinity": "None",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            },
            "status": { "loadBalancer": {} },
        });
        [object, self.slice_object(service, &uid, endpoints)]
    }

    fn slice_object(&self, service: u32, uid: &str, endpoints: u32) -> Value {
        let name = format!("service-{service}");
        let endpoints: Vec<Value> = (0..endpoints)
            .map(|endpoint| {
                let (address, node) = self.endpoint(service, endpoint);
                json!({
                    "addresses": [address], "nodeName": format!("node-{node}"), "zone": format!("z{}", node % 3),
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "targetRef": {
                        "kind": "Pod", "namespace": "default", "name": format!("{name}-68c74c8d8c-{endpoint:05}"),
                        "uid": format!("22222222-0000-4000-8000-{:012x}", u32::from(address)),
                    },
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-t6s2m"), "generateName": format!("{name}-"), "namespace": "default", "generation": 8,
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io", "kubernetes.io/service-name": name,
                },
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true,
                }],
                "managedFields": [{
                    "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "discovery.k8s.io/v1",
                    "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
                    "fieldsV1": {
                        "f:addressType": {}, "f:endpoints": {}, "f:ports": {},
                        "f:metadata": {
                            "f:generateName": {},
                            "f:labels": { ".": {}, "f:endpointslice.kubernetes.io/managed-by": {}, "f:kubernetes.io/service-name": {} },
                            "f:ownerReferences": { ".": {}, format!("k:{{\"uid\":\"{uid}\"}}"): {} },
                        },
                    },
                }],
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }],
        })
    }

    /// An endpoint's address, and the number of its node.
    pub(super) fn endpoint(&self, service: u32, endpoint: u32) -> (Ipv4Addr, u32) {
        let serial = service * self.endpoints + endpoint;
        let node = serial % self.nodes.max(1);
        let host = 2 + serial / self.nodes.max(1) % 250;
        (Ipv4Addr::from(0x0a00_0000 + (node << 8) + host), node)
    }
}
