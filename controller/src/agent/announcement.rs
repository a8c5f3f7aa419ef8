//! Tells the cluster of this node, beside the loop: annotations and condition of the Node, and Events.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, ObjectReference, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams},
    runtime::{
        events::{Event, EventType, Recorder, Reporter},
        utils::Backoff as _,
        watcher::{self, DefaultBackoff},
    },
};
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, sleep_until, timeout},
};

use super::{
    health::Subject,
    state::{Facts, State},
};
use crate::{
    announce::{
        WRITER,
        news::{About, Chronicle, MAP_FULL, News, Present},
        node,
        pace::Pace,
    },
    cluster,
};

/// Between looks at what there is to tell of while nothing changes: what found no room in the budget comes then.
const LOOK: Duration = Duration::from_secs(10);

/// The longest that one write may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A trouble that is mended within this time is not worth an Event: much of a start is.
const SETTLE: Duration = Duration::from_secs(2);

/// Why the Node could not be written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the Node's annotations and condition cannot be written")]
    Api(#[source] kube::Error),
    #[error("the Node's annotations and condition cannot be written: the API server took more than {} s", PATIENCE.as_secs())]
    Timeout,
}

/// Keeps the annotations and the condition of this node's Node for as long as the agent runs. Followed by a watch of this one object,
/// so that what others make of it is put right at once; how often at most, [`Pace`] says.
pub(super) async fn keep_node(client: Client, name: String, mut facts: watch::Receiver<Facts>, state: Arc<Mutex<State>>) {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut events = pin!(follow(Api::all(cluster::paced(&client)), &name));
    let mut present: Option<Node> = None;
    let mut pace = Pace::default();
    loop {
        let end = facts.borrow_and_update().tunnel_end;
        let wanted = present.as_ref().zip(end).and_then(|(node, end)| node::patch(node, &end, Time(Timestamp::now())));
        let due = wanted.as_ref().and_then(|_| pace.not_before(Instant::now()));
        if let (Some(patch), None) = (&wanted, due) {
            pace.attempt(Instant::now());
            let params = PatchParams { field_manager: Some(WRITER.to_owned()), ..PatchParams::default() };
            let written = timeout(PATIENCE, nodes.patch_status(&name, &params, &Patch::Strategic(patch))).await;
            let outcome = match written {
                Ok(Ok(node)) => {
                    tracing::info!("the Node says where its tunnel end is, and that its network is available");
                    present = Some(node);
                    Ok(())
                }
                Ok(Err(error)) => Err(WriteError::Api(error)),
                Err(_) => Err(WriteError::Timeout),
            };
            state.lock().await.note(Subject::Announcement, &outcome);
            continue;
        }
        if wanted.is_none() && present.is_some() {
            state.lock().await.note(Subject::Announcement, &Ok::<_, WriteError>(()));
        }
        tokio::select! {
            event = events.next() => match event {
                Some(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => {
                    if node.metadata.name.as_deref() == Some(name.as_str()) {
                        present = Some(node);
                    }
                }
                Some(watcher::Event::Delete(_)) => present = None,
                Some(watcher::Event::Init | watcher::Event::InitDone) => {}
                None => return,
            },
            changed = facts.changed() => if changed.is_err() { return },
            () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
        }
    }
}

/// What becomes of this one Node, for ever.
///
/// After a failure all is read anew, which costs one object: kube's watcher would go on asking for what came after a version that the
/// server has forgotten, where the server says so by the status of its answer.
fn follow(nodes: Api<Node>, name: &str) -> impl Stream<Item = watcher::Event<Node>> + use<> {
    let one = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let anew = move || watcher::watcher(nodes.clone(), one.clone()).boxed();
    let first = anew();
    stream::unfold((first, DefaultBackoff::default(), anew), async |(mut events, mut backoff, anew)| {
        loop {
            match events.next().await {
                Some(Ok(event)) => {
                    backoff.reset();
                    return Some((event, (events, backoff, anew)));
                }
                // The source of cluster state tells of an API server in trouble.
                Some(Err(error)) => tracing::debug!(%error, "the Node is not watched for a moment"),
                None => {}
            }
            sleep(backoff.next().unwrap_or(PATIENCE)).await;
            events = anew();
        }
    })
}

/// Writes Events for as long as the agent runs.
pub(super) async fn write_events(client: Client, name: String, mut facts: watch::Receiver<Facts>) {
    let reporter = Reporter { controller: WRITER.to_owned(), instance: Some(name.clone()) };
    let mut chronicle = Chronicle::new(Instant::now());
    loop {
        sleep(SETTLE).await;
        let now = facts.borrow_and_update().clone();
        let troubles: Vec<_> =
            now.reasons.iter().filter_map(|(subject, text)| Some((word(*subject)?, text.as_str()))).collect();
        let is_up = now.tunnel_end.is_some();
        let present = Present { node: &name, nodes: now.nodes, is_up, troubles: &troubles, problems: &now.problems };
        for news in chronicle.follow(&present, Instant::now()) {
            let written = timeout(PATIENCE, write(&client, &name, &reporter, &news)).await;
            if !matches!(written, Ok(Ok(()))) {
                tracing::debug!(reason = news.key.reason, ?written, "an Event is not written");
                chronicle.untold(&news.key);
            }
        }
        if matches!(timeout(LOOK, facts.changed()).await, Ok(Err(_))) {
            return;
        }
    }
}

/// The reason of an Event for a trouble of this node; `None` for what is no matter of an Event.
fn word(subject: Subject) -> Option<&'static str> {
    match subject {
        Subject::Dataplane | Subject::Sync => Some("DataplaneDegraded"),
        Subject::Node => Some("NodeUnusable"),
        Subject::PodRange => Some("PodRangeUnusable"),
        Subject::Pods => Some("PodsNotRestored"),
        Subject::Installation => Some("CNINotInstalled"),
        Subject::FlowTable => Some(MAP_FULL),
        Subject::Source
        | Subject::Takeover
        | Subject::Sweeper
        | Subject::Http
        | Subject::ReservedPorts
        | Subject::Announcement => None,
    }
}

async fn write(client: &Client, own: &str, reporter: &Reporter, news: &News) -> Result<(), kube::Error> {
    let reference = match &news.key.about {
        About::OwnNode => reference::<Node>(Api::all(client.clone()), None, own).await?,
        About::Object { kind, namespace, name } => {
            let namespace = Some(namespace.as_str()).filter(|namespace| !namespace.is_empty());
            let (client, within) = (client.clone(), namespace.unwrap_or("default"));
            match kind.as_str() {
                "Node" => reference::<Node>(Api::all(client), None, name).await?,
                "Service" => reference::<Service>(Api::namespaced(client, within), namespace, name).await?,
                "EndpointSlice" => reference::<EndpointSlice>(Api::namespaced(client, within), namespace, name).await?,
                "Pod" => reference::<Pod>(Api::namespaced(client, within), namespace, name).await?,
                "Namespace" => reference::<Namespace>(Api::all(client), None, name).await?,
                _ => reference::<NetworkPolicy>(Api::namespaced(client, within), namespace, name).await?,
            }
        }
    };
    // An object that is gone needs no Event.
    let Some(reference) = reference else { return Ok(()) };
    let event = Event {
        type_: if news.is_warning { EventType::Warning } else { EventType::Normal },
        reason: news.key.reason.to_owned(),
        note: Some(news.note.clone()),
        action: "Programming".to_owned(),
        secondary: None,
    };
    // A recorder that is kept takes what has the same reason and object for the same, and counts it instead of writing the new note. The
    // chronicle knows better.
    Recorder::new(client.clone(), reporter.clone()).publish(&event, &reference).await
}

/// With the uid, by which `kubectl describe` finds an object's Events.
async fn reference<K>(api: Api<K>, namespace: Option<&str>, name: &str) -> Result<Option<ObjectReference>, kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let found = api.get_metadata_opt(name).await?;
    Ok(found.map(|object| ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(name.to_owned()),
        namespace: namespace.map(str::to_owned),
        uid: object.metadata.uid,
        ..ObjectReference::default()
    }))
}
