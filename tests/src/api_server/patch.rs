//! What a PATCH makes of an object: JSON, merge and strategic merge, the last for the lists that a node's status has.

use serde_json::Value;

use super::status::Status;

/// Lists that a strategic merge patch merges by a key of their items (`patchStrategy:"merge"` in k8s.io/api/core/v1/types.go).
const MERGED_LISTS: [(&str, &str); 2] = [("conditions", "type"), ("addresses", "type")];

pub(super) fn apply(content_type: &str, mut value: Value, patch: &[u8]) -> Result<Value, Status> {
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let bad = |error: serde_json::Error| Status::bad_request(format!("error decoding patch: {error}"));
    match content_type {
        "application/json-patch+json" => {
            let patch: json_patch::Patch = serde_json::from_slice(patch).map_err(bad)?;
            json_patch::patch(&mut value, &patch).map_err(|error| {
                Status::invalid(format!("the server rejected our request due to an error in our request: {error}"))
            })?;
        }
        "application/merge-patch+json" => json_patch::merge(&mut value, &serde_json::from_slice(patch).map_err(bad)?),
        "application/strategic-merge-patch+json" => merge(&mut value, &serde_json::from_slice(patch).map_err(bad)?),
        other => return Err(Status::unsupported_media_type(other)),
    }
    Ok(value)
}

fn merge(value: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        value.clone_from(patch);
        return;
    };
    if !value.is_object() {
        *value = Value::Object(serde_json::Map::new());
    }
    for (field, change) in changes {
        let list_key = MERGED_LISTS.iter().find(|(list, _)| list == field).map(|(_, key)| *key);
        match (change, list_key) {
            (Value::Null, _) => {
                value.as_object_mut().map(|fields| fields.remove(field));
            }
            (Value::Array(items), Some(key)) => merge_list(&mut value[field.as_str()], items, key),
            _ if field.starts_with('$') => {}
            _ => merge(&mut value[field.as_str()], change),
        }
    }
}

fn merge_list(list: &mut Value, items: &[Value], key: &str) {
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    let Some(list) = list.as_array_mut() else { return };
    for item in items {
        let place = list.iter().position(|known| known[key] == item[key]);
        match (place, item["$patch"] == "delete") {
            (Some(place), true) => {
                list.remove(place);
            }
            (Some(place), false) => merge(&mut list[place], item),
            (None, true) => {}
            (None, false) => list.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_patch() {
        let node = json!({
            "metadata": { "name": "n1", "annotations": { "keep": "1", "drop": "1" } },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }, { "type": "NetworkUnavailable", "status": "True" }] },
        });
        let patched =
            |kind: &str, patch: Value| apply(&format!("application/{kind}+json"), node.clone(), patch.to_string().as_bytes());
        let merged = patched("merge-patch", json!({ "metadata": { "annotations": { "drop": null, "new": "2" } } })).unwrap();
        assert_eq!(merged["metadata"]["annotations"], json!({ "keep": "1", "new": "2" }));

        let condition = json!({ "type": "NetworkUnavailable", "status": "False", "reason": "Up" });
        let merged = patched("strategic-merge-patch", json!({ "status": { "conditions": [condition] } })).unwrap();
        assert_eq!(merged["status"]["conditions"], json!([{ "type": "Ready", "status": "True" }, condition]));
        assert_eq!(merged["metadata"], node["metadata"]);

        let replace = json!([{ "op": "replace", "path": "/metadata/annotations/keep", "value": "2" }]);
        assert_eq!(patched("json-patch", replace).unwrap()["metadata"]["annotations"]["keep"], "2");
        let test = json!([{ "op": "test", "path": "/metadata/annotations/keep", "value": "2" }]);
        assert_eq!(patched("json-patch", test).map_err(|status| status.code), Err(422));
        assert_eq!(patched("apply-patch", json!({})).map_err(|status| status.code), Err(415));
        assert_eq!(apply("application/merge-patch+json", json!({}), b"{").map_err(|status| status.code), Err(400));
    }
}
