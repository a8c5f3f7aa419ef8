//! The three pages and everything else's refusal.

use std::{future::Future, sync::Arc};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue},
};

use crate::metrics::exposition::Format;

/// Whether the node can serve pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why not; ready if empty.
    pub withheld: Vec<String>,
    /// What is wrong besides, though pods are served.
    pub besides: Vec<String>,
}

/// What is asked about. Called concurrently.
pub trait Site: Send + Sync + 'static {
    /// Whether the process does its work; if not, why a new one should be tried.
    fn alive(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// Whether the node can serve pods.
    fn ready(&self) -> impl Future<Output = Readiness> + Send;
    /// All metrics; if they cannot be had, why.
    fn metrics(&self, format: Format) -> impl Future<Output = Result<String, String>> + Send;
}

/// What is answered to any request.
pub type Answer = Response<Full<Bytes>>;

/// Answers one request. Bodies are not read.
pub async fn answer<S: Site, B>(request: Request<B>, site: Arc<S>) -> Answer {
    let path = request.uri().path();
    if !["/healthz", "/readyz", "/metrics"].contains(&path) {
        return text(StatusCode::NOT_FOUND, "there is /healthz, /readyz and /metrics".to_owned());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD are answered here".to_owned());
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match path {
        "/healthz" => match site.alive().await {
            Ok(()) => text(StatusCode::OK, "ok".to_owned()),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
        },
        "/readyz" => readiness(site.ready().await),
        _ => {
            let format = accepted(request.headers());
            match site.metrics(format).await {
                Ok(metrics) => with_type(StatusCode::OK, content_type(format), metrics),
                Err(reason) => text(StatusCode::INTERNAL_SERVER_ERROR, reason),
            }
        }
    }
}

fn readiness(readiness: Readiness) -> Answer {
    let Readiness { withheld, besides } = readiness;
    let status = if withheld.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let first = withheld.is_empty().then(|| "ok".to_owned());
    let lines: Vec<String> = first.into_iter().chain(withheld).chain(besides).collect();
    text(status, lines.join("\n"))
}

/// OpenMetrics if the client names it, as Prometheus does; else what everybody reads.
fn accepted(headers: &HeaderMap) -> Format {
    let ranges = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let mut open = ranges.filter(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_open = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
        let refused = |part: &str| part.strip_prefix("q=").and_then(|q| q.parse().ok()).is_some_and(|q: f32| q <= 0.0);
        is_open && !parts.any(refused)
    });
    if open.next().is_some() { Format::OpenMetrics } else { Format::Plain }
}

fn content_type(format: Format) -> &'static str {
    match format {
        Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        Format::Plain => "text/plain; version=0.0.4; charset=utf-8",
    }
}

pub(super) fn text(status: StatusCode, mut text: String) -> Answer {
    text.push('\n');
    with_type(status, "text/plain; charset=utf-8", text)
}

pub(super) fn with_type(status: StatusCode, content_type: &'static str, text: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (ACCEPT, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn open_metrics_is_for_those_who_name_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(accepted(&accept(&[prometheus])), Format::OpenMetrics);
        assert_eq!(accepted(&accept(&["text/plain", "Application/OpenMetrics-Text"])), Format::OpenMetrics);
        for other in ["", "*/*", "text/plain;version=0.0.4", "application/openmetrics-text;q=0", ";;,,=,q"] {
            assert_eq!(accepted(&accept(&[other])), Format::Plain, "{other:?}");
        }
        assert_eq!(accepted(&accept(&[])), Format::Plain);
    }

    #[test]
    fn reasons_are_lines_behind_the_verdict() {
        assert_eq!(readiness(Readiness::default()).status(), StatusCode::OK);
        let besides = vec!["the API server does not answer".to_owned()];
        assert_eq!(readiness(Readiness { withheld: vec![], besides: besides.clone() }).status(), StatusCode::OK);
        let withheld = vec!["no Node n1".to_owned()];
        assert_eq!(readiness(Readiness { withheld, besides }).status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
