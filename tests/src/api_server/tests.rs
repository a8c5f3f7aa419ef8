mod recordings;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::{Stream, StreamExt as _, stream::BoxStream};
use http_body_util::BodyExt as _;
use hyper::Request;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    events::v1::Event as KubernetesEvent,
};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// Nothing here takes as long unless it is broken.
const SOON: Duration = Duration::from_secs(10);

struct Scene {
    server: ApiServer,
    client: Client,
    dir: TempDir,
}

async fn scene(transport: Transport) -> Result<Scene> {
    let server = ApiServer::local(transport)?;
    let dir = tempfile::tempdir()?;
    let client = connect(&server.kubeconfig(dir.path())?).await?;
    Ok(Scene { server, client, dir })
}

/// One that shows what it is told, without trying again behind our back.
async fn connect(kubeconfig: &Path) -> Result<Client> {
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &options).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "clusterIP": "10.96.0.1", "ports": [{ "port": port }] },
    })
}

/// The code and body of a plain request.
async fn get(client: &Client, path: &str) -> Result<(u16, Value)> {
    let response = client.send(Request::get(path).body(Body::empty())?).await?;
    let code = response.status().as_u16();
    Ok((code, serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?))
}

/// What a client that follows Services holds: names, with their port.
struct Follower<S> {
    events: S,
    fresh: BTreeMap<String, i32>,
    held: BTreeMap<String, i32>,
    lists: u32,
    errors: Vec<String>,
}

fn follow(client: &Client, config: watcher::Config) -> Follower<BoxStream<'static, watcher::Result<Event<Service>>>> {
    let events = watcher(Api::<Service>::all(client.clone()), config).boxed();
    Follower { events, fresh: BTreeMap::new(), held: BTreeMap::new(), lists: 0, errors: Vec::new() }
}

impl<S: Stream<Item = watcher::Result<Event<Service>>> + Unpin> Follower<S> {
    async fn step(&mut self) -> Result<()> {
        let entry = |it: &Service| {
            let port = it.spec.as_ref().and_then(|spec| spec.ports.as_ref()?.first().map(|port| port.port));
            (it.metadata.name.clone().unwrap_or_default(), port.unwrap_or_default())
        };
        match self.events.next().await.context("the watcher ended")? {
            Ok(Event::Init) => self.fresh.clear(),
            Ok(Event::InitApply(it)) => self.fresh.extend([entry(&it)]),
            Ok(Event::InitDone) => {
                self.held = std::mem::take(&mut self.fresh);
                self.lists += 1;
            }
            Ok(Event::Apply(it)) => self.held.extend([entry(&it)]),
            Ok(Event::Delete(it)) => drop(self.held.remove(&entry(&it).0)),
            Err(error) => {
                self.errors.push(format!("{error:?}"));
                // The watcher leaves it to us to be patient.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    async fn until(&mut self, expected: &[(&str, i32)]) -> Result<()> {
        let expected: BTreeMap<_, _> = expected.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        let arrived = tokio::time::timeout(SOON, async {
            while self.held != expected {
                self.step().await?;
            }
            anyhow::Ok(())
        });
        let outcome = arrived.await.unwrap_or_else(|_| Err(anyhow::anyhow!("not in time")));
        outcome.with_context(|| format!("wanted {expected:?}, held {:?}, errors {:?}", self.held, self.errors))
    }

    async fn until_listed(&mut self, lists: u32) -> Result<()> {
        let arrived = tokio::time::timeout(SOON, async {
            while self.lists < lists {
                self.step().await?;
            }
            anyhow::Ok(())
        });
        arrived.await.with_context(|| format!("{} lists instead of {lists}, errors {:?}", self.lists, self.errors))?
    }
}

#[tokio::test]
async fn changes_are_followed_by_either_way_of_listing() -> Result<()> {
    for transport in [Transport::Tls, Transport::Plain] {
        let Scene { server, client, dir: _dir } = scene(transport).await?;
        server.put(&service("a", 1))?;
        let mut streaming = follow(&client, watcher::Config::default().streaming_lists());
        let mut listing = follow(&client, watcher::Config::default().page_size(1));
        for follower in [&mut streaming, &mut listing] {
            follower.until(&[("a", 1)]).await?;
        }
        server.put(&service("b", 1))?;
        server.put(&service("a", 2))?;
        for follower in [&mut streaming, &mut listing] {
            follower.until(&[("a", 2), ("b", 1)]).await?;
        }
        server.delete(Resource::Services, "default", "a");
        server.end_streams();
        server.put(&service("c", 3))?;
        for follower in [&mut streaming, &mut listing] {
            follower.until(&[("b", 1), ("c", 3)]).await?;
            assert_eq!((follower.lists, &follower.errors), (1, &vec![]), "an ended stream is resumed, not listed again");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_forgotten_version_is_gone() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    server.put(&service("a", 1))?;
    let mut follower = follow(&client, watcher::Config::default().streaming_lists());
    follower.until(&[("a", 1)]).await?;
    server.delete(Resource::Services, "default", "a");
    server.put(&service("b", 1))?;
    follower.until(&[("b", 1)]).await?;
    server.put(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "elsewhere" } }))?;
    server.compact();
    server.end_streams();
    follower.until_listed(2).await?;
    follower.until(&[("b", 1)]).await?;
    ensure!(follower.errors.iter().any(|error| error.contains("410")), "{:?}", follower.errors);

    server.trouble(|trouble| trouble.expired = Expired::AsStatus);
    let (code, body) = get(&client, "/api/v1/services?watch=1&resourceVersion=1").await?;
    assert_eq!((code, body["reason"].as_str()), (410, Some("Expired")));
    Ok(())
}

#[tokio::test]
async fn a_bookmark_carries_a_quiet_watch_over_a_compaction() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    server.put(&service("a", 1))?;
    let mut events = Box::pin(Api::<Service>::all(client).watch(&WatchParams::default(), "1").await?);
    server.put(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "elsewhere" } }))?;
    server.bookmark();
    let Some(Ok(WatchEvent::Bookmark(bookmark))) = events.next().await else { panic!("no bookmark") };
    assert_eq!(bookmark.metadata.resource_version, "2");
    Ok(())
}

#[tokio::test]
async fn servers_without_streaming_lists() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    server.put(&service("a", 1))?;
    let path = "/api/v1/services?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    server.trouble(|trouble| trouble.streaming_lists = StreamingLists::Forbidden);
    let (code, body) = get(&client, path).await?;
    assert_eq!((code, body["reason"].as_str()), (422, Some("Invalid")));

    server.trouble(|trouble| trouble.streaming_lists = StreamingLists::Unknown);
    // Objects, but no bookmark that ends them: the stream ends instead, by its timeout.
    let response = client.send(Request::get(format!("{path}&timeoutSeconds=0")).body(Body::empty())?).await?;
    let text = String::from_utf8(response.into_body().collect().await?.to_bytes().to_vec())?;
    ensure!(text.lines().count() <= 1 && !text.contains("BOOKMARK"), "{text}");

    server.trouble(|trouble| trouble.streaming_lists = StreamingLists::Served);
    let (code, body) = get(&client, "/api/v1/services?watch=1&sendInitialEvents=true").await?;
    assert_eq!((code, body["reason"].as_str()), (422, Some("Invalid")), "resourceVersionMatch is missing");
    Ok(())
}

#[tokio::test]
async fn lists_come_in_pages_of_one_snapshot() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    (0..5).try_for_each(|number| server.put(&service(&format!("s{number}"), 1)))?;
    let services = Api::<Service>::all(client.clone());
    let first = services.list(&ListParams::default().limit(2)).await?;
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));
    let token = first.metadata.continue_.context("no token")?;
    // What happens between two pages is in neither.
    server.delete(Resource::Services, "default", "s2");
    server.put(&service("s3", 2))?;
    server.put(&service("s9", 1))?;
    let rest = services.list(&ListParams::default().continue_token(&token)).await?;
    let names: Vec<_> = rest.items.iter().filter_map(|it| it.metadata.name.as_deref()).collect();
    assert_eq!(names, ["s2", "s3", "s4"]);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);

    server.compact();
    let (code, body) = get(&client, &format!("/api/v1/services?limit=2&continue={token}")).await?;
    assert_eq!((code, body["reason"].as_str()), (410, Some("Expired")));
    let token = body["metadata"]["continue"].as_str().context("no other token")?;
    let rest = services.list(&ListParams::default().continue_token(token)).await?;
    assert_eq!(rest.items.len(), 3, "s3, s4 and s9 as they are now");

    let (code, _) = get(&client, "/api/v1/services?resourceVersion=1&resourceVersionMatch=Exact").await?;
    assert_eq!(code, 410);
    let (code, body) = get(&client, "/api/v1/services?resourceVersion=999").await?;
    assert_eq!((code, body["details"]["causes"][0]["reason"].as_str()), (504, Some("ResourceVersionTooLarge")));
    Ok(())
}

#[tokio::test]
async fn objects_are_written() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    let nodes = Api::<Node>::all(client.clone());
    let node = serde_json::from_value(json!({ "metadata": { "name": "n1" }, "spec": { "podCIDR": "10.0.0.0/24" } }))?;
    let created = nodes.create(&PostParams::default(), &node).await?;
    ensure!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
    let again = nodes.create(&PostParams::default(), &node).await;
    assert!(matches!(again, Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists"));

    let annotated = json!({ "metadata": { "annotations": { "a": "1" } }, "status": { "phase": "ignored here" } });
    let patched = nodes.patch("n1", &PatchParams::default(), &Patch::Merge(annotated)).await?;
    ensure!(patched.metadata.annotations.is_some_and(|all| all["a"] == "1") && patched.status.is_none());
    let condition = json!({ "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] }, "spec": { "podCIDR": "x" } });
    let patched = nodes.patch_status("n1", &PatchParams::default(), &Patch::Strategic(condition)).await?;
    assert_eq!(patched.spec.and_then(|spec| spec.pod_cidr).as_deref(), Some("10.0.0.0/24"));
    assert_eq!(patched.status.and_then(|status| status.conditions).map(|all| all.len()), Some(1));

    let same = nodes
        .patch("n1", &PatchParams::default(), &Patch::Merge(json!({ "metadata": { "annotations": { "a": "1" } } })))
        .await?;
    assert_eq!(same.metadata.resource_version, patched.metadata.resource_version, "nothing changed");
    let stale = nodes.replace("n1", &PostParams::default(), &created).await;
    assert!(matches!(stale, Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "Conflict"));

    let services = Api::<Service>::namespaced(client.clone(), "default");
    services.create(&PostParams::default(), &serde_json::from_value(service("a", 1))?).await?;
    let uid = services.get("a").await?.metadata.uid;
    services.delete("a", &DeleteParams::default()).await?;
    assert!(services.get_opt("a").await?.is_none());
    server.put(&service("a", 1))?;
    ensure!(services.get("a").await?.metadata.uid != uid, "another object by the same name");

    let event = json!({ "metadata": { "generateName": "e-" }, "eventTime": null, "reason": "Tested" });
    Api::<KubernetesEvent>::namespaced(client, "default")
        .create(&PostParams::default(), &serde_json::from_value(event)?)
        .await?;
    assert_eq!(server.all(Resource::Events)[0]["reason"], "Tested");
    let verbs: Vec<_> = server.requests().iter().map(|seen| seen.verb).collect();
    assert_eq!(verbs[..4], ["create", "create", "patch", "patch"]);
    Ok(())
}

#[tokio::test]
async fn selectors_hold_in_lists_and_watches() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    server.put(&service("a", 1))?;
    server.put(&service("b", 1))?;
    let mut follower = follow(&client, watcher::Config::default().labels("app=a").streaming_lists());
    follower.until(&[("a", 1)]).await?;
    // Out of sight is deleted, into sight is added.
    let relabelled = |name: &str, label: &str| {
        let mut changed = service(name, 1);
        changed["metadata"]["labels"]["app"] = json!(label);
        changed
    };
    server.put(&relabelled("a", "z"))?;
    server.put(&relabelled("b", "a"))?;
    follower.until(&[("b", 1)]).await
}

#[tokio::test]
async fn a_broken_or_slow_stream_is_resumed() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Tls).await?;
    server.put(&service("a", 1))?;
    let mut follower = follow(&client, watcher::Config::default().streaming_lists());
    follower.until(&[("a", 1)]).await?;
    server.cut_streams(Resource::Services);
    server.put(&service("a", 2))?;
    follower.until(&[("a", 2)]).await?;
    server.send_line(Resource::Services, "}{ rubbish");
    server.put(&service("a", 3))?;
    follower.until(&[("a", 3)]).await?;
    ensure!(!follower.errors.is_empty(), "rubbish is an error");
    server.trouble(|trouble| {
        trouble.answer_after = Duration::from_millis(20);
        trouble.trickle = Some((40, Duration::from_millis(1)));
    });
    server.end_streams();
    server.put(&service("a", 4))?;
    follower.until(&[("a", 4)]).await?;
    assert_eq!(server.watchers(Resource::Services), 1);
    assert_eq!(server.watchers(Resource::Nodes), 0);
    Ok(())
}

#[tokio::test]
async fn a_dead_server_comes_back() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Tls).await?;
    server.put(&service("a", 1))?;
    let mut follower = follow(&client, watcher::Config::default().streaming_lists());
    follower.until(&[("a", 1)]).await?;
    server.down();
    ensure!(get(&client, "/api/v1/services").await.is_err(), "nobody answers");
    server.put(&service("a", 2))?;
    server.up()?;
    follower.until(&[("a", 2)]).await
}

#[tokio::test]
async fn overload_and_faults_are_passing() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    server.trouble(|trouble| {
        trouble.too_many_requests = (1, Duration::from_secs(7));
        trouble.internal_errors = 1;
    });
    let response = client.send(Request::get("/api/v1/nodes").body(Body::empty())?).await?;
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str()?), (429, "7"));
    let mut codes = Vec::new();
    for _ in 0..2 {
        codes.push(get(&client, "/api/v1/nodes").await?.0);
    }
    assert_eq!(codes, [500, 200]);
    Ok(())
}

#[tokio::test]
async fn a_rotated_token_is_good() -> Result<()> {
    let Scene { server, client, dir } = scene(Transport::Plain).await?;
    assert_eq!(get(&client, "/api/v1/nodes").await?.0, 200);
    server.expire_token();
    assert_eq!(get(&client, "/api/v1/nodes").await?.0, 401);
    server.rotate_token()?;
    let reader = connect(&dir.path().join("kubeconfig")).await?;
    assert_eq!(get(&reader, "/api/v1/nodes").await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn a_huge_list_is_served() -> Result<()> {
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    let slice = |number: usize| {
        let endpoints: Vec<_> =
            (0..100).map(|host| json!({ "addresses": [format!("10.0.{}.{host}", number % 256)] })).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": { "name": format!("s{number}") },
            "addressType": "IPv4", "endpoints": endpoints,
        })
    };
    (0..2000).try_for_each(|number| server.put(&slice(number)))?;
    let slices = Api::<EndpointSlice>::all(client);
    assert_eq!(slices.list(&ListParams::default()).await?.items.len(), 2000);
    let mut events = watcher(slices, watcher::Config::default().streaming_lists()).boxed();
    let mut count = 0;
    while !matches!(events.next().await.context("the watcher ended")??, Event::InitDone) {
        count += 1;
    }
    assert_eq!(count, 2001, "each of them, and the beginning");
    Ok(())
}
