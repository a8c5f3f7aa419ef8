//! What the API server has told: in the model where it is good, by name alone where it has no consequence, as a problem where it is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use kube::Resource as _;

use super::raw::Raw;
use crate::{
    cluster::{
        convert::{self, Fault, Names, Translated},
        decode,
        kind::{Kind, ObjectId},
    },
    model::{Changes, Model, ObjectName},
    problem::Problem,
};

/// Objects of the kinds that are watched.
#[derive(Debug, Default)]
pub(super) struct Objects {
    model: Model,
    names: Names,
    kinds: BTreeMap<Kind, Known>,
    /// Counts what changes problems or notices.
    revision: u64,
}

/// Of one kind.
#[derive(Debug, Default)]
struct Known {
    /// Those of which there is a good version, with what tells an object from a later one of the same name.
    good: BTreeMap<ObjectName, Uid>,
    refused: BTreeMap<ObjectName, Problem>,
    notices: BTreeMap<ObjectName, Vec<Problem>>,
    /// What a list has named so far; `None` between lists.
    listed: Option<BTreeSet<ObjectName>>,
}

/// A hash of `metadata.uid`.
type Uid = u64;

impl Objects {
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).map_or(0, |known| known.good.len())
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        self.kinds.values().flat_map(|known| known.refused.values()).cloned().collect()
    }

    pub(super) fn notices(&self) -> Vec<Problem> {
        self.kinds.values().flat_map(|known| known.notices.values().flatten()).cloned().collect()
    }

    /// A list begins. Until it ends nothing is withdrawn that it has not named yet.
    pub(super) fn begin_list(&mut self, kind: Kind) {
        self.kinds.entry(kind).or_default().listed = Some(BTreeSet::new());
    }

    /// A list has ended: what it did not name is gone.
    pub(super) fn end_list(&mut self, kind: Kind, changes: &mut Changes) {
        let known = self.kinds.entry(kind).or_default();
        let Some(listed) = known.listed.take() else { return };
        let told = known.good.keys().chain(known.refused.keys()).chain(known.notices.keys());
        let gone: BTreeSet<ObjectName> = told.filter(|name| !listed.contains(*name)).cloned().collect();
        for name in gone {
            self.forget(ObjectId { kind, name }, changes);
        }
    }

    /// An object came or changed, or a list names it. One that is refused leaves its last good version in force.
    ///
    /// What the server says last counts, whatever its resourceVersion: a cluster restored from a backup counts anew.
    pub(super) fn put(&mut self, kind: Kind, raw: &Raw, changes: &mut Changes) {
        let name = self.name(raw);
        let uid = uid(raw);
        let outcome = decode::object(kind, raw.text()).and_then(|object| {
            let triggered = object.triggered();
            object.translate(&mut self.names).map(|translated| (translated, triggered))
        });
        let known = self.kinds.entry(kind).or_default();
        if let Some(listed) = &mut known.listed {
            listed.insert(name.clone());
        }
        let is_listing = known.listed.is_some();
        let id = ObjectId { kind, name: name.clone() };
        let (refused, notices) = match outcome {
            Ok((Translated { id, meaning, without_effect }, triggered)) => {
                known.good.insert(name.clone(), uid);
                let mut own = Changes::default();
                meaning.put(&id, &mut self.model, &mut own);
                if !own.is_empty() {
                    // What a list tells may have happened long ago.
                    own.triggers.extend(triggered.filter(|_| !is_listing));
                    changes.absorb(own);
                }
                let notice = |(field, message): (&str, &str)| Problem {
                    object: Some(id.to_string()),
                    field: (!field.is_empty()).then(|| field.to_owned()),
                    message: message.to_owned(),
                    ..Problem::default()
                };
                (None, without_effect.into_iter().map(notice).collect())
            }
            Err(Fault { field, message, .. }) => {
                if known.good.get(&name).is_some_and(|before| *before != uid) {
                    // The good version was of another object, which is gone.
                    known.good.remove(&name);
                    convert::withdraw(&id, &mut self.model, changes);
                }
                (Some(Problem { object: Some(id.to_string()), field, message, ..Problem::default() }), Vec::new())
            }
        };
        let notices = Some(notices).filter(|notices: &Vec<_>| !notices.is_empty());
        let is_news = replace(&mut known.refused, &name, refused) | replace(&mut known.notices, &name, notices);
        self.revision += u64::from(is_news);
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, kind: Kind, raw: &Raw, changes: &mut Changes) {
        let name = self.name(raw);
        self.forget(ObjectId { kind, name }, changes);
    }

    fn forget(&mut self, id: ObjectId, changes: &mut Changes) {
        let known = self.kinds.entry(id.kind).or_default();
        known.good.remove(&id.name);
        let is_news = known.refused.remove(&id.name).is_some() | known.notices.remove(&id.name).is_some();
        self.revision += u64::from(is_news);
        convert::withdraw(&id, &mut self.model, changes);
    }

    /// As the server has it, even if it cannot be a name.
    fn name(&mut self, raw: &Raw) -> ObjectName {
        let metadata = raw.meta();
        let mut intern = |text: &Option<String>| self.names.intern(text.as_deref().unwrap_or_default());
        ObjectName { namespace: intern(&metadata.namespace), name: intern(&metadata.name) }
    }
}

/// Says whether that changed anything.
fn replace<V: PartialEq>(map: &mut BTreeMap<ObjectName, V>, name: &ObjectName, value: Option<V>) -> bool {
    match value {
        None => map.remove(name).is_some(),
        Some(value) if map.get(name) == Some(&value) => false,
        Some(value) => {
            map.insert(name.clone(), value);
            true
        }
    }
}

fn uid(raw: &Raw) -> Uid {
    let mut hasher = DefaultHasher::new();
    raw.meta().uid.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use serde_json::json;

    use super::*;

    /// What happens to one of a few objects, each of them alive or not.
    #[derive(Clone, Copy, Debug)]
    enum Happening {
        Put {
            kind: Kind,
            place: usize,
            version: u8,
        },
        Delete {
            kind: Kind,
            place: usize,
        },
        /// A list of all that is there, broken off before its end or not.
        List {
            kind: Kind,
            is_whole: bool,
        },
    }

    const KINDS: [Kind; 3] = [Kind::Node, Kind::Service, Kind::EndpointSlice];
    const PLACES: usize = 3;

    fn happening() -> impl Strategy<Value = Happening> {
        let kind = || prop::sample::select(&KINDS[..]);
        prop_oneof![
            6 => (kind(), 0..PLACES, 0..4u8).prop_map(|(kind, place, version)| Happening::Put { kind, place, version }),
            2 => (kind(), 0..PLACES).prop_map(|(kind, place)| Happening::Delete { kind, place }),
            1 => (kind(), any::<bool>()).prop_map(|(kind, is_whole)| Happening::List { kind, is_whole }),
        ]
    }

    /// Version 3 of a Service has nothing to serve.
    fn raw(kind: Kind, place: usize, version: u8) -> Raw {
        let mut metadata = json!({"name": format!("it-{place}"), "uid": format!("{place}")});
        if kind != Kind::Node {
            metadata["namespace"] = json!("default");
        }
        let address = format!("10.{}.{version}.{}", kind as u8, place + 1);
        let object = match kind {
            Kind::Node => {
                json!({"metadata": metadata, "spec": {"podCIDR": format!("10.244.{place}.0/24")}, "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
            }
            Kind::Service => {
                let ip = if version == 3 { "None" } else { &address };
                json!({"metadata": metadata, "spec": {"type": "ClusterIP", "clusterIP": ip, "ports": [{"port": 80}]}})
            }
            _ => {
                // A slice may come to belong to another Service.
                metadata["labels"] =
                    json!({"kubernetes.io/service-name": format!("it-{}", (place + usize::from(version)) % PLACES)});
                json!({"metadata": metadata, "addressType": "IPv4", "endpoints": [{"addresses": [address]}], "ports": []})
            }
        };
        serde_json::from_str(&object.to_string()).unwrap()
    }

    type Alive = BTreeMap<(Kind, usize), u8>;

    fn list(objects: &mut Objects, kind: Kind, alive: &Alive, changes: &mut Changes) {
        objects.begin_list(kind);
        for (&(_, place), &version) in alive.iter().filter(|((of, _), _)| *of == kind) {
            objects.put(kind, &raw(kind, place, version), changes);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_way_the_model_is_what_there_is(happenings in vec(happening(), 0..40)) {
            let mut objects = Objects::default();
            let mut alive = Alive::new();
            let mut changes = Changes::default();
            for kind in KINDS {
                list(&mut objects, kind, &alive, &mut changes);
                objects.end_list(kind, &mut changes);
            }
            for happening in happenings {
                match happening {
                    Happening::Put { kind, place, version } => {
                        alive.insert((kind, place), version);
                        objects.put(kind, &raw(kind, place, version), &mut changes);
                    }
                    Happening::Delete { kind, place } => {
                        alive.remove(&(kind, place));
                        objects.remove(kind, &raw(kind, place, 0), &mut changes);
                    }
                    Happening::List { kind, is_whole } => {
                        let before = objects.model.clone();
                        let mut own = Changes::default();
                        list(&mut objects, kind, &alive, &mut own);
                        if is_whole {
                            objects.end_list(kind, &mut own);
                        }
                        prop_assert!(own.is_empty(), "what was known already is no change: {own:?}");
                        prop_assert_eq!(&objects.model, &before);
                    }
                }
            }
            let mut fresh = Objects::default();
            for kind in KINDS {
                list(&mut fresh, kind, &alive, &mut changes);
                fresh.end_list(kind, &mut changes);
                prop_assert_eq!(objects.count(kind), fresh.count(kind));
            }
            prop_assert_eq!(objects.model, fresh.model);
        }

        #[test]
        fn missed_deletions_are_made_up_for(before in vec((0..3usize, 0..PLACES, 0..4u8), 0..12), after in vec((0..3usize, 0..PLACES, 0..4u8), 0..12)) {
            let gather = |given: Vec<(usize, usize, u8)>| -> Alive {
                given.into_iter().map(|(kind, place, version)| ((KINDS[kind], place), version)).collect()
            };
            let (before, after) = (gather(before), gather(after));
            let mut objects = Objects::default();
            let mut fresh = Objects::default();
            let mut changes = Changes::default();
            for kind in KINDS {
                for state in [&before, &after] {
                    list(&mut objects, kind, state, &mut changes);
                    objects.end_list(kind, &mut changes);
                }
                list(&mut fresh, kind, &after, &mut changes);
                fresh.end_list(kind, &mut changes);
            }
            prop_assert_eq!(objects.model, fresh.model);
        }

        #[test]
        fn no_text_panics(kind in prop::sample::select(&KINDS[..]), text in "\\PC{0,40}") {
            let mut objects = Objects::default();
            if let Ok(raw) = serde_json::from_str::<Raw>(&text) {
                objects.put(kind, &raw, &mut Changes::default());
            }
            let wrapped: Raw = serde_json::from_str(&json!({"metadata": {"name": text}, "spec": text}).to_string()).unwrap();
            objects.put(kind, &wrapped, &mut Changes::default());
            objects.remove(kind, &wrapped, &mut Changes::default());
        }
    }
}
