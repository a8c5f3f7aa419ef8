//! A document's text to API objects: each is deserialized once, straight into its type.

mod bounds;
mod header;

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    serde::de::DeserializeOwned,
};
use serde_json::Value;

use super::{
    convert::{ApiObject, Fault},
    documents::Document,
    kind::{Kind, ObjectId},
};
use crate::model::ObjectName;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Yaml,
    Json,
}

/// What a document, or an item of a list in it, turned out to be.
#[derive(Debug)]
pub(super) struct Item {
    /// `items[3]` in a list, else empty.
    pub(super) path: String,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Object(ApiObject),
    /// Of a kind that is of no interest here, named.
    Ignored(String),
    Refused(Fault),
}

/// Everything that a document holds; never empty.
pub(super) fn decode(document: Document<'_>, syntax: Syntax) -> Vec<Item> {
    let alone = |content| vec![Item { path: String::new(), content }];
    if let Err(message) = bounds::check(document.text, syntax) {
        return alone(Content::Refused(Fault { object: header::guess(document.text), field: None, message }));
    }
    let scanned = if syntax == Syntax::Yaml { header::scan(document.text) } else { None };
    if let Some(known) = scanned.and_then(|(api_version, kind)| Kind::of(api_version, kind))
        && let Some(object) = parse(known, document.text)
    {
        return alone(Content::Object(object));
    }
    match tree(document, syntax) {
        Ok(value) => decode_tree(value),
        Err(message) => alone(Content::Refused(Fault { object: header::guess(document.text), field: None, message })),
    }
}

/// The way of JSON, of lists, of other kinds, and of everything that is not as expected: slower, and able to say where.
fn decode_tree(value: Value) -> Vec<Item> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let (Some(api_version), Some(kind)) = (text(&value, "apiVersion"), text(&value, "kind")) else {
        return vec![Item { path: String::new(), content: typed(value) }];
    };
    let item_kind = kind.strip_suffix("List").unwrap_or_default();
    let is_list = kind == "List" || Kind::of(&api_version, item_kind).is_some();
    let mut value = value;
    match value.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) if is_list => items
            .into_iter()
            .enumerate()
            .map(|(i, mut item)| {
                // The API leaves both out of the items of its typed lists.
                if let Some(fields) = item.as_object_mut().filter(|_| !item_kind.is_empty()) {
                    fields.entry("apiVersion").or_insert_with(|| api_version.clone().into());
                    fields.entry("kind").or_insert_with(|| item_kind.into());
                }
                Item { path: format!("items[{i}]"), content: typed(item) }
            })
            .collect(),
        None | Some(Value::Null) if is_list => Vec::new(),
        Some(_) if is_list => {
            vec![Item { path: String::new(), content: fault(&value, "items", "is not a list; want a list of objects") }]
        }
        _ => vec![Item { path: String::new(), content: typed(value) }],
    }
}

fn typed(value: Value) -> Content {
    if !value.is_object() {
        return fault(&value, "", "is not an object; want apiVersion, kind, metadata and the rest");
    }
    for field in ["apiVersion", "kind"] {
        match value.get(field) {
            Some(Value::String(text)) if !text.is_empty() => {}
            None | Some(Value::Null | Value::String(_)) => {
                return fault(&value, field, "is required; say what kind of object this is");
            }
            Some(_) => return fault(&value, field, "is not a text"),
        }
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let Some(known) = Kind::of(&api_version, &kind) else {
        // Without a name it is no object of any kind: more likely one that was cut off.
        let is_object = kind.ends_with("List") || value.pointer("/metadata/name").is_some_and(Value::is_string);
        let message = "is required; name the object";
        return if is_object {
            Content::Ignored(format!("{api_version} {kind}"))
        } else {
            fault(&value, "metadata.name", message)
        };
    };
    of_kind(known, value).map_or_else(Content::Refused, Content::Object)
}

/// An object of a kind that is known beforehand, as the API server writes it: lists and watches may leave out what it is.
pub(super) fn object(kind: Kind, json: &str) -> Result<ApiObject, Fault> {
    fn from<T: DeserializeOwned>(json: &str) -> Option<Box<T>> {
        serde_json::from_str(json).ok().map(Box::new)
    }
    let object = match kind {
        Kind::Node => from(json).map(ApiObject::Node),
        Kind::Service => from(json).map(ApiObject::Service),
        Kind::EndpointSlice => from(json).map(ApiObject::EndpointSlice),
        Kind::Pod | Kind::Namespace | Kind::NetworkPolicy => None,
    };
    // Once more for what is not as expected, in a way that can say where.
    object.map_or_else(|| of_kind(kind, serde_json::from_str(json).unwrap_or_default()), Ok)
}

fn of_kind(kind: Kind, value: Value) -> Result<ApiObject, Fault> {
    let object = identify(kind, &value);
    let parsed = match kind {
        Kind::Node => from_tree::<Node>(value).map(|it| ApiObject::Node(Box::new(it))),
        Kind::Service => from_tree::<Service>(value).map(|it| ApiObject::Service(Box::new(it))),
        Kind::EndpointSlice => from_tree::<EndpointSlice>(value).map(|it| ApiObject::EndpointSlice(Box::new(it))),
        Kind::Pod => from_tree::<Pod>(value).map(|it| ApiObject::Pod(Box::new(it))),
        Kind::Namespace => from_tree::<Namespace>(value).map(|it| ApiObject::Namespace(Box::new(it))),
        Kind::NetworkPolicy => from_tree::<NetworkPolicy>(value).map(|it| ApiObject::NetworkPolicy(Box::new(it))),
    };
    parsed.map_err(|(field, message)| Fault { object, field: Some(field), message })
}

fn from_tree<T: DeserializeOwned>(value: Value) -> Result<T, (String, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| (error.path().to_string(), error.into_inner().to_string()))
}

fn fault(value: &Value, field: &str, message: &str) -> Content {
    let field = (!field.is_empty()).then(|| field.to_owned());
    let text = |key: &str| value.get(key)?.as_str();
    let kind = text("apiVersion").zip(text("kind")).and_then(|(api_version, kind)| Kind::of(api_version, kind));
    let object = kind.and_then(|kind| identify(kind, value));
    Content::Refused(Fault { object, field, message: message.to_owned() })
}

/// Which object a tree is, as far as it says.
fn identify(kind: Kind, value: &Value) -> Option<ObjectId> {
    let metadata = value.get("metadata");
    let text = |value: Option<&Value>, key: &str| value?.get(key)?.as_str().map(str::to_owned);
    let namespace = text(metadata, "namespace").unwrap_or_default();
    Some(identity(kind, &namespace, &text(metadata, "name")?))
}

fn identity(kind: Kind, namespace: &str, name: &str) -> ObjectId {
    let namespace = match namespace {
        _ if !kind.is_namespaced() => "",
        "" => "default",
        given => given,
    };
    ObjectId { kind, name: ObjectName::new(namespace, name) }
}

/// The quick way of the kinds that a cluster has thousands of; `None` sends everything else, and every fault, the slower way.
///
/// Each kind that is read by two ways is compiled twice, and these types are large.
fn parse(kind: Kind, text: &str) -> Option<ApiObject> {
    fn from<T: DeserializeOwned>(text: &str) -> Option<Box<T>> {
        serde_yaml::from_str(text).ok().map(Box::new)
    }
    match kind {
        Kind::Node => from(text).map(ApiObject::Node),
        Kind::Service => from(text).map(ApiObject::Service),
        Kind::EndpointSlice => from(text).map(ApiObject::EndpointSlice),
        Kind::Pod | Kind::Namespace | Kind::NetworkPolicy => None,
    }
}

/// Any document; an error says the line of the file.
fn tree(document: Document<'_>, syntax: Syntax) -> Result<Value, String> {
    // Empty lines in place of what comes before make the parser count lines as the file does. That has its price.
    const MAX_PADDING: usize = 20_000;
    let (padding, counted) = match document.lines_before {
        lines @ ..=MAX_PADDING => (lines, String::new()),
        lines => (0, format!(" (counted from line {} of the file)", lines + 1)),
    };
    let text = "\n".repeat(padding) + document.text;
    match syntax {
        Syntax::Yaml => serde_yaml::from_str(&text).map_err(|error| format!("cannot be read as YAML: {error}{counted}")),
        Syntax::Json => serde_json::from_str(&text).map_err(|error| format!("cannot be read as JSON: {error}{counted}")),
    }
}
