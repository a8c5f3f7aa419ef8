//! Where cluster state comes from: one and the same to whoever follows it.

use std::path::PathBuf;

use kube::Client;

use super::{
    api::{self, ApiSource, ConnectError, Receptions},
    files::{FileSource, OpenError},
    store::Counts,
};
use crate::{
    config::SourceOptions,
    model::{Changes, Model},
    problem::Problem,
};

/// What a source is opened from.
#[derive(Clone)]
pub enum Origin {
    /// A directory of YAML.
    Files(PathBuf),
    /// An API server.
    Api(Client),
}

impl Origin {
    /// As the options say. Nothing is asked of an API server yet. Within a tokio runtime.
    ///
    /// # Errors
    /// There are no credentials for an API server, or none that can be used.
    pub async fn of(options: &SourceOptions) -> Result<Self, ConnectError> {
        Ok(match options {
            SourceOptions::Files(dir) => Self::Files(dir.clone()),
            SourceOptions::Kubeconfig(path) => Self::Api(api::of_kubeconfig(path).await?),
            SourceOptions::InCluster => Self::Api(api::in_cluster()?),
        })
    }

    /// A client of the API server, if there is one.
    #[must_use]
    pub fn client(&self) -> Option<&Client> {
        match self {
            Self::Files(_) => None,
            Self::Api(client) => Some(client),
        }
    }
}

/// Cluster state, wherever it comes from.
#[derive(Debug)]
pub enum Source {
    /// A directory of YAML.
    Files(Box<FileSource>),
    /// An API server.
    Api(Box<ApiSource>),
}

impl Source {
    /// With what is known at once. Within a tokio runtime.
    ///
    /// # Errors
    /// A directory cannot be read. An API server that doesn't answer is none: [`Self::trouble`] tells of it.
    pub fn open(origin: &Origin) -> Result<(Self, Changes), OpenError> {
        match origin {
            Origin::Files(dir) => FileSource::open(dir).map(|(files, changes)| (Self::Files(Box::new(files)), changes)),
            Origin::Api(client) => Ok((Self::Api(Box::new(ApiSource::new(client))), Changes::default())),
        }
    }

    /// The cluster as far as it is known.
    #[must_use]
    pub fn model(&self) -> &Model {
        match self {
            Self::Files(files) => files.model(),
            Self::Api(api) => api.model(),
        }
    }

    /// Whether the model is all there is, and not the half of a first list: nothing may be withdrawn by that.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Files(_) => true,
            Self::Api(api) => api.is_complete(),
        }
    }

    /// Why what is in force may not be what the cluster is, if that is so. A directory's trouble is among its problems.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Files(_) => None,
            Self::Api(api) => api.trouble(),
        }
    }

    /// What is refused at present.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        match self {
            Self::Files(files) => files.problems(),
            Self::Api(api) => api.problems(),
        }
    }

    /// What is accepted but has not the effect that one might expect.
    #[must_use]
    pub fn notices(&self) -> Vec<Problem> {
        match self {
            Self::Files(files) => files.notices(),
            Self::Api(api) => api.notices(),
        }
    }

    /// Changes whenever problems or notices do.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match self {
            Self::Files(files) => files.revision(),
            Self::Api(api) => api.revision(),
        }
    }

    /// How many valid objects there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        match self {
            Self::Files(files) => files.counts(),
            Self::Api(api) => api.counts(),
        }
    }

    /// How each kind comes in from the API server, for those who look beside this; nothing for files.
    #[must_use]
    pub fn watch_receptions(&self) -> Receptions {
        match self {
            Self::Files(_) => Receptions::default(),
            Self::Api(api) => api.watch_receptions(),
        }
    }

    /// Waits for news and says what they changed in the model: maybe nothing, but then the problems or the trouble may have. Dropping
    /// the future loses nothing, and whoever polled last is woken as soon as more comes in, dropped or done though the future may be.
    pub async fn next(&mut self) -> Changes {
        match self {
            Self::Files(files) => files.next().await,
            Self::Api(api) => api.next().await,
        }
    }
}
