//! From a request to its answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{Method, http::request::Parts};
use serde_json::Value;
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::{
    Seen, State,
    list::Page,
    resource::Target,
    selector::Selector,
    status::Status,
    trouble::{Expired, StreamingLists},
    watch::{self, Piece, Wanted},
    write::namespace,
};

/// How long a watch lasts if the client doesn't say; a real server draws a time between half an hour and a whole one.
const WATCH: Duration = Duration::from_secs(30 * 60);

/// Who the bearer of a good token is.
const USER: &str = "system:serviceaccount:kube-system:shunt";
const ANONYMOUS: &str = "system:anonymous";

/// What a request gets, if it is not refused.
#[derive(Debug)]
pub(super) enum Answer {
    Text(u16, Bytes),
    Stream(UnboundedReceiver<Piece>, Duration),
}

impl Answer {
    fn value(code: u16, value: &Value) -> Self {
        Self::Text(code, Bytes::from(value.to_string()))
    }
}

/// The parameters of lists and watches (`ListOptions` of apimachinery).
struct Options(BTreeMap<String, String>);

impl Options {
    fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let text = self.text(name);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| Status::bad_request(format!("invalid {name}: {text:?}")))
    }

    fn is_set(&self, name: &str) -> bool {
        matches!(self.text(name), "1" | "true")
    }
}

impl State {
    pub(super) fn answer(&mut self, parts: &Parts, body: &[u8]) -> Result<Answer, Status> {
        let query = parts.uri.query().unwrap_or_default();
        let options = Options(form_urlencoded::parse(query.as_bytes()).into_owned().collect());
        let target = Target::of(parts.uri.path());
        let is_watch = options.is_set("watch");
        let verb = verb(&parts.method, target.as_ref(), is_watch);
        if let (Some(verb), Some(target)) = (verb, &target) {
            self.seen.push(Seen { verb, resource: target.resource, name: target.name.clone(), query: query.to_owned() });
        }
        let user = self.user(parts)?;
        let target = target.ok_or_else(Status::no_such_path)?;
        let verb = verb.ok_or_else(Status::method_not_allowed)?;
        if user == ANONYMOUS {
            return Err(Status::forbidden(user, verb, &target));
        }
        if let Some(refusal) = self.trouble.refusal(verb, user, &target) {
            return Err(refusal);
        }
        let content_type = parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        match verb {
            "watch" => self.watch(&target, &options),
            "list" => self.list(&target, &options).map(|text| Answer::Text(200, text)),
            "get" => {
                let name = target.name.as_deref().unwrap_or_default();
                let object = self.store.get(target.resource, namespace(&target), name).map(Arc::clone);
                object.map(|object| Answer::Text(200, object.text())).ok_or_else(|| Status::not_found(target.resource, name))
            }
            "create" => self.store.create(&target, body).map(|value| Answer::value(201, &value)),
            "update" => self.store.replace(&target, body).map(|value| Answer::value(200, &value)),
            "patch" => self.store.patch(&target, content_type, body).map(|value| Answer::value(200, &value)),
            _ => self.store.remove(&target).map(|value| Answer::value(200, &value)),
        }
    }

    /// Whoever asks: a bad token is refused, no token is anybody.
    fn user(&self, parts: &Parts) -> Result<&'static str, Status> {
        let Some(given) = parts.headers.get("authorization") else { return Ok(ANONYMOUS) };
        let token = given.to_str().ok().and_then(|given| given.strip_prefix("Bearer "));
        match token {
            Some(token) if self.tokens.contains(token) => Ok(USER),
            _ => Err(Status::unauthorized()),
        }
    }

    fn list(&self, target: &Target, options: &Options) -> Result<Bytes, Status> {
        let selector = Selector::new(target, options.text("labelSelector"), options.text("fieldSelector"))?;
        self.store.list(&Page {
            resource: target.resource,
            selector: &selector,
            limit: usize::try_from(options.number("limit")?.unwrap_or_default()).unwrap_or(usize::MAX),
            resume: options.text("continue"),
            version: options.number("resourceVersion")?,
            exact: options.text("resourceVersionMatch") == "Exact",
        })
    }

    fn watch(&mut self, target: &Target, options: &Options) -> Result<Answer, Status> {
        let selector = Selector::new(target, options.text("labelSelector"), options.text("fieldSelector"))?;
        let asked = options.number("resourceVersion")?.filter(|version| *version > 0);
        let timeout = options.number("timeoutSeconds")?.map_or(WATCH, Duration::from_secs);
        let streams = self.trouble.streaming_lists;
        let initial = options.0.contains_key("sendInitialEvents") && streams != StreamingLists::Unknown;
        if initial && streams == StreamingLists::Forbidden {
            return Err(Status::no_streaming_lists());
        }
        if initial && options.text("resourceVersionMatch") != "NotOlderThan" {
            let message = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(Status::invalid(format!(
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {message}"
            )));
        }
        let is_streaming_list = initial && options.is_set("sendInitialEvents");
        if let Some(version) = asked.filter(|version| is_streaming_list && *version > self.store.version()) {
            return Err(Status::too_large(version, self.store.version()));
        }
        let since = match asked {
            Some(_) if is_streaming_list => None,
            None if initial && !is_streaming_list => Some(self.store.version()),
            asked => asked,
        };
        let wanted = Wanted {
            resource: target.resource,
            selector,
            since,
            initial_events_end: is_streaming_list,
            bookmarks: options.is_set("allowWatchBookmarks"),
        };
        match self.store.watch(wanted) {
            Ok(pieces) => Ok(Answer::Stream(pieces, timeout)),
            Err(status) if self.trouble.expired == Expired::InStream => {
                let (sender, pieces) = mpsc::unbounded_channel();
                // The stream ends behind it, for the sender is gone.
                let _ = sender.send(Piece::Bytes(watch::error(&status)));
                Ok(Answer::Stream(pieces, timeout))
            }
            Err(status) => Err(status),
        }
    }
}

/// The verb as RBAC has it.
fn verb(method: &Method, target: Option<&Target>, is_watch: bool) -> Option<&'static str> {
    let has_name = target.is_some_and(|target| target.name.is_some());
    match (method, has_name) {
        (&Method::GET, _) if is_watch => Some("watch"),
        (&Method::GET, true) => Some("get"),
        (&Method::GET, false) => Some("list"),
        (&Method::POST, false) => Some("create"),
        (&Method::PUT, true) => Some("update"),
        (&Method::PATCH, true) => Some("patch"),
        (&Method::DELETE, true) => Some("delete"),
        _ => None,
    }
}
