//! What a load balancer is told that asks a Service's `healthCheckNodePort`: what kube-proxy tells it (Kubernetes,
//! pkg/proxy/healthcheck/service_health.go), whatever the path and the method.

use hyper::{
    StatusCode,
    header::{HeaderValue, X_CONTENT_TYPE_OPTIONS},
};
use serde::Serialize;

use super::answer::{Answer, text, with_type};
use crate::compile::health::HealthCheck;

/// How much of a Service's traffic this node should get, against other nodes: its endpoints.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: Named<'a>,
    local_endpoints: u32,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Named<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// 200 if this node is a way to the Service; 503 if it has no ready endpoint, or does not follow the cluster. `None` is told to who asks
/// while the port is being closed.
#[must_use]
pub fn answer(check: Option<&HealthCheck>, is_healthy: bool) -> Answer {
    let Some(HealthCheck { service, local_ready, only_terminating: _ }) = check else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "no Service has this port any more".to_owned());
    };
    let body = Body {
        service: Named { namespace: &service.namespace, name: &service.name },
        local_endpoints: *local_ready,
        service_proxy_healthy: is_healthy,
    };
    let status = if *local_ready > 0 && is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Names and numbers are always JSON.
    let mut answer = with_type(status, "application/json", serde_json::to_string(&body).unwrap_or_default());
    answer.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer.headers_mut().insert(WEIGHT, HeaderValue::from(*local_ready));
    answer
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::model::ObjectName;

    fn body(answer: Answer) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(answer.into_body().collect()).unwrap().to_bytes();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_balancer_hears_what_kube_proxy_would_tell_it() {
        let check = |local_ready| HealthCheck {
            service: ObjectName::new("shop", "web"),
            local_ready,
            only_terminating: local_ready == 0,
        };
        for (local_ready, is_healthy, status) in [(2, true, 200), (2, false, 503), (0, true, 503), (0, false, 503)] {
            let answer = answer(Some(&check(local_ready)), is_healthy);
            assert_eq!(answer.status(), status, "{local_ready} {is_healthy}");
            let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header(WEIGHT), local_ready.to_string());
            let wanted = format!(
                r#"{{"service":{{"namespace":"shop","name":"web"}},"localEndpoints":{local_ready},"serviceProxyHealthy":{is_healthy}}}"#
            );
            assert_eq!(body(answer), wanted);
        }
        assert_eq!(answer(None, true).status(), 503);
    }
}
