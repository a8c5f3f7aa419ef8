//! Watches: who is told what, in which form.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::json;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::{
    resource::Resource,
    selector::Selector,
    status::Status,
    store::{Change, Store},
};

/// How many bytes of initial events are sent at once.
const BATCH: usize = 64 << 10;

/// What comes next on a stream.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    /// The connection breaks here.
    Cut,
}

/// Where a watch starts, and what it wants to hear.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) resource: Resource,
    pub(super) selector: Selector,
    /// `None` to begin with what is there.
    pub(super) since: Option<u64>,
    pub(super) initial_events_end: bool,
    pub(super) bookmarks: bool,
}

#[derive(Debug)]
struct Watcher {
    resource: Resource,
    selector: Selector,
    bookmarks: bool,
    pieces: UnboundedSender<Piece>,
}

/// Whoever watches now.
#[derive(Debug, Default)]
pub(super) struct Watchers(Vec<Watcher>);

impl Watchers {
    pub(super) fn tell(&mut self, change: &Change) {
        // Most watchers want all there is, and share one text.
        let mut whole = None;
        self.0.retain(|watcher| {
            if watcher.resource != change.now.resource {
                return !watcher.pieces.is_closed();
            }
            let line = if watcher.selector.takes_all() {
                whole.get_or_insert_with(|| change.line(&watcher.selector)).clone()
            } else {
                change.line(&watcher.selector)
            };
            line.is_none_or(|line| watcher.pieces.send(Piece::Bytes(line)).is_ok())
        });
    }

    /// Sends to every watcher of a resource.
    pub(super) fn send(&mut self, resource: Resource, piece: &Piece) {
        self.0.retain(|watcher| watcher.resource != resource || watcher.pieces.send(piece.clone()).is_ok());
    }

    /// Sends a bookmark to those that want them.
    pub(super) fn bookmark(&mut self, version: u64) {
        self.0.retain(|watcher| {
            let line = || Piece::Bytes(bookmark(watcher.resource, version, false));
            !watcher.bookmarks || watcher.pieces.send(line()).is_ok()
        });
    }

    /// Ends all streams in good order.
    pub(super) fn end(&mut self) {
        self.0.clear();
    }

    /// How many watch a resource.
    pub(super) fn count(&self, resource: Resource) -> usize {
        self.0.iter().filter(|watcher| watcher.resource == resource && !watcher.pieces.is_closed()).count()
    }
}

impl Store {
    /// A stream of what is there, if that is wanted, and of all that follows.
    pub(super) fn watch(&mut self, wanted: Wanted) -> Result<UnboundedReceiver<Piece>, Status> {
        let (pieces, stream) = mpsc::unbounded_channel();
        let Wanted { resource, selector, since, initial_events_end, bookmarks } = wanted;
        let mut batches = Batches { pieces: &pieces, waiting: BytesMut::new() };
        match since {
            None => {
                self.all(resource).filter(|object| selector.takes(object)).for_each(|object| batches.add(object.event("ADDED")))
            }
            Some(version) => {
                let changes = self.since(resource, version).ok_or_else(|| Status::too_old(version, self.forgotten()))?;
                changes.filter_map(|change| change.line(&selector)).for_each(|line| batches.add(line));
            }
        }
        if initial_events_end && bookmarks {
            batches.add(bookmark(resource, self.version(), true));
        }
        batches.send();
        self.watchers.0.push(Watcher { resource, selector, bookmarks, pieces });
        Ok(stream)
    }
}

/// Lines that are sent together.
struct Batches<'a> {
    pieces: &'a UnboundedSender<Piece>,
    waiting: BytesMut,
}

impl Batches<'_> {
    fn add(&mut self, line: Bytes) {
        self.waiting.put(line);
        if self.waiting.len() >= BATCH {
            self.send();
        }
    }

    fn send(&mut self) {
        if !self.waiting.is_empty() {
            // An error only says that the client has left.
            let _ = self.pieces.send(Piece::Bytes(self.waiting.split().freeze()));
        }
    }
}

/// The line that says how far a watch has come. Fields that are always written are there, empty, as a real server's bookmarks have them.
fn bookmark(resource: Resource, version: u64, is_initial_end: bool) -> Bytes {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if is_initial_end {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    let mut object = match resource {
        Resource::Nodes => json!({ "spec": {}, "status": { "daemonEndpoints": { "kubeletEndpoint": { "Port": 0 } } } }),
        Resource::Namespaces => json!({ "spec": {}, "status": {} }),
        Resource::Pods => json!({ "spec": { "containers": null }, "status": {} }),
        Resource::Services => json!({ "spec": {}, "status": { "loadBalancer": {} } }),
        Resource::EndpointSlices => json!({ "addressType": "", "endpoints": null, "ports": null }),
        Resource::NetworkPolicies => json!({ "spec": { "podSelector": {} } }),
        Resource::Events => json!({ "eventTime": null, "regarding": {} }),
    };
    object["kind"] = json!(resource.kind());
    object["apiVersion"] = json!(resource.api_version());
    object["metadata"] = metadata;
    Bytes::from(format!("{}\n", json!({ "type": "BOOKMARK", "object": object })))
}

/// The line that ends a watch that started too early.
pub(super) fn error(status: &Status) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "type": "ERROR", "object": status.body() })))
}
