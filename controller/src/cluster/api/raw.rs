//! An object as the API server sent it: its text, and the little of it that a watch needs. So an object that is not as it should be ends no
//! watch, and what waits for its turn takes little memory.

use std::{borrow::Cow, fmt};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope},
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
    forward_to_deserialize_any,
};
use serde_json::value::RawValue;

/// An object, not looked at yet.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    /// Name, namespace, uid and resourceVersion, as far as they are texts.
    metadata: ObjectMeta,
    text: Box<RawValue>,
}

impl Raw {
    pub(super) fn text(&self) -> &str {
        self.text.get()
    }
}

#[derive(Default, Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    metadata: Option<Metadata<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    namespace: Option<&'a RawValue>,
    #[serde(borrow, default)]
    uid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    resource_version: Option<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(Textual(deserializer))?;
        let head: Head<'_> = serde_json::from_str(text.get()).unwrap_or_default();
        let metadata = head.metadata.unwrap_or_default();
        let read = |value: Option<&RawValue>| serde_json::from_str(value?.get()).ok();
        let metadata = ObjectMeta {
            name: read(metadata.name),
            namespace: read(metadata.namespace),
            uid: read(metadata.uid),
            resource_version: read(metadata.resource_version),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, text })
    }
}

/// What a text is asked of. An event that names its object before its type was read before it is known what it is, and there is no text
/// left: then one is written anew, with the keys in another order maybe.
struct Textual<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Textual<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, OrWritten { name, visitor })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct enum identifier ignored_any
    }
}

/// Takes a text where there is one, and else what was read of it.
struct OrWritten<V> {
    name: &'static str,
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for OrWritten<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, text: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(text)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, read: D) -> Result<V::Value, D::Error> {
        let text = serde_json::Value::deserialize(read)?.to_string();
        serde_json::Deserializer::from_reader(text.as_bytes())
            .deserialize_newtype_struct(self.name, self.visitor)
            .map_err(D::Error::custom)
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectList, WatchEvent};

    use super::*;

    #[test]
    fn an_event_is_taken_whatever_its_object_is() {
        for (object, name, version) in [
            (r#"{"metadata":{"name":"a","resourceVersion":"7"},"spec":{"x":[1,2]}}"#, Some("a"), Some("7")),
            (r#"{"spec":"what","metadata":{"name":3,"resourceVersion":"8"}}"#, None, Some("8")),
            (r#"{"metadata":[]}"#, None, None),
            ("[]", None, None),
            ("null", None, None),
        ] {
            let line = format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
            let Ok(WatchEvent::Modified(raw)) = serde_json::from_str::<WatchEvent<Raw>>(&line) else {
                panic!("refused: {line}")
            };
            assert_eq!((raw.metadata.name.as_deref(), raw.metadata.resource_version.as_deref()), (name, version));
            assert_eq!(raw.text(), object);
        }
    }

    #[test]
    fn an_event_may_name_its_object_before_its_type() {
        let line = r#"{"object":{"metadata":{"name":"a","resourceVersion":"7"},"spec":{"x":[1,2]}},"type":"MODIFIED"}"#;
        let Ok(WatchEvent::Modified(raw)) = serde_json::from_str::<WatchEvent<Raw>>(line) else { panic!("refused: {line}") };
        assert_eq!((raw.metadata.name.as_deref(), raw.metadata.resource_version.as_deref()), (Some("a"), Some("7")));
        let read = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(raw.text()), read(r#"{"metadata":{"name":"a","resourceVersion":"7"},"spec":{"x":[1,2]}}"#));
    }

    #[test]
    fn a_page_holds_texts() {
        let page =
            r#"{"kind":"NodeList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"a"}},7]}"#;
        let list: ObjectList<Raw> = serde_json::from_str(page).unwrap();
        assert_eq!(list.items.iter().map(Raw::text).collect::<Vec<_>>(), [r#"{"metadata":{"name":"a"}}"#, "7"]);
        assert_eq!(list.metadata.resource_version.as_deref(), Some("9"));
    }
}
