//! All objects and their recent history, as etcd and the watch cache keep them: one counter of versions for everything.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use k8s_openapi::jiff;
use serde_json::{Value, json};

use super::{
    object::{Key, Object},
    resource::Resource,
    selector::Selector,
    watch::Watchers,
};

/// Changes that are remembered; a watch that starts before the oldest is told that it is too old.
const REMEMBERED: usize = 20_000;

pub(super) type Objects = BTreeMap<Key, Arc<Object>>;

/// A change of an object.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) before: Option<Arc<Object>>,
    /// What it is now, or was last, under the version of the change.
    pub(super) now: Arc<Object>,
    pub(super) is_gone: bool,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    version: u64,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    compactions: u64,
    objects: BTreeMap<Resource, Objects>,
    history: VecDeque<Change>,
    uids: u64,
    pub(super) watchers: Watchers,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    pub(super) fn get(&self, resource: Resource, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&resource)?.get(&(namespace.into(), name.into()))
    }

    pub(super) fn all(&self, resource: Resource) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.get(&resource).into_iter().flat_map(BTreeMap::values)
    }

    /// Creates or replaces an object: it keeps its uid and birth as long as it lives, and gets a new version if anything else changed.
    pub(super) fn put(&mut self, resource: Resource, mut value: Value) -> Arc<Object> {
        let text = |value: &Value, path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let metadata = |value: &mut Value, field: &str, content: Value| value["metadata"][field] = content;
        if resource.is_namespaced() && text(&value, "/metadata/namespace").is_empty() {
            metadata(&mut value, "namespace", json!("default"));
        }
        let (namespace, name) = (text(&value, "/metadata/namespace"), text(&value, "/metadata/name"));
        match self.get(resource, &namespace, &name) {
            Some(before) => {
                let was = before.value();
                for field in ["uid", "creationTimestamp", "resourceVersion"] {
                    metadata(&mut value, field, was["metadata"][field].clone());
                }
                value["kind"] = was["kind"].clone();
                value["apiVersion"] = was["apiVersion"].clone();
                if value == was {
                    return before.clone();
                }
            }
            None => {
                self.uids += 1;
                metadata(&mut value, "uid", json!(format!("00000000-0000-4000-8000-{:012x}", self.uids)));
                let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
                let is_given = value.pointer("/metadata/creationTimestamp").is_some_and(Value::is_string);
                if !is_given {
                    metadata(&mut value, "creationTimestamp", json!(now));
                }
            }
        }
        self.keep(resource, value, self.version + 1)
    }

    /// As [`Store::put`], with identity and version as they are given.
    pub(super) fn keep(&mut self, resource: Resource, mut value: Value, version: u64) -> Arc<Object> {
        value["metadata"]["resourceVersion"] = json!(version.to_string());
        let now = Arc::new(Object::new(resource, value, version));
        let before = self.objects.entry(resource).or_default().insert(now.key.clone(), now.clone());
        self.note(Change { before, now: now.clone(), is_gone: false });
        now
    }

    /// Deletes an object, at the next version if none is given.
    pub(super) fn delete(
        &mut self,
        resource: Resource,
        namespace: &str,
        name: &str,
        version: Option<u64>,
    ) -> Option<Arc<Object>> {
        let before = self.objects.get_mut(&resource)?.remove(&(namespace.into(), name.into()))?;
        let now = at_version(&before, version.unwrap_or(self.version + 1));
        self.note(Change { before: Some(before), now: now.clone(), is_gone: true });
        Some(now)
    }

    fn note(&mut self, change: Change) {
        self.version = self.version.max(change.now.version);
        self.watchers.tell(&change);
        self.history.push_back(change);
        if self.history.len() > REMEMBERED
            && let Some(oldest) = self.history.pop_front()
        {
            self.forgotten = oldest.now.version;
        }
    }

    /// Time passes without a change of anything that is served.
    pub(super) fn advance(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    /// Forgets all changes until now: etcd's compaction.
    pub(super) fn compact(&mut self) {
        // Something else happens first, so that whoever is up to date is too old too.
        self.compactions += 1;
        self.version += 1;
        self.forgotten = self.version;
        self.history.clear();
    }

    /// Changes after a version; `None` if some of them are forgotten.
    pub(super) fn since(&self, resource: Resource, version: u64) -> Option<impl Iterator<Item = &Change>> {
        if version < self.forgotten {
            return None;
        }
        let start = self.history.partition_point(|change| change.now.version <= version);
        Some(
            self.history
                .range((Bound::Included(start), Bound::Unbounded))
                .filter(move |change| change.now.resource == resource),
        )
    }

    /// The version here of what was recorded under one: later by the versions that compactions took.
    pub(super) fn of_recorded(&self, version: u64) -> u64 {
        version + self.compactions
    }

    /// What was there at a version; `None` if that is forgotten.
    pub(super) fn snapshot(&self, resource: Resource, version: u64) -> Option<Objects> {
        if version < self.forgotten {
            return None;
        }
        let mut objects = self.objects.get(&resource).cloned().unwrap_or_default();
        let later = self.history.iter().rev().take_while(|change| change.now.version > version);
        for change in later.filter(|change| change.now.resource == resource) {
            match &change.before {
                Some(before) => objects.insert(before.key.clone(), before.clone()),
                None => objects.remove(&change.now.key),
            };
        }
        Some(objects)
    }
}

impl Change {
    /// The line that a watch with a selector gets, if any.
    pub(super) fn line(&self, selector: &Selector) -> Option<bytes::Bytes> {
        let was_in = self.before.as_ref().is_some_and(|before| selector.takes(before));
        let is_in = !self.is_gone && selector.takes(&self.now);
        match (was_in, is_in) {
            (false, false) => None,
            (false, true) => Some(self.now.event("ADDED")),
            (true, true) => Some(self.now.event("MODIFIED")),
            (true, false) if self.is_gone => Some(self.now.event("DELETED")),
            // It lives on, out of sight: the last that the watcher could see of it.
            (true, false) => self.before.as_ref().map(|before| at_version(before, self.now.version).event("DELETED")),
        }
    }
}

fn at_version(object: &Object, version: u64) -> Arc<Object> {
    let mut value = object.value();
    value["metadata"]["resourceVersion"] = json!(version.to_string());
    Arc::new(Object::new(object.resource, value, version))
}
