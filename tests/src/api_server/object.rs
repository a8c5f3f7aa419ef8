//! An object as it is kept: its text, ready to be sent, and what selectors look at.

use std::{collections::BTreeMap, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::Value;

use super::resource::Resource;

/// Namespace (empty if there is none) and name, in the order in which lists have them.
pub(super) type Key = (Arc<str>, Arc<str>);

/// One version of an object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) resource: Resource,
    pub(super) key: Key,
    pub(super) version: u64,
    pub(super) uid: String,
    pub(super) labels: BTreeMap<String, String>,
    /// `spec.nodeName` of a pod.
    pub(super) node_name: Option<String>,
    /// `spec.clusterIP` of a Service.
    pub(super) cluster_ip: Option<String>,
    /// The JSON text without `kind`, `apiVersion` and the first brace: lists leave those two out, watches don't.
    tail: Bytes,
}

impl Object {
    /// Of a tree that has its metadata.
    pub(super) fn new(resource: Resource, mut value: Value, version: u64) -> Self {
        if let Some(fields) = value.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let labels = value.pointer("/metadata/labels").and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
        let serialised = value.to_string();
        Self {
            resource,
            key: (text("/metadata/namespace").into(), text("/metadata/name").into()),
            version,
            uid: text("/metadata/uid").to_owned(),
            labels,
            node_name: value.pointer("/spec/nodeName").and_then(Value::as_str).map(str::to_owned),
            cluster_ip: value.pointer("/spec/clusterIP").and_then(Value::as_str).map(str::to_owned),
            tail: Bytes::from(serialised).slice(1..),
        }
    }

    /// As an item of a list.
    pub(super) fn write_item(&self, text: &mut BytesMut) {
        text.put_u8(b'{');
        text.put_slice(&self.tail);
    }

    /// With `kind` and `apiVersion`, as a watch and a GET have it.
    pub(super) fn write_whole(&self, text: &mut BytesMut) {
        text.put_slice(
            format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\"", self.resource.kind(), self.resource.api_version()).as_bytes(),
        );
        if self.tail.first() != Some(&b'}') {
            text.put_u8(b',');
        }
        text.put_slice(&self.tail);
    }

    /// The whole text.
    pub(super) fn text(&self) -> Bytes {
        let mut text = BytesMut::with_capacity(self.tail.len() + 64);
        self.write_whole(&mut text);
        text.freeze()
    }

    /// As a tree.
    pub(super) fn value(&self) -> Value {
        // It was written by `new`.
        serde_json::from_slice(&self.text()).unwrap_or_default()
    }

    /// A line of a watch.
    pub(super) fn event(&self, kind: &str) -> Bytes {
        let mut text = BytesMut::with_capacity(self.tail.len() + 128);
        text.put_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        self.write_whole(&mut text);
        text.put_slice(b"}\n");
        text.freeze()
    }
}
