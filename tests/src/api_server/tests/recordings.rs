//! Beside what a real server sent.

use super::*;

const RECORDINGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/kubernetes-1.36");

fn recorded(file: &str) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(format!("{RECORDINGS}/{file}"))?)?)
}

/// Answers beside those that a real server gave to the same questions.
#[tokio::test]
async fn answers_are_those_of_a_real_server() -> Result<()> {
    let Scene { server, client, dir } = scene(Transport::Plain).await?;
    let recording = Recording::read(RECORDINGS.as_ref())?;
    server.begin(&recording);
    let token = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NTY5LCJzdGFydCI6Ii9kZWZhdWx0L25vYm9keVx1MDAwMCJ9";
    let mut done = 0;
    for (path, file) in [
        ("/api/v1/services?limit=3".to_owned(), "list-services-page1.json"),
        (format!("/api/v1/services?limit=3&continue={token}"), "list-services-page2.json"),
        ("/apis/discovery.k8s.io/v1/endpointslices".to_owned(), "list-endpointslices.json"),
        ("/api/v1/nodes".to_owned(), "list-nodes.json"),
    ] {
        let theirs = recorded(file)?;
        let version = theirs["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse()?;
        let then = recording.until(version);
        server.replay(&recording, done, then);
        server.shared.lock().store.advance(version);
        done = then;
        assert_eq!(get(&client, &path).await?, (200, theirs), "{path}");
    }

    let (code, body) = get(&client, "/api/v1/services?limit=3&continue=bogus").await?;
    let theirs = recorded("error-400-bad-continue.json")?;
    let begins = |body: &Value| body["message"].as_str().unwrap_or_default().split(": ").take(2).collect::<Vec<_>>().join(": ");
    assert_eq!((code, &body["reason"], begins(&body)), (400, &theirs["reason"], begins(&theirs)));

    let too_old = fs::read_to_string(format!("{RECORDINGS}/watch-too-old.jsonl"))?;
    let ours = watch::error(&status::Status::too_old(1, 763));
    assert_eq!(serde_json::from_slice::<Value>(&ours)?, serde_json::from_str::<Value>(&too_old)?);

    server.trouble(|trouble| trouble.forbidden = [Resource::Services].into());
    let (code, body) = get(&client, "/api/v1/services").await?;
    let mut theirs = recorded("error-403-forbidden.json")?;
    let message = theirs["message"].as_str().unwrap_or_default().replace("default:default", "kube-system:shunt");
    theirs["message"] = json!(message);
    assert_eq!((code, body), (403, theirs));
    server.expire_token();
    assert_eq!(get(&client, "/api/v1/services").await?, (401, recorded("error-401-bad-token.json")?));
    let anonymous = Client::try_from(Config::new(format!("http://{}", server.address()).parse()?))?;
    assert_eq!(get(&anonymous, "/api/v1/services").await?, (403, recorded("error-401-or-403-anonymous.json")?));
    drop(dir);
    Ok(())
}

/// Each line of each recording comes out again as it was sent.
#[tokio::test]
async fn a_replay_sends_what_was_recorded() -> Result<()> {
    let recording = Recording::read(RECORDINGS.as_ref())?;
    ensure!(!recording.is_empty() && !recording.at_first().is_empty());
    let Scene { server, client, dir: _dir } = scene(Transport::Plain).await?;
    server.begin(&recording);
    let question = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    for (path, resource) in [
        ("/api/v1/services", Resource::Services),
        ("/api/v1/pods", Resource::Pods),
        ("/api/v1/namespaces", Resource::Namespaces),
        ("/apis/discovery.k8s.io/v1/endpointslices", Resource::EndpointSlices),
        ("/apis/networking.k8s.io/v1/networkpolicies", Resource::NetworkPolicies),
    ] {
        server.shared.lock().store = Store::default();
        server.begin(&recording);
        let request = Request::get(format!("{path}?{question}")).body(Body::empty())?;
        let body = client.send(request).await?.into_body();
        server.replay(&recording, 0, recording.len());
        server.end_streams();
        let text = String::from_utf8(body.collect().await?.to_bytes().to_vec())?;
        let lines = |text: &str| text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
        // Bookmarks of a live stream come when a server finds time.
        let is_change = |event: &Value| {
            event["type"] != "BOOKMARK" || event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"].is_string()
        };
        let file = format!("watch-{}.jsonl", resource.plural());
        let mut theirs = lines(&fs::read_to_string(format!("{RECORDINGS}/{file}"))?)?;
        let mut ours = lines(&text)?;
        ensure!(ours.iter().filter(|event| !is_change(event)).count() > 0, "no bookmark in {file}");
        theirs.retain(is_change);
        ours.retain(is_change);
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs, "{file}");
        }
        assert_eq!(ours.len(), theirs.len(), "{file}");
    }
    assert_eq!(recording.objects(recording.len()).len(), {
        let all = Resource::ALL.into_iter().map(|resource| server.all(resource).len());
        all.sum::<usize>()
    });
    Ok(())
}
