//! One kind's list and watch, by kube's own watcher, with what it leaves to its user: which way to list, and when to begin anew.

use std::time::Duration;

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    core::ApiResource,
    runtime::{
        utils::Backoff as _,
        watcher::{self, Config, DefaultBackoff, Error, Event, InitialListStrategy, watcher},
    },
};

use super::{line::status, raw::Raw};
use crate::cluster::{convert::NOT_OURS, kind::Kind};

/// Silence in a streamed list after which pages are asked for instead: servers before Kubernetes 1.27 take the request for a plain
/// watch and never say where the list ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every event and failure of a kind, for ever. After a failure comes a pause.
pub(super) fn follow(kind: Kind, client: Client) -> impl Stream<Item = Result<Event<Raw>, Error>> + Send {
    let lists = InitialListStrategy::StreamingList;
    let events = events(kind, &client, &lists);
    let follower = Follower { kind, client, lists, events, is_listing: false, backoff: DefaultBackoff::default(), pause: None };
    stream::unfold(follower, |mut follower| async { Some((follower.next().await, follower)) })
}

type Events = BoxStream<'static, watcher::Result<Event<Raw>>>;

/// A watcher at its beginning.
fn events(kind: Kind, client: &Client, lists: &InitialListStrategy) -> Events {
    let (resource, page_size) = match kind {
        Kind::Service => (ApiResource::erase::<Service>(&()), 500),
        // A page is held in memory, and each of these may be large.
        Kind::EndpointSlice => (ApiResource::erase::<EndpointSlice>(&()), 100),
        _ => (ApiResource::erase::<Node>(&()), 100),
    };
    let config = Config {
        label_selector: (kind != Kind::Node).then(|| NOT_OURS.map(|label| format!("!{label}")).join(",")),
        initial_list_strategy: lists.clone(),
        page_size: Some(page_size),
        ..Config::default()
    };
    watcher(Api::all_with(client.clone(), &resource), config).boxed()
}

struct Follower {
    kind: Kind,
    client: Client,
    lists: InitialListStrategy,
    events: Events,
    /// Between the beginning and the end of a list.
    is_listing: bool,
    backoff: DefaultBackoff,
    pause: Option<Duration>,
}

impl Follower {
    fn restart(&mut self, lists: InitialListStrategy) {
        self.events = events(self.kind, &self.client, &lists);
        self.lists = lists;
        self.is_listing = false;
    }

    async fn next(&mut self) -> Result<Event<Raw>, Error> {
        let is_streamed = |lists: &InitialListStrategy| *lists == InitialListStrategy::StreamingList;
        loop {
            if let Some(pause) = self.pause.take() {
                tokio::time::sleep(pause).await;
            }
            let next = if self.is_listing && is_streamed(&self.lists) {
                tokio::time::timeout(PATIENCE, self.events.next()).await
            } else {
                Ok(self.events.next().await)
            };
            match next {
                Ok(Some(Ok(event))) => {
                    match &event {
                        Event::Init => self.is_listing = true,
                        Event::InitDone => self.is_listing = false,
                        Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
                    }
                    self.backoff.reset();
                    return Ok(event);
                }
                Ok(Some(Err(error))) => match status(&error).map(|status| status.code) {
                    Some(400 | 422) if is_streamed(&self.lists) => {
                        tracing::info!(kind = self.kind.name(), "the API server streams no lists: they are read in pages");
                        self.restart(InitialListStrategy::ListWatch);
                    }
                    Some(410) => {
                        tracing::info!(
                            kind = self.kind.name(),
                            "the API server has forgotten what was read last: all is read anew"
                        );
                        self.pause = self.backoff.next();
                        self.restart(self.lists.clone());
                    }
                    _ => {
                        self.pause = self.backoff.next();
                        return Err(error);
                    }
                },
                Ok(None) => self.restart(self.lists.clone()),
                Err(_) => {
                    tracing::info!(kind = self.kind.name(), "the API server's streamed list has no end: it is read in pages");
                    self.restart(InitialListStrategy::ListWatch);
                }
            }
        }
    }
}
