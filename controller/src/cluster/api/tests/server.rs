//! A server of answers given beforehand, kind by kind, in the client's own process. It proves nothing of HTTP, TLS or credentials.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    sync::{Arc, Mutex},
};

use futures::{
    StreamExt as _,
    channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded},
};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame},
};
use kube::{Client, client::Body};

use crate::cluster::kind::Kind;

/// What a request gets.
pub(super) enum Answer {
    /// A stream of lines, open as long as its sender lives.
    Stream(UnboundedReceiver<String>),
    /// A document with a status.
    Document(u16, String),
    /// No connection.
    Nothing,
}

/// Requests beyond the answers given wait for ever.
#[derive(Clone, Default)]
pub(super) struct Server(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    answers: BTreeMap<&'static str, VecDeque<Answer>>,
    asked: Vec<String>,
}

/// The test's end of a stream; dropped, it ends.
pub(super) struct Stream(UnboundedSender<String>);

impl Stream {
    pub(super) fn say(&self, lines: &str) {
        for line in lines.lines() {
            // An error only says that nobody reads any more.
            let _ = self.0.unbounded_send(format!("{line}\n"));
        }
    }
}

impl Server {
    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.serve(request.uri().to_string()).await }
        });
        Client::new(service, "default")
    }

    pub(super) fn answer(&self, kind: Kind, answer: Answer) {
        self.0.lock().unwrap().answers.entry(resource(kind)).or_default().push_back(answer);
    }

    /// Answers a request with a stream that begins with these lines.
    pub(super) fn stream(&self, kind: Kind, lines: &str) -> Stream {
        let (sender, receiver) = unbounded();
        let stream = Stream(sender);
        stream.say(lines);
        self.answer(kind, Answer::Stream(receiver));
        stream
    }

    /// The requests so far for a kind.
    pub(super) fn asked(&self, kind: Kind) -> Vec<String> {
        let asked = &self.0.lock().unwrap().asked;
        asked.iter().filter(|uri| uri.contains(&format!("/{}?", resource(kind)))).cloned().collect()
    }

    async fn serve(&self, uri: String) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, io::Error> {
        let answer = {
            let mut inner = self.0.lock().unwrap();
            let answers = inner.answers.iter_mut().find(|(resource, _)| uri.contains(&format!("/{resource}?")));
            let answer = answers.and_then(|(_, answers)| answers.pop_front());
            inner.asked.push(uri);
            answer
        };
        match answer {
            Some(Answer::Stream(lines)) => {
                let frames = lines.map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(line))));
                Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
            }
            Some(Answer::Document(status, text)) => {
                let body = Full::new(Bytes::from(text)).boxed_unsync();
                Ok(Response::builder().status(status).body(body).expect("the parts are sound"))
            }
            Some(Answer::Nothing) => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
            None => std::future::pending().await,
        }
    }
}

fn resource(kind: Kind) -> &'static str {
    kind.resource().split('.').next().expect("a text has a first part")
}
