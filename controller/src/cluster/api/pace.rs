//! No watch follows another at once: an API server, or what stands before it, may end each as soon as it has begun, and kube's watcher asks
//! for the next one without a pause, since nothing has failed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::Request;
use kube::{Client, client::Body};
use tokio::time::{Instant, sleep_until};

/// A watch that ends sooner than this is not followed by another before.
const SHORTEST_WATCH: Duration = Duration::from_secs(1);

/// When the last watch of some objects began.
#[derive(Debug, Default)]
pub(super) struct WatchPace(Mutex<Option<Instant>>);

impl WatchPace {
    /// Waits until there may be another watch.
    pub(super) async fn wait(&self) {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = last {
            sleep_until(last + SHORTEST_WATCH).await;
        }
    }

    /// The server has answered: a watch begins.
    pub(super) fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

/// Whether a request asks for a watch.
pub(super) fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"))
}

/// A client for one watcher, its watches paced as those of the cluster's state are.
pub(crate) fn paced(client: &Client) -> Client {
    let (pace, namespace) = (Arc::new(WatchPace::default()), client.default_namespace().to_owned());
    let client = client.clone();
    let send = move |request: Request<Body>| {
        let (pace, client) = (pace.clone(), client.clone());
        async move {
            let is_watch = is_watch(&request);
            if is_watch {
                pace.wait().await;
            }
            let response = client.send(request).await?;
            if is_watch && response.status().is_success() {
                pace.begin();
            }
            Ok::<_, kube::Error>(response)
        }
    };
    Client::new(tower::service_fn(send), namespace)
}
