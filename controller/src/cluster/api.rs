//! Cluster state from an API server: every kind listed and watched, each object translated as it comes, nothing of it kept but what the
//! model holds.
//!
//! What was heard stays in force whatever becomes of the server. A list withdraws what it does not name only once it is whole.

mod client;
mod follow;
mod line;
mod objects;
mod pace;
mod raw;

use std::{collections::BTreeMap, fmt, sync::Arc, task::Poll, time::Duration};

use futures::{
    StreamExt as _, poll,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Client,
    runtime::watcher::{Error, Event},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

pub(super) use self::client::{in_cluster, of_kubeconfig};
pub(crate) use self::pace::paced;
pub use self::{
    client::ConnectError,
    line::{Failure, Reception, Receptions},
};
use self::{line::Line, objects::Objects, raw::Raw};
use super::{kind::Kind, store::Counts};
use crate::{
    model::{Changes, Model},
    problem::Problem,
};

/// What is watched.
const KINDS: [Kind; 3] = [Kind::Node, Kind::Service, Kind::EndpointSlice];

/// Events that are handed on together at most, so that none waits long for those behind it.
const BATCH: usize = 1024;

/// What is heard of a kind.
type Heard = (Kind, Result<Event<Raw>, Error>);

/// For a first list, before it is told of that it is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Cluster state from an API server.
pub struct ApiSource {
    objects: Objects,
    lines: BTreeMap<Kind, Arc<Line>>,
    events: SelectAll<BoxStream<'static, Heard>>,
    /// A failure came or went.
    news: Arc<Notify>,
    /// Until when first lists are waited for in silence; `None` after that.
    patience: Option<Instant>,
}

impl fmt::Debug for ApiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiSource").field("objects", &self.objects).field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl ApiSource {
    /// Nothing is asked for before [`Self::next`] is called.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        let news = Arc::new(Notify::new());
        let lines: BTreeMap<Kind, Arc<Line>> = KINDS.into_iter().map(|kind| (kind, Line::new(kind, news.clone()))).collect();
        let events =
            lines.iter().map(|(&kind, line)| follow::follow(kind, line.tap(client)).map(move |event| (kind, event)).boxed());
        Self { objects: Objects::default(), events: events.collect(), lines, news, patience: Some(Instant::now() + PATIENCE) }
    }

    /// The cluster as last heard of; half of it until [`Self::is_complete`].
    #[must_use]
    pub fn model(&self) -> &Model {
        self.objects.model()
    }

    /// Whether every kind was heard of in whole once.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lines.values().all(|line| line.reception().is_complete)
    }

    /// What is refused at present.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.objects.problems()
    }

    /// What is accepted but has not the effect that one might expect.
    #[must_use]
    pub fn notices(&self) -> Vec<Problem> {
        self.objects.notices()
    }

    /// Changes whenever problems or notices do.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.objects.revision()
    }

    /// How many valid objects there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            nodes: self.objects.count(Kind::Node),
            services: self.objects.count(Kind::Service),
            endpoint_slices: self.objects.count(Kind::EndpointSlice),
            ..Counts::default()
        }
    }

    /// How each kind comes in.
    #[must_use]
    pub fn receptions(&self) -> Vec<Reception> {
        self.lines.values().map(|line| line.reception()).collect()
    }

    /// The same for those who look beside this.
    #[must_use]
    pub fn watch_receptions(&self) -> Receptions {
        Receptions(self.lines.values().cloned().collect())
    }

    /// Why what is in force may not be what the cluster is, if that is so.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let receptions = self.receptions();
        let mut parts = Vec::new();
        let has_failed = receptions.iter().any(|it| it.failure.is_some());
        let missing: Vec<&str> = receptions.iter().filter(|it| !it.is_complete).map(|it| it.kind.resource()).collect();
        if !missing.is_empty() && (has_failed || self.patience.is_none()) {
            parts.push(format!("waiting for the API server's first list of {}; nothing is changed before", missing.join(", ")));
        }
        // Kinds that fail alike are told of once, with the time of the first.
        let mut failures: BTreeMap<&str, Timestamp> = BTreeMap::new();
        for failure in receptions.iter().filter_map(|it| it.failure.as_ref()) {
            let since = Timestamp::try_from(failure.since).unwrap_or_default();
            failures.entry(&failure.message).and_modify(|first| *first = since.min(*first)).or_insert(since);
        }
        parts.extend(failures.iter().map(|(message, since)| format!("{message} (since {since:.0})")));
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Waits until something is heard, takes with it what is there already, and says what that changed in the model: maybe nothing, but
    /// then the problems or the trouble may have. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Changes {
        let mut changes = Changes::default();
        tokio::select! {
            Some((kind, event)) = self.events.next() => self.take(kind, event, &mut changes),
            () = self.news.notified() => {}
            () = sleep_until(self.patience.unwrap_or_else(Instant::now)), if self.patience.is_some() => self.patience = None,
        }
        for _ in 1..BATCH {
            match poll!(self.events.next()) {
                Poll::Ready(Some((kind, event))) => self.take(kind, event, &mut changes),
                _ => break,
            }
        }
        changes
    }

    fn take(&mut self, kind: Kind, event: Result<Event<Raw>, Error>, changes: &mut Changes) {
        let Some(line) = self.lines.get(&kind) else { return };
        match &event {
            Ok(event) => line.read(event),
            Err(error) => line.failed(error),
        }
        match event {
            Ok(Event::Init) => self.objects.begin_list(kind),
            Ok(Event::InitApply(raw) | Event::Apply(raw)) => self.objects.put(kind, &raw, changes),
            Ok(Event::Delete(raw)) => self.objects.remove(kind, &raw, changes),
            Ok(Event::InitDone) => self.objects.end_list(kind, changes),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
