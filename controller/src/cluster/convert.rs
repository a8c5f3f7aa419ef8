//! API object to model: the one translation, for files and the API alike. Refuses what the API server would refuse, and what this dataplane
//! cannot mean.

mod exposure;
mod node;
mod policy;
mod service;
mod slice;
mod syntax;

use std::{collections::HashSet, sync::Arc, time::SystemTime};

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Node, Pod, Service},
        discovery::v1::EndpointSlice,
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::kind::{Kind, ObjectId};
use crate::model::{self, Changes, Model, Name, ObjectName};

/// Why an object is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Refusal {
    /// Path of the field.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

impl Refusal {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    /// The same, seen from the object that holds the one at `path`.
    fn within(self, path: &str) -> Self {
        Self { field: format!("{path}.{}", self.field), message: self.message }
    }
}

/// Labels of Services and slices that no proxy is to serve, or another one: what they say is of no consequence here.
pub(super) const NOT_OURS: [&str; 2] = ["service.kubernetes.io/headless", "service.kubernetes.io/service-proxy-name"];

/// Why there is nothing to be had of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Which object, if that can be seen.
    pub(super) object: Option<ObjectId>,
    pub(super) field: Option<String>,
    pub(super) message: String,
}

/// What an object comes to.
#[derive(Debug)]
pub(super) struct Translated {
    pub(super) id: ObjectId,
    pub(super) meaning: Object,
    /// What of it is accepted without effect yet: field (empty for all of it) and what happens instead.
    pub(super) without_effect: Vec<(&'static str, &'static str)>,
}

/// An object of the API.
#[derive(Clone, Debug, PartialEq)]
pub enum ApiObject {
    /// v1.
    Node(Box<Node>),
    /// v1.
    Service(Box<Service>),
    /// discovery.k8s.io/v1.
    EndpointSlice(Box<EndpointSlice>),
    /// v1.
    Pod(Box<Pod>),
    /// v1.
    Namespace(Box<Namespace>),
    /// networking.k8s.io/v1.
    NetworkPolicy(Box<NetworkPolicy>),
}

/// What an object means to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A node.
    Node(model::Node),
    /// A Service with a virtual IP.
    Service(model::Service),
    /// A slice, and the name of its Service.
    Slice(Name, model::EndpointSlice),
    /// Valid, and of no consequence for the dataplane.
    Inert,
}

/// Texts that many objects repeat, such as the names of nodes and namespaces, kept once.
#[derive(Clone, Debug, Default)]
pub struct Names {
    known: HashSet<Name>,
    prune_at: usize,
}

impl Names {
    /// The shared form of a text.
    pub fn intern(&mut self, text: &str) -> Name {
        if let Some(name) = self.known.get(text) {
            return name.clone();
        }
        if self.known.len() >= self.prune_at {
            self.known.retain(|name| Arc::strong_count(name) > 1);
            self.prune_at = self.known.len() * 2 + 1024;
        }
        let name: Name = text.into();
        self.known.insert(name.clone());
        name
    }
}

impl ApiObject {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Pod(_) => Kind::Pod,
            Self::Namespace(_) => Kind::Namespace,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Node(it) => &it.metadata,
            Self::Service(it) => &it.metadata,
            Self::EndpointSlice(it) => &it.metadata,
            Self::Pod(it) => &it.metadata,
            Self::Namespace(it) => &it.metadata,
            Self::NetworkPolicy(it) => &it.metadata,
        }
    }

    /// Which object it is. One that lives in a namespace but names none is in `default`, as for kubectl.
    ///
    /// # Errors
    /// `metadata.name` or `metadata.namespace` is missing or cannot be a name.
    pub fn id(&self, names: &mut Names) -> Result<ObjectId, Refusal> {
        let metadata = self.metadata();
        let kind = self.kind();
        let name = metadata.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            return Err(Refusal::new("metadata.name", "is required; name the object"));
        }
        let check = if kind == Kind::Namespace || kind == Kind::Service { syntax::label } else { syntax::subdomain };
        check(name).map_err(|message| Refusal::new("metadata.name", message))?;
        let namespace = match metadata.namespace.as_deref() {
            None | Some("") if kind.is_namespaced() => "default",
            None | Some("") => "",
            Some(namespace) if kind.is_namespaced() => {
                syntax::label(namespace).map_err(|message| Refusal::new("metadata.namespace", message))?;
                namespace
            }
            Some(_) => {
                return Err(Refusal::new(
                    "metadata.namespace",
                    format!("a {} is in no namespace; remove the field", kind.name()),
                ));
            }
        };
        Ok(ObjectId { kind, name: ObjectName { namespace: names.intern(namespace), name: names.intern(name) } })
    }

    /// What it means.
    ///
    /// # Errors
    /// The first field that the API server or this dataplane would not take.
    pub fn convert(&self, id: &ObjectId, names: &mut Names) -> Result<Object, Refusal> {
        match self {
            Self::Node(it) => node::convert(it, &id.name.name, names).map(Object::Node),
            Self::Service(it) => Ok(service::convert(it, &id.name, names)?.map_or(Object::Inert, Object::Service)),
            Self::EndpointSlice(it) => {
                Ok(slice::convert(it, names)?.map_or(Object::Inert, |(service, slice)| Object::Slice(service, slice)))
            }
            Self::Pod(it) => {
                for (i, ip) in it.status.iter().flat_map(|status| status.pod_ips.iter().flatten()).enumerate() {
                    syntax::ip(&ip.ip).map_err(|message| Refusal::new(format!("status.podIPs[{i}].ip"), message))?;
                }
                Ok(Object::Inert)
            }
            Self::Namespace(_) => Ok(Object::Inert),
            Self::NetworkPolicy(it) => policy::check(it).map(|()| Object::Inert),
        }
    }
}

impl ApiObject {
    /// The whole way from the API to the model.
    pub(super) fn translate(&self, names: &mut Names) -> Result<Translated, Fault> {
        let fault = |object, Refusal { field, message }| Fault { object, field: Some(field), message };
        let id = self.id(names).map_err(|refusal| fault(None, refusal))?;
        match self.convert(&id, names) {
            Ok(meaning) => Ok(Translated { id, meaning, without_effect: self.without_effect() }),
            Err(refusal) => Err(fault(Some(id), refusal)),
        }
    }

    /// When what a slice tells of happened, as far as its writer says.
    pub(super) fn triggered(&self) -> Option<SystemTime> {
        match self {
            Self::EndpointSlice(it) => slice::triggered(it),
            _ => None,
        }
    }

    /// What of it is accepted without effect yet: field (empty for all of it) and what happens instead.
    #[must_use]
    pub fn without_effect(&self) -> Vec<(&'static str, &'static str)> {
        match self {
            Self::NetworkPolicy(_) => vec![("", "is accepted, but policies are not enforced yet")],
            _ => Vec::new(),
        }
    }
}

fn is_ours(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().is_none_or(|labels| !NOT_OURS.iter().any(|label| labels.contains_key(*label)))
}

impl Object {
    /// Brings a model to what this object says.
    pub fn put(self, id: &ObjectId, model: &mut Model, changes: &mut Changes) {
        match self {
            Self::Node(node) => model.put_node(node, changes),
            Self::Service(service) => model.put_service(service, changes),
            Self::Slice(service, slice) => model.put_slice(&id.name, &service, slice, changes),
            Self::Inert => withdraw(id, model, changes),
        }
    }
}

/// Brings a model to what it is without the object.
pub fn withdraw(id: &ObjectId, model: &mut Model, changes: &mut Changes) {
    match id.kind {
        Kind::Node => model.remove_node(&id.name.name, changes),
        Kind::Service => model.remove_service(&id.name, changes),
        Kind::EndpointSlice => model.remove_slice(&id.name, changes),
        Kind::Pod | Kind::Namespace | Kind::NetworkPolicy => {}
    }
}

/// What a model holds of an object: the reverse of [`Object::put`].
pub(super) fn present(id: &ObjectId, model: &Model) -> Object {
    let found = match id.kind {
        Kind::Node => model.nodes().get(&id.name.name).cloned().map(Object::Node),
        Kind::Service => model.services().get(&id.name).cloned().map(Object::Service),
        Kind::EndpointSlice => model.slice(&id.name).map(|(service, slice)| Object::Slice(service.clone(), slice.clone())),
        Kind::Pod | Kind::Namespace | Kind::NetworkPolicy => None,
    };
    found.unwrap_or(Object::Inert)
}
