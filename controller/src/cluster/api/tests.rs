//! The source against answers given beforehand, and what a real Kubernetes 1.36 server sent (`testdata/*.jsonl`). Time is the test's own.

mod server;

use std::{
    collections::BTreeMap,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use serde_json::{Value, json};

use self::server::{Answer, Server, Stream};
use super::{ApiSource, KINDS};
use crate::{cluster::kind::Kind, model::Changes};

const NODES: &str = include_str!("testdata/nodes.jsonl");
const SERVICES: &str = include_str!("testdata/services.jsonl");
const SLICES: &str = include_str!("testdata/endpointslices.jsonl");

/// Ends a streamed list.
const END: &str = r#"{"type":"BOOKMARK","object":{"kind":"Some","apiVersion":"v1","metadata":{"resourceVersion":"100","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

fn event(kind: &str, object: &Value) -> String {
    // In the order of an API server.
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid of {name}"), "resourceVersion": "5"},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    })
}

fn slice(name: &str, service: &str, addresses: &[String]) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "resourceVersion": "6",
            "labels": {"kubernetes.io/service-name": service},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-20T20:41:42Z"},
        },
        "addressType": "IPv4",
        "endpoints": addresses.iter().map(|address| json!({"addresses": [address]})).collect::<Vec<_>>(),
        "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
    })
}

/// Everything heard until nothing more is for a while.
async fn settle(source: &mut ApiSource) -> Changes {
    settle_for(source, Duration::from_millis(50)).await
}

async fn settle_for(source: &mut ApiSource, time: Duration) -> Changes {
    let end = tokio::time::Instant::now() + time;
    let mut changes = Changes::default();
    while let Ok(more) = tokio::time::timeout_at(end, source.next()).await {
        changes.absorb(more);
    }
    changes
}

fn names(source: &ApiSource) -> Vec<&str> {
    source.model().services().keys().map(|name| &*name.name).collect()
}

/// A source that has heard of two Services, and the open streams.
async fn with_two_services(server: &Server) -> (ApiSource, BTreeMap<Kind, Stream>) {
    let mut source = ApiSource::new(&server.client());
    let two = event("ADDED", &service("a", "10.96.0.1")) + &event("ADDED", &service("b", "10.96.0.2"));
    let streams = KINDS.into_iter().map(|kind| {
        let list = if kind == Kind::Service { two.as_str() } else { "" };
        (kind, server.stream(kind, &format!("{list}{END}")))
    });
    let streams = streams.collect();
    settle(&mut source).await;
    assert!(source.is_complete() && source.trouble().is_none(), "{:?}", source.trouble());
    assert_eq!(names(&source), ["a", "b"]);
    (source, streams)
}

#[tokio::test(start_paused = true)]
async fn what_a_real_server_sent_becomes_the_model() {
    let server = Server::default();
    let mut source = ApiSource::new(&server.client());
    let streams: Vec<_> = [(Kind::Node, NODES), (Kind::Service, SERVICES), (Kind::EndpointSlice, SLICES)]
        .map(|(kind, lines)| (kind, lines, server.stream(kind, lines)))
        .into();
    settle(&mut source).await;
    assert!(source.is_complete());
    assert_eq!(source.problems(), []);
    assert_eq!(names(&source), ["kubernetes", "web", "web-lb", "web-np", "web-zone", "kube-dns"]);
    assert_eq!((source.counts().nodes, source.counts().services, source.counts().endpoint_slices), (2, 9, 3));
    let annotated = &source.model().nodes()["n1"];
    assert!(annotated.tunnel.vtep_mac.is_some() && annotated.pod_cidrs.len() == 1 && annotated.zone.as_deref() == Some("za"));
    let asked = server.asked(Kind::EndpointSlice);
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    assert!(asked[0].contains(query) && asked[0].contains("headless") && asked[0].contains("service-proxy-name"), "{asked:?}");

    // The server forgets, and lists what there is at the end: nothing has changed by that.
    let before = source.model().clone();
    let gone = event("ERROR", &status(410, "Expired", "too old resource version: 1 (763)"));
    let mut held = Vec::new();
    for (kind, lines, stream) in &streams {
        let mut last: BTreeMap<String, Value> = BTreeMap::new();
        for line in lines.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let name = line["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            match line["type"].as_str().unwrap() {
                "DELETED" => drop(last.remove(&name)),
                "BOOKMARK" => {}
                _ => drop(last.insert(name, line["object"].clone())),
            }
        }
        let list: String = last.values().map(|object| event("ADDED", object)).collect();
        held.push(server.stream(*kind, &(list + END)));
        stream.say(&gone);
    }
    let changes = settle_for(&mut source, Duration::from_secs(5)).await;
    assert_eq!(source.receptions().iter().map(|it| it.lists).collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!((changes, source.model()), (Changes::default(), &before));
    assert_eq!(source.trouble(), None, "a list read anew is no trouble");
}

#[tokio::test(start_paused = true)]
async fn what_is_forbidden_is_named_and_the_rest_goes_on() {
    let server = Server::default();
    let mut source = ApiSource::new(&server.client());
    let message = r#"services is forbidden: User "system:serviceaccount:kube-system:shunt" cannot list resource "services" in API group "" at the cluster scope"#;
    for _ in 0..3 {
        server.answer(Kind::Service, Answer::Document(403, status(403, "Forbidden", message).to_string()));
    }
    let _nodes = server.stream(Kind::Node, NODES);
    let _slices = server.stream(Kind::EndpointSlice, SLICES);
    settle(&mut source).await;
    assert!(!source.is_complete());
    assert_eq!(source.model().nodes().len(), 2);
    assert_eq!(source.model().slice_count(), 3);
    let trouble = source.trouble().unwrap();
    assert!(trouble.contains("waiting for the API server's first list of services;"), "{trouble}");
    assert!(trouble.contains(message) && trouble.contains("grant the agent's account the verbs list and watch on services"));

    let _services = server.stream(Kind::Service, SERVICES);
    settle_for(&mut source, Duration::from_secs(60)).await;
    assert!(source.is_complete());
    assert_eq!(source.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_waited_for_and_told_of() {
    let server = Server::default();
    let mut source = ApiSource::new(&server.client());
    let _nodes = server.stream(Kind::Node, NODES);
    settle(&mut source).await;
    assert_eq!((source.trouble(), source.is_complete()), (None, false), "a start takes its time");
    settle_for(&mut source, Duration::from_secs(6)).await;
    let trouble = source.trouble().unwrap();
    assert!(trouble.contains("first list of services, endpointslices.discovery.k8s.io;"), "{trouble}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_streams_no_lists_is_asked_for_pages() {
    let server = Server::default();
    let mut source = ApiSource::new(&server.client());
    let _others = [server.stream(Kind::Node, END), server.stream(Kind::EndpointSlice, END)];
    let refusal = status(
        422,
        "Invalid",
        "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
    );
    server.answer(Kind::Service, Answer::Document(422, refusal.to_string()));
    for (name, ip, more) in [("a", "10.96.0.1", "next"), ("b", "10.96.0.2", "")] {
        let page = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9", "continue": more}, "items": [service(name, ip)]});
        server.answer(Kind::Service, Answer::Document(200, page.to_string()));
    }
    let live = server.stream(Kind::Service, &event("MODIFIED", &service("a", "10.96.0.3")));
    settle(&mut source).await;
    assert!(source.is_complete());
    assert_eq!(names(&source), ["a", "b"]);
    assert_eq!(source.model().services().values().next().unwrap().cluster_ips[0].to_string(), "10.96.0.3");
    let asked = server.asked(Kind::Service);
    assert!(asked[1].contains("limit=500") && asked[2].contains("continue=next"), "{asked:?}");
    assert!(asked[3].contains("watch=true") && asked[3].contains("resourceVersion=9"), "{asked:?}");
    drop(live);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_list_without_an_end_is_read_in_pages() {
    let server = Server::default();
    let mut source = ApiSource::new(&server.client());
    let _others = [server.stream(Kind::Node, END), server.stream(Kind::EndpointSlice, END)];
    let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"7"}}}"#;
    let _endless = server.stream(Kind::Service, &(event("ADDED", &service("a", "10.96.0.1")) + bookmark));
    let page = json!({"kind": "ServiceList", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": [service("b", "10.96.0.2")]});
    server.answer(Kind::Service, Answer::Document(200, page.to_string()));
    settle_for(&mut source, Duration::from_secs(10)).await;
    assert!(!source.is_complete(), "half a list is none");
    settle_for(&mut source, Duration::from_secs(15)).await;
    assert!(source.is_complete());
    assert_eq!(names(&source), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_is_withdrawn_when_the_new_list_is_whole() {
    for is_told_in_the_stream in [true, false] {
        let server = Server::default();
        let (mut source, mut streams) = with_two_services(&server).await;
        let gone = status(410, "Expired", "too old resource version");
        if is_told_in_the_stream {
            streams[&Kind::Service].say(&event("ERROR", &gone));
        } else {
            server.answer(Kind::Service, Answer::Document(410, gone.to_string()));
            streams.remove(&Kind::Service);
        }
        let list = server.stream(Kind::Service, &event("ADDED", &service("a", "10.96.0.1")));
        let changes = settle_for(&mut source, Duration::from_secs(5)).await;
        assert!(changes.is_empty() && names(&source) == ["a", "b"], "{changes:?}");
        // Broken off and begun again, it is still not whole.
        let again = server.stream(Kind::Service, "");
        drop(list);
        let changes = settle_for(&mut source, Duration::from_secs(5)).await;
        assert!(changes.is_empty() && names(&source) == ["a", "b"], "{changes:?}");
        again.say(&event("ADDED", &service("a", "10.96.0.1")));
        again.say(END);
        let changes = settle(&mut source).await;
        assert_eq!(changes.services.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["b"]);
        assert_eq!(names(&source), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_server_changes_nothing_and_shows() {
    let server = Server::default();
    let (mut source, mut streams) = with_two_services(&server).await;
    for _ in 0..4 {
        server.answer(Kind::Service, Answer::Nothing);
    }
    streams.remove(&Kind::Service);
    let changes = settle_for(&mut source, Duration::from_secs(2)).await;
    assert!(changes.is_empty() && names(&source) == ["a", "b"] && source.is_complete());
    let trouble = source.trouble().unwrap();
    assert!(trouble.contains("the API server is not reached") && trouble.contains("connection refused"), "{trouble}");
    // It comes back, and has nothing to say.
    let _silent = server.stream(Kind::Service, "");
    settle_for(&mut source, Duration::from_secs(60)).await;
    assert_eq!(source.trouble(), None);
    let asked = server.asked(Kind::Service);
    assert!(asked.last().unwrap().contains("resourceVersion=100"), "it goes on where it was: {asked:?}");
    let reception = &source.receptions()[1];
    assert!(reception.kind == Kind::Service && reception.failures == 4 && reception.failure.is_none(), "{reception:?}");
}

#[tokio::test(start_paused = true)]
async fn what_follows_on_the_same_stream_mends_what_could_not_be_read_of_it() {
    let server = Server::default();
    let (mut source, streams) = with_two_services(&server).await;
    let services = &streams[&Kind::Service];
    let asked = server.asked(Kind::Service).len();
    let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"101"}}}"#;
    let error = event("ERROR", &status(500, "InternalError", "it went wrong"));
    for (bad, said) in [(error.as_str(), "it went wrong"), ("{\"no\":\"event\"}\n", "what is no watch event")] {
        for good in [event("MODIFIED", &service("a", "10.96.0.1")), format!("{bookmark}\n")] {
            services.say(bad);
            settle_for(&mut source, Duration::from_secs(60)).await;
            let trouble = source.trouble().unwrap_or_else(|| panic!("nothing is said of {bad}"));
            assert!(trouble.contains(said), "{trouble}");
            services.say(&good);
            settle_for(&mut source, Duration::from_secs(60)).await;
            assert_eq!(source.trouble(), None, "{good} after {bad}");
        }
    }
    assert_eq!(server.asked(Kind::Service).len(), asked, "all on one stream");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_ends_each_watch_at_once_is_not_stormed() {
    let server = Server::default();
    let (mut source, mut streams) = with_two_services(&server).await;
    for _ in 0..100 {
        drop(server.stream(Kind::Service, ""));
    }
    streams.remove(&Kind::Service);
    settle_for(&mut source, Duration::from_secs(10)).await;
    let asked = server.asked(Kind::Service).len();
    assert!((5..15).contains(&asked), "{asked} requests in ten seconds");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_not_as_it_should_be_is_named_and_the_rest_goes_on() {
    let server = Server::default();
    let (mut source, streams) = with_two_services(&server).await;
    let services = &streams[&Kind::Service];
    let mut bad = service("a", "10.96.0.9");
    bad["spec"]["ports"][0]["port"] = json!("eighty");
    let mut wrong = service("c", "10.96.0.3");
    wrong["spec"]["type"] = json!("Tomorrow");
    let mut future = service("d", "10.96.0.4");
    future["spec"]["unheardOf"] = json!({"deeply": ["new"]});
    services.say(&(event("MODIFIED", &bad) + &event("ADDED", &wrong) + &event("ADDED", &future)));
    let changes = settle(&mut source).await;
    assert_eq!(changes.services.iter().map(|name| &*name.name).collect::<Vec<_>>(), ["d"]);
    assert_eq!(names(&source), ["a", "b", "d"], "the last good version of a stays");
    let problems: Vec<String> = source.problems().iter().map(ToString::to_string).collect();
    assert!(problems[0].starts_with("Service default/a: spec.ports[0].port: invalid type: string \"eighty\""), "{problems:?}");
    assert!(problems[1].starts_with("Service default/c: spec.type: \"Tomorrow\" is no type"), "{problems:?}");
    assert_eq!(problems.len(), 2);

    let revision = source.revision();
    services.say(&(event("MODIFIED", &service("a", "10.96.0.9")) + &event("DELETED", &wrong)));
    settle(&mut source).await;
    assert!(source.problems().is_empty() && source.revision() != revision);
    assert_eq!(names(&source), ["a", "b", "d"]);
}

#[tokio::test(start_paused = true)]
async fn another_object_of_the_same_name_is_another() {
    let server = Server::default();
    let (mut source, streams) = with_two_services(&server).await;
    let services = &streams[&Kind::Service];
    let mut later = service("a", "10.96.0.7");
    later["metadata"]["uid"] = json!("another");
    later["metadata"]["resourceVersion"] = json!("4");
    services.say(&(event("DELETED", &service("a", "10.96.0.1")) + &event("ADDED", &later)));
    settle(&mut source).await;
    assert_eq!(source.model().services().values().next().unwrap().cluster_ips[0].to_string(), "10.96.0.7");
    // What was good of an object says nothing of a bad one that took its place unseen.
    later["metadata"]["uid"] = json!("a third");
    later["spec"]["ports"] = json!([{"port": 0}]);
    services.say(&event("MODIFIED", &later));
    settle(&mut source).await;
    assert_eq!(names(&source), ["b"]);
    assert_eq!(source.problems().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_comes_together_is_handed_on_together_with_its_times() {
    let server = Server::default();
    let (mut source, streams) = with_two_services(&server).await;
    let addresses: Vec<String> = (0..1000).map(|i| format!("10.244.{}.{}", i / 250, i % 250 + 1)).collect();
    let slices = &streams[&Kind::EndpointSlice];
    // A slice comes before its Service.
    slices.say(&event("ADDED", &slice("late-1", "late", &addresses)));
    let changes = settle(&mut source).await;
    assert_eq!((changes.services.len(), changes.triggers.len()), (1, 1));
    let epoch = changes.triggers[0].duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(epoch.as_secs(), 1_795_207_302);
    streams[&Kind::Service].say(&event("ADDED", &service("late", "10.96.0.8")));
    settle(&mut source).await;
    let late = source.model().services().keys().find(|name| &*name.name == "late").unwrap();
    assert_eq!(source.model().slices_of(late).iter().map(|(_, slice)| slice.endpoints.len()).sum::<usize>(), 1000);

    let burst: String = (0..200).map(|i| event("ADDED", &slice(&format!("a-{i}"), "a", &addresses[i..=i]))).collect();
    slices.say(&burst);
    let mut rounds = 0;
    while source.model().slice_count() < 201 {
        source.next().await;
        rounds += 1;
    }
    assert!(rounds <= 4, "{rounds} rounds for 200 events that came together");
}

/// Tells that it was called.
#[derive(Default)]
struct Called(AtomicBool);

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn who_asked_last_is_called_when_more_comes_though_nobody_waits_any_more() {
    let server = Server::default();
    let (mut source, streams) = with_two_services(&server).await;
    streams[&Kind::Service].say(&event("ADDED", &service("c", "10.96.0.3")));
    let called = Arc::new(Called::default());
    let waker = Waker::from(called.clone());
    let changes = loop {
        tokio::task::yield_now().await;
        if let Poll::Ready(changes) = pin!(source.next()).poll(&mut Context::from_waker(&waker)) {
            break changes;
        }
    };
    assert!(!changes.is_empty());
    called.0.store(false, Relaxed);
    streams[&Kind::Service].say(&event("ADDED", &service("d", "10.96.0.4")));
    assert!(called.0.load(Relaxed));
    settle(&mut source).await;
    assert_eq!(names(&source), ["a", "b", "c", "d"]);
}
