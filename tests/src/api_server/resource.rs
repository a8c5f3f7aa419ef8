//! The resources that are served, and the paths that lead to them.

/// A resource of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the resource of its name")]
pub enum Resource {
    Nodes,
    Namespaces,
    Pods,
    Services,
    EndpointSlices,
    NetworkPolicies,
    Events,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Nodes, Self::Namespaces, Self::Pods, Self::Services, Self::EndpointSlices, Self::NetworkPolicies, Self::Events];

    /// Its name in paths.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::NetworkPolicies => "networkpolicies",
            Self::Events => "events",
        }
    }

    /// `kind` of its objects.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Self::Nodes => "Node",
            Self::Namespaces => "Namespace",
            Self::Pods => "Pod",
            Self::Services => "Service",
            Self::EndpointSlices => "EndpointSlice",
            Self::NetworkPolicies => "NetworkPolicy",
            Self::Events => "Event",
        }
    }

    /// Its API group; empty for the first one.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io",
            Self::NetworkPolicies => "networking.k8s.io",
            Self::Events => "events.k8s.io",
            Self::Nodes | Self::Namespaces | Self::Pods | Self::Services => "",
        }
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(self) -> String {
        match self.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/v1"),
        }
    }

    /// Whether its objects are in namespaces.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Nodes | Self::Namespaces)
    }

    /// Whether `/status` is written apart.
    #[must_use]
    pub fn has_status(self) -> bool {
        matches!(self, Self::Nodes | Self::Namespaces | Self::Pods | Self::Services)
    }

    /// The resource of an object by its `kind`.
    #[must_use]
    pub fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kind() == kind)
    }

    /// Events are served in the first group too, where older clients write them.
    fn of_path(group: &str, plural: &str) -> Option<Self> {
        let is_at = |resource: &Self| resource.group() == group || (group.is_empty() && *resource == Self::Events);
        Self::ALL.into_iter().filter(is_at).find(|resource| resource.plural() == plural)
    }
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) resource: Resource,
    /// `None` for all of them, and for resources that are in none.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) is_status: bool,
}

impl Target {
    pub(super) fn of(path: &str) -> Option<Self> {
        let parts: Vec<_> = path.split('/').skip(1).collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => return None,
        };
        let of = |plural: &str| Resource::of_path(group, plural);
        let target = |resource, namespace: Option<&str>, name: Option<&str>, is_status| Self {
            resource,
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            is_status,
        };
        match rest {
            ["namespaces", namespace, plural] if *plural != "status" => Some(target(of(plural)?, Some(namespace), None, false)),
            ["namespaces", namespace, plural, name] => Some(target(of(plural)?, Some(namespace), Some(name), false)),
            ["namespaces", namespace, plural, name, "status"] => Some(target(of(plural)?, Some(namespace), Some(name), true)),
            [plural] => Some(target(of(plural)?, None, None, false)),
            [plural, name] => Some(target(of(plural)?, None, Some(name), false)),
            [plural, name, "status"] => Some(target(of(plural)?, None, Some(name), true)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_resources() {
        let target = |resource, namespace: Option<&str>, name: Option<&str>, is_status| {
            let (namespace, name) = (namespace.map(str::to_owned), name.map(str::to_owned));
            Some(Target { resource, namespace, name, is_status })
        };
        for (path, expected) in [
            ("/api/v1/nodes", target(Resource::Nodes, None, None, false)),
            ("/api/v1/nodes/n1/status", target(Resource::Nodes, None, Some("n1"), true)),
            ("/api/v1/namespaces/a", target(Resource::Namespaces, None, Some("a"), false)),
            ("/api/v1/namespaces/a/status", target(Resource::Namespaces, None, Some("a"), true)),
            ("/api/v1/namespaces/a/pods", target(Resource::Pods, Some("a"), None, false)),
            ("/api/v1/namespaces/a/services/web", target(Resource::Services, Some("a"), Some("web"), false)),
            ("/api/v1/namespaces/a/events", target(Resource::Events, Some("a"), None, false)),
            ("/apis/events.k8s.io/v1/namespaces/a/events", target(Resource::Events, Some("a"), None, false)),
            ("/apis/discovery.k8s.io/v1/endpointslices", target(Resource::EndpointSlices, None, None, false)),
            ("/apis/discovery.k8s.io/v1beta1/endpointslices", None),
            ("/api/v1/endpointslices", None),
            ("/apis/discovery.k8s.io/v1/services", None),
            ("/version", None),
            ("/api/v1", None),
        ] {
            assert_eq!(Target::of(path), expected, "{path}");
        }
    }
}
