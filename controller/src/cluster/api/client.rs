//! The way to the API server: credentials and TLS. A token or CA file that is replaced is read again within a minute, by the client itself.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};

/// Until a connection stands: TCP and TLS.
const CONNECT: Duration = Duration::from_secs(10);
/// Silence on a connection after which it is taken for dead. Where nothing happens a watch still brings a bookmark a minute.
const SILENCE: Duration = Duration::from_secs(90);

/// Why there is no way to the API server. That it doesn't answer is no such reason: it may later.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig cannot be used.
    #[error("the kubeconfig {} cannot be used: {problem}", .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// There is no service account here.
    #[error(
        "the pod's service account cannot be used: {0}; run the agent in a pod with automountServiceAccountToken, or give it \
         --kubeconfig FILE or --cluster-state DIR"
    )]
    ServiceAccount(String),
    /// The credentials or certificates are of no use.
    #[error("no client of the API server can be made from {from}")]
    Client {
        /// What they were read from.
        from: String,
        /// What is wrong with them.
        #[source]
        source: kube::Error,
    },
}

/// A client by the current context of a kubeconfig. Within a tokio runtime.
///
/// # Errors
/// The file cannot be used.
pub(crate) async fn of_kubeconfig(path: &Path) -> Result<Client, ConnectError> {
    client(read_kubeconfig(path).await?, format!("the kubeconfig {}", path.display()))
}

/// A client by the service account of the pod that this process runs in. Within a tokio runtime.
///
/// # Errors
/// This is no pod, or it has no service account.
pub(crate) fn in_cluster() -> Result<Client, ConnectError> {
    let config = Config::incluster().map_err(|error| ConnectError::ServiceAccount(service_account(&error)))?;
    client(config, "the pod's service account".to_owned())
}

fn client(mut config: Config, from: String) -> Result<Client, ConnectError> {
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    // An error only says that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tracing::info!(server = %config.cluster_url, "cluster state comes from an API server");
    Client::try_from(config).map_err(|source| ConnectError::Client { from, source })
}

async fn read_kubeconfig(path: &Path) -> Result<Config, ConnectError> {
    let refuse = |problem| ConnectError::Kubeconfig { path: path.to_owned(), problem };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| refuse(kubeconfig_problem(&error)))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| refuse(kubeconfig_problem(&error)))?;
    if config.cluster_url.host().is_none() || config.cluster_url.scheme().is_none() {
        return Err(refuse(format!("its server {} is no URL; want one such as https://192.0.2.1:6443", config.cluster_url)));
    }
    if config.root_cert.as_ref().is_some_and(Vec::is_empty) {
        return Err(refuse("its certificate authority holds no certificate; want PEM".to_owned()));
    }
    Ok(config)
}

fn kubeconfig_problem(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(error, _) => format!("it cannot be read: {error}"),
        KubeconfigError::CurrentContextNotSet => {
            "it has no current-context; choose one with `kubectl config use-context`".to_owned()
        }
        KubeconfigError::LoadContext(name) => {
            format!("its current-context {name:?} is not among its contexts; choose one with `kubectl config use-context`")
        }
        KubeconfigError::LoadClusterOfContext(name) => {
            format!("its context names the cluster {name:?}, which is not among its clusters")
        }
        KubeconfigError::MissingClusterUrl => "its cluster has no server; give its URL".to_owned(),
        other => other.to_string(),
    }
}

fn service_account(error: &InClusterError) -> String {
    match error {
        InClusterError::ReadEnvironmentVariable(_) => {
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in every pod".to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
apiVersion: v1
kind: Config
current-context: a
contexts: [{name: a, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: 'https://192.0.2.1:6443', certificate-authority: CA}}]
users: [{name: u, user: {token: t}}]
";

    /// A certificate authority that signed nothing: only its form counts here.
    const CERTIFICATE: &str = include_str!("testdata/ca.pem");

    async fn outcome(text: &str) -> Result<Client, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        std::fs::write(dir.path().join("ca.pem"), CERTIFICATE).unwrap();
        std::fs::write(dir.path().join("empty.pem"), "").unwrap();
        std::fs::write(&path, text).unwrap();
        of_kubeconfig(&path).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_good_kubeconfig_makes_a_client() {
        let client = outcome(&GOOD.replace("CA}", "ca.pem}")).await.unwrap();
        assert_eq!(client.default_namespace(), "default");
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_kubeconfig_is_said() {
        for (text, expected) in [
            (GOOD.replace("CA}", "missing.pem}"), "certificate authority"),
            (GOOD.replace("CA}", "empty.pem}"), "holds no certificate"),
            (GOOD.replace("current-context: a", ""), "no current-context"),
            (GOOD.replace("current-context: a", "current-context: b"), "\"b\" is not among its contexts"),
            (GOOD.replace("cluster: c,", "cluster: d,"), "\"d\", which is not among its clusters"),
            (GOOD.replace("server: 'https://192.0.2.1:6443', certificate-authority: CA", ""), "has no server"),
            (GOOD.replace(", certificate-authority: CA", "").replace("https://192.0.2.1:6443", "/api"), "is no URL"),
            ("a: [".to_owned(), "failed to parse"),
            (String::new(), "cannot be used"),
        ] {
            let error = outcome(&text).await.err().unwrap_or_else(|| panic!("taken: {text}"));
            assert!(error.contains(expected) && error.contains("kubeconfig"), "{error:?} should say {expected:?}");
        }
        let error = of_kubeconfig(Path::new("/nonexistent/k")).await.err().unwrap().to_string();
        assert!(error.contains("/nonexistent/k") && error.contains("cannot be read"), "{error}");
    }
}
