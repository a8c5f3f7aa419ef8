//! The way to the API server, for one kind: how it goes, heard at the requests themselves. A watch on which nothing happens tells its
//! reader nothing, not even that it stands again after an outage.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use http_body_util::BodyExt as _;
use hyper::Request;
use kube::{
    Client,
    client::Body,
    runtime::watcher::{Error, Event},
};
use tokio::sync::Notify;

use super::{
    pace::{self, WatchPace},
    raw::Raw,
};
use crate::{cluster::kind::Kind, problem::with_causes};

/// How API servers begin a bookmark.
const BOOKMARK: &[u8] = br#"{"type":"BOOKMARK""#;

/// How objects of one kind come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reception {
    /// The kind.
    pub kind: Kind,
    /// Whether all there are have been heard of once.
    pub is_complete: bool,
    /// What is wrong at present.
    pub failure: Option<Failure>,
    /// When the server last said anything: an answer, an event, a bookmark.
    pub heard_at: Option<SystemTime>,
    /// Objects that came, changed or went, those of lists included.
    pub events: u64,
    /// Lists read to their end.
    pub lists: u64,
    /// Requests for a list or watch, answered or not.
    pub requests: u64,
    /// Requests and streams that failed.
    pub failures: u64,
    /// Those of them that the server refused, by status code.
    pub refusals: BTreeMap<u16, u64>,
}

/// How each kind comes in, for those beside whoever follows. Of files there is nothing to tell.
#[derive(Clone, Debug, Default)]
pub struct Receptions(pub(super) Vec<Arc<Line>>);

impl Receptions {
    /// As it is now.
    #[must_use]
    pub fn now(&self) -> Vec<Reception> {
        self.0.iter().map(|line| line.reception()).collect()
    }
}

/// Why nothing comes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Since when nothing has succeeded.
    pub since: SystemTime,
    /// What happens, and what to do.
    pub message: String,
}

/// Both ends of a kind's way: whoever sends requests, and whoever reads what comes.
#[derive(Debug)]
pub(super) struct Line {
    reception: Mutex<Reception>,
    pace: WatchPace,
    /// Told when a failure comes or goes.
    news: Arc<Notify>,
}

impl Line {
    pub(super) fn new(kind: Kind, news: Arc<Notify>) -> Arc<Self> {
        let reception = Reception {
            kind,
            is_complete: false,
            failure: None,
            heard_at: None,
            events: 0,
            lists: 0,
            requests: 0,
            failures: 0,
            refusals: BTreeMap::new(),
        };
        Arc::new(Self { reception: Mutex::new(reception), pace: WatchPace::default(), news })
    }

    pub(super) fn reception(&self) -> Reception {
        self.lock().clone()
    }

    /// The client, its requests heard here.
    pub(super) fn tap(self: &Arc<Self>, client: &Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let (line, client) = (self.clone(), client.clone());
        let send = move |request: Request<Body>| {
            let (line, client) = (line.clone(), client.clone());
            async move {
                let is_watch = pace::is_watch(&request);
                if is_watch {
                    line.pace.wait().await;
                }
                line.lock().requests += 1;
                let response = client.send(request).await?;
                if response.status().is_success() {
                    line.answered(is_watch);
                }
                Ok::<_, kube::Error>(response.map(|body| {
                    body.map_frame(move |frame| {
                        line.heard(frame.data_ref().map(|data| &data[..]));
                        frame
                    })
                }))
            }
        };
        Client::new(tower::service_fn(send), namespace)
    }

    /// Something was read from a list or watch. A stream may go on after what could not be read of it: then this mends that.
    pub(super) fn read(&self, event: &Event<Raw>) {
        let reception = &mut *self.lock();
        match event {
            // Said before anything is asked for.
            Event::Init => return,
            Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => reception.events += 1,
            Event::InitDone => {
                reception.is_complete = true;
                reception.lists += 1;
            }
        }
        self.mend(reception);
    }

    /// Part of an answer came. A bookmark is seen here alone, for the watcher hands none on; servers send each by itself.
    fn heard(&self, part: Option<&[u8]>) {
        let reception = &mut *self.lock();
        reception.heard_at = Some(SystemTime::now());
        if part.is_some_and(|part| part.starts_with(BOOKMARK)) {
            self.mend(reception);
        }
    }

    fn mend(&self, reception: &mut Reception) {
        if reception.failure.take().is_some() {
            self.news.notify_one();
        }
    }

    pub(super) fn failed(&self, error: &Error) {
        let reception = &mut *self.lock();
        reception.failures += 1;
        if let Some(status) = status(error) {
            *reception.refusals.entry(status.code).or_default() += 1;
        }
        let message = explain(reception.kind, error);
        if reception.failure.as_ref().is_none_or(|before| before.message != message) {
            tracing::debug!(kind = reception.kind.name(), "{}", with_causes(error));
            let since = reception.failure.as_ref().map_or_else(SystemTime::now, |before| before.since);
            reception.failure = Some(Failure { since, message });
            self.news.notify_one();
        }
    }

    fn answered(&self, is_watch: bool) {
        if is_watch {
            self.pace.begin();
        }
        let reception = &mut *self.lock();
        reception.heard_at = Some(SystemTime::now());
        self.mend(reception);
    }

    fn lock(&self) -> MutexGuard<'_, Reception> {
        // Whatever panicked beside it, each field alone is sound.
        self.reception.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The status that the API server refuses something with.
pub(super) fn status(error: &Error) -> Option<&kube::core::Status> {
    match error {
        Error::WatchError(status) => Some(status),
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        _ => None,
    }
}

fn explain(kind: Kind, error: &Error) -> String {
    let resource = kind.resource();
    match status(error) {
        Some(status) if status.code == 401 => {
            format!(
                "the API server does not accept the agent's credentials ({}); renew its token or certificate",
                status.message
            )
        }
        Some(status) if status.code == 403 => {
            format!("{}; grant the agent's account the verbs list and watch on {resource}", status.message)
        }
        // The client takes any JSON for a status that is no event.
        Some(status) if status.code == 0 && status.message.is_empty() => {
            format!("the API server sends for {resource} what is no watch event; the objects in it are not followed")
        }
        Some(status) => format!("the API server refuses {resource}: {} ({} {})", status.message, status.code, status.reason),
        None => match error {
            Error::InitialListFailed(error) | Error::WatchStartFailed(error) => match error {
                kube::Error::Service(error) => format!("the API server is not reached: {}", with_causes(&**error)),
                kube::Error::HyperError(error) => format!("the API server is not reached: {}", with_causes(error)),
                kube::Error::Auth(error) => {
                    format!("the credentials for the API server cannot be used: {}", with_causes(error))
                }
                other => format!("what the API server answers cannot be used: {}", with_causes(other)),
            },
            other => format!("what the API server sends breaks off: {}", with_causes(other)),
        },
    }
}
