//! The kinds of objects that are understood.

use std::fmt;

use crate::model::ObjectName;

macro_rules! kinds {
    ($( $(#[$meta:meta])* $kind:ident = $api_version:literal, $namespaced:literal, $resource:literal; )+) => {
        /// A kind of object that is understood.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $( $(#[$meta])* $kind ),+ }

        impl Kind {
            /// From what a document says of itself; `None` for any other kind.
            #[must_use]
            pub fn of(api_version: &str, kind: &str) -> Option<Self> {
                $( if kind == stringify!($kind) && api_version == $api_version { return Some(Self::$kind); } )+
                None
            }

            /// Its name, as in `kind:`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $( Self::$kind => stringify!($kind) ),+ }
            }

            /// Whether its objects live in a namespace.
            #[must_use]
            pub const fn is_namespaced(self) -> bool {
                match self { $( Self::$kind => $namespaced ),+ }
            }

            /// The resource and its group, as `kubectl` and a role take it.
            #[must_use]
            pub const fn resource(self) -> &'static str {
                match self { $( Self::$kind => $resource ),+ }
            }
        }
    };
}

kinds! {
    /// v1.
    Node = "v1", false, "nodes";
    /// v1.
    Service = "v1", true, "services";
    /// discovery.k8s.io/v1.
    EndpointSlice = "discovery.k8s.io/v1", true, "endpointslices.discovery.k8s.io";
    /// v1.
    Pod = "v1", true, "pods";
    /// v1.
    Namespace = "v1", false, "namespaces";
    /// networking.k8s.io/v1.
    NetworkPolicy = "networking.k8s.io/v1", true, "networkpolicies.networking.k8s.io";
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.name)
    }
}
