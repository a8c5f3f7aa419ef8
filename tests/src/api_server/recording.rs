//! What a real server sent, sent again: the recordings in `tests/fixtures/`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{ApiServer, resource::Resource};

/// The watch events of a recording, of all resources, in the order of their versions.
#[derive(Debug)]
pub struct Recording {
    /// Where the streams began: the objects that were there.
    initial: Vec<Event>,
    /// What happened then.
    live: Vec<Event>,
}

#[derive(Clone, Debug)]
struct Event {
    version: u64,
    resource: Resource,
    kind: String,
    object: Value,
}

impl Recording {
    /// Reads `watch-RESOURCE.jsonl` of each resource that is there.
    ///
    /// # Errors
    /// A file is no recording.
    pub fn read(dir: &Path) -> Result<Self> {
        let (mut initial, mut live) = (Vec::new(), Vec::new());
        for resource in Resource::ALL {
            let path = dir.join(format!("watch-{}.jsonl", resource.plural()));
            if !path.exists() {
                continue;
            }
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let mut has_begun = false;
            for line in text.lines().filter(|line| !line.is_empty()) {
                let event = Event::read(resource, line).with_context(|| format!("in {}", path.display()))?;
                let is_bookmark = event.kind == "BOOKMARK";
                if has_begun {
                    live.push(event)
                } else {
                    initial.push(event)
                }
                has_begun |= is_bookmark;
            }
        }
        initial.sort_by_key(|event| event.version);
        // Bookmarks come after the change whose version they carry.
        live.sort_by_key(|event| (event.version, event.kind == "BOOKMARK"));
        Ok(Self { initial, live })
    }

    /// The objects that were there when the recording began.
    #[must_use]
    pub fn at_first(&self) -> Vec<Value> {
        self.objects(0)
    }

    /// The objects that are there after so many of the live events.
    #[must_use]
    pub fn objects(&self, live: usize) -> Vec<Value> {
        let mut objects: Vec<(&Event, &str)> = Vec::new();
        for event in self.initial.iter().chain(&self.live[..live]).filter(|event| event.kind != "BOOKMARK") {
            let uid = event.object["metadata"]["uid"].as_str().unwrap_or_default();
            objects.retain(|(_, known)| *known != uid);
            if event.kind != "DELETED" {
                objects.push((event, uid));
            }
        }
        objects.into_iter().map(|(event, _)| event.object.clone()).collect()
    }

    /// How many live events had happened by a version.
    #[must_use]
    pub fn until(&self, version: u64) -> usize {
        self.live.partition_point(|event| event.version <= version)
    }

    /// How many live events there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether nothing happened.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }
}

impl Event {
    fn read(resource: Resource, line: &str) -> Result<Self> {
        let mut event: Value = serde_json::from_str(line)?;
        let kind = event["type"].as_str().context("an event has no type")?.to_owned();
        let object = event["object"].take();
        let version = object["metadata"]["resourceVersion"].as_str().context("an object has no version")?.parse()?;
        Ok(Self { version, resource, kind, object })
    }
}

impl ApiServer {
    /// Holds what was there when the recording began.
    pub fn begin(&self, recording: &Recording) {
        recording.initial.iter().for_each(|event| self.happen(event));
    }

    /// Lets the live events of the recording happen from one to another.
    pub fn replay(&self, recording: &Recording, from: usize, to: usize) {
        recording.live[from..to].iter().for_each(|event| self.happen(event));
    }

    fn happen(&self, event: &Event) {
        let mut state = self.shared.lock();
        let text = |field: &str| event.object["metadata"][field].as_str().unwrap_or_default();
        let version = state.store.of_recorded(event.version);
        match event.kind.as_str() {
            "BOOKMARK" => {
                state.store.advance(version);
                let version = state.store.version();
                state.store.watchers.bookmark(version);
            }
            "DELETED" => {
                state.store.delete(event.resource, text("namespace"), text("name"), Some(version));
            }
            _ => {
                state.store.keep(event.resource, event.object.clone(), version);
            }
        }
    }
}
