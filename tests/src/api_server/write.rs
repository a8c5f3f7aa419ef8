//! POST, PUT, PATCH and DELETE.

use serde_json::{Value, json};

use super::{
    patch,
    resource::{Resource, Target},
    status::Status,
    store::Store,
};

/// Fields of an object that only the server writes.
const OF_THE_SERVER: [&str; 3] = ["uid", "creationTimestamp", "resourceVersion"];

impl Store {
    /// A new object.
    pub(super) fn create(&mut self, target: &Target, body: &[u8]) -> Result<Value, Status> {
        let mut value = self.readable(target, body)?;
        let prefix = value["metadata"]["generateName"].as_str().map(str::to_owned);
        if value["metadata"]["name"].is_null()
            && let Some(prefix) = prefix
        {
            value["metadata"]["name"] = json!(format!("{prefix}{:05x}", self.version()));
        }
        let Some(name) = value["metadata"]["name"].as_str().map(str::to_owned) else {
            return Err(Status::invalid(format!("{} \"\" is invalid: metadata.name: Required value", target.resource.kind())));
        };
        if value["metadata"]["resourceVersion"].is_string() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        if self.get(target.resource, namespace(target), &name).is_some() {
            return Err(Status::already_exists(target.resource, &name));
        }
        Ok(self.put(target.resource, value).value())
    }

    /// A new version of an object, whole.
    pub(super) fn replace(&mut self, target: &Target, body: &[u8]) -> Result<Value, Status> {
        let value = self.readable(target, body)?;
        self.update(target, |_| Ok(value))
    }

    /// A new version of an object, by what is to change.
    pub(super) fn patch(&mut self, target: &Target, content_type: &str, body: &[u8]) -> Result<Value, Status> {
        self.update(target, |before| patch::apply(content_type, before, body))
    }

    /// Deletes an object; it is gone at once.
    pub(super) fn remove(&mut self, target: &Target) -> Result<Value, Status> {
        let name = target.name.as_deref().unwrap_or_default();
        let gone = self.delete(target.resource, namespace(target), name, None);
        let gone = gone.ok_or_else(|| Status::not_found(target.resource, name))?;
        Ok(json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": { "name": name, "kind": target.resource.plural(), "uid": gone.uid },
        }))
    }

    fn update(&mut self, target: &Target, change: impl FnOnce(Value) -> Result<Value, Status>) -> Result<Value, Status> {
        let Target { resource, is_status, .. } = target;
        let name = target.name.as_deref().unwrap_or_default();
        let before = self.get(*resource, namespace(target), name).ok_or_else(|| Status::not_found(*resource, name))?.value();
        let mut after = change(before.clone())?;
        let version = &after["metadata"]["resourceVersion"];
        if version.as_str().is_some_and(|version| !version.is_empty()) && *version != before["metadata"]["resourceVersion"] {
            return Err(Status::conflict(*resource, name));
        }
        if after["metadata"]["name"] != before["metadata"]["name"] {
            return Err(Status::bad_request("the name of the object does not match the name on the URL"));
        }
        for field in OF_THE_SERVER {
            after["metadata"][field] = before["metadata"][field].clone();
        }
        if *is_status {
            // Nothing but the status and the metadata is taken.
            let mut whole = before.clone();
            whole["metadata"] = after["metadata"].take();
            whole["status"] = after["status"].take();
            after = whole;
        } else if resource.has_status() {
            match before.get("status") {
                Some(status) => after["status"] = status.clone(),
                None => drop(after.as_object_mut().map(|fields| fields.remove("status"))),
            }
        }
        Ok(self.put(*resource, after).value())
    }

    /// A body as an object of the target's resource and namespace.
    fn readable(&self, target: &Target, body: &[u8]) -> Result<Value, Status> {
        let mut value: Value = serde_json::from_slice(body)
            .map_err(|error| Status::bad_request(format!("the object provided is unrecognized: {error}")))?;
        if value["kind"] != target.resource.kind() {
            let message = format!("{} in the body is not {} of the URL", value["kind"], target.resource.kind());
            return Err(Status::bad_request(message));
        }
        if !value["metadata"].is_object() {
            return Err(Status::invalid("metadata: Required value"));
        }
        if target.resource.is_namespaced() {
            let given = value["metadata"]["namespace"].as_str().unwrap_or_default();
            if !given.is_empty() && given != namespace(target) {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            value["metadata"]["namespace"] = json!(namespace(target));
        }
        Ok(value)
    }
}

/// Of a target; the objects of some resources are in none.
pub(super) fn namespace(target: &Target) -> &str {
    match target.resource {
        Resource::Nodes | Resource::Namespaces => "",
        _ => target.namespace.as_deref().unwrap_or("default"),
    }
}
