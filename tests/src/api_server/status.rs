//! Answers that are no objects: what the API server says when it doesn't do as asked, word for word where clients read the words.

use std::time::Duration;

use serde_json::{Value, json};

use super::resource::{Resource, Target};

/// A refusal.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Status {
    pub(super) code: u16,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    /// A way on that is offered: a continue token.
    pub(super) resume: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

impl Status {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, resume: None, retry_after: None }
    }

    pub(super) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(details) = &self.details {
            body["details"] = details.clone();
        }
        if let Some(resume) = &self.resume {
            body["metadata"]["continue"] = json!(resume);
        }
        if let Some(retry_after) = self.retry_after {
            body["details"]["retryAfterSeconds"] = json!(retry_after.as_secs());
        }
        body
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn forbidden(user: &str, verb: &str, target: &Target) -> Self {
        let Target { resource, namespace, name, is_status } = target;
        let plural = resource.plural();
        let what = if *is_status { format!("{plural}/status") } else { plural.to_owned() };
        let object = name.as_ref().map(|name| format!(" {name:?}")).unwrap_or_default();
        let place = match namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let message = format!(
            "{plural}{object} is forbidden: User {user:?} cannot {verb} resource {what:?} in API group {:?} {place}",
            resource.group()
        );
        let mut details = json!({ "kind": plural });
        if let Some(name) = name {
            details["name"] = json!(name);
        }
        if !resource.group().is_empty() {
            details["group"] = json!(resource.group());
        }
        Self { details: Some(details), ..Self::new(403, "Forbidden", message) }
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    pub(super) fn not_found(resource: Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.plural());
        Self { details: Some(json!({ "name": name, "kind": resource.plural() })), ..Self::new(404, "NotFound", message) }
    }

    pub(super) fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub(super) fn already_exists(resource: Resource, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{} {name:?} already exists", resource.plural()))
    }

    pub(super) fn conflict(resource: Resource, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: the object has been modified; please apply your changes to the latest \
             version and try again",
            resource.plural()
        );
        Self::new(409, "Conflict", message)
    }

    /// A watch that starts at a version that is forgotten.
    pub(super) fn too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// A page of a list whose snapshot is forgotten.
    pub(super) fn continue_too_old(resume: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                       without the continue parameter, or use the continue token in this response to retrieve the remainder of \
                       the results. Continuing with the provided token results in an inconsistent list - objects that were \
                       created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";
        Self { resume: Some(resume), ..Self::new(410, "Expired", message) }
    }

    pub(super) fn unsupported_media_type(given: &str) -> Self {
        Self::new(415, "UnsupportedMediaType", format!("the body of the request was in an unknown format ({given})"))
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// What a server answers that has streaming lists switched off.
    pub(super) fn no_streaming_lists() -> Self {
        Self::invalid(
            "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless \
             the WatchList feature gate is enabled",
        )
    }

    pub(super) fn too_many_requests(retry_after: Duration) -> Self {
        let message = "the server has received too many requests and has asked us to try again later";
        Self { retry_after: Some(retry_after), ..Self::new(429, "TooManyRequests", message) }
    }

    pub(super) fn internal_error() -> Self {
        Self::new(500, "InternalError", "Internal error occurred: etcdserver: leader changed")
    }

    /// A version that is not there yet.
    pub(super) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let causes = json!([{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }]);
        Self {
            details: Some(json!({ "causes": causes })),
            retry_after: Some(Duration::from_secs(1)),
            ..Self::new(504, "Timeout", message)
        }
    }
}
