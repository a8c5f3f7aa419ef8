//! What a server can do wrong, or a careful client must stand.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    resource::{Resource, Target},
    status::Status,
};

/// How requests for lists by way of a watch are met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamingLists {
    /// As of 1.32.
    #[default]
    Served,
    /// As servers do that know them but have them switched off: 422.
    Forbidden,
    /// As servers before 1.27 do: the parameter is not looked at, and no bookmark ends the initial events.
    Unknown,
}

/// How a watch from a forgotten version is met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expired {
    /// An ERROR event in a 200 stream.
    #[default]
    InStream,
    /// The answer itself is a 410.
    AsStatus,
}

/// A server's present moods. The default is none.
#[derive(Clone, Debug, Default)]
pub struct Trouble {
    /// Before each answer.
    pub answer_after: Duration,
    /// Bodies go out in so many bytes at a time, with a pause after each.
    pub trickle: Option<(usize, Duration)>,
    /// Resources that nobody may read or write.
    pub forbidden: BTreeSet<Resource>,
    /// Verbs, as RBAC has them, that nobody may use on a resource.
    pub forbidden_verbs: BTreeSet<(&'static str, Resource)>,
    /// So many of the next changes to objects of a resource get a 409: somebody else was quicker.
    pub conflicts: BTreeMap<Resource, u32>,
    /// So many of the next requests get a 429 that asks to wait so long.
    pub too_many_requests: (u32, Duration),
    /// So many of the next requests get a 500.
    pub internal_errors: u32,
    /// See [`StreamingLists`].
    pub streaming_lists: StreamingLists,
    /// See [`Expired`].
    pub expired: Expired,
}

impl Trouble {
    /// Whether a request fails whatever it asks for.
    pub(super) fn refusal(&mut self, verb: &'static str, user: &str, target: &Target) -> Option<Status> {
        let (left, retry_after) = &mut self.too_many_requests;
        if *left > 0 {
            *left -= 1;
            return Some(Status::too_many_requests(*retry_after));
        }
        if self.internal_errors > 0 {
            self.internal_errors -= 1;
            return Some(Status::internal_error());
        }
        if self.forbidden.contains(&target.resource) || self.forbidden_verbs.contains(&(verb, target.resource)) {
            return Some(Status::forbidden(user, verb, target));
        }
        let left = self.conflicts.get_mut(&target.resource).filter(|left| **left > 0 && matches!(verb, "update" | "patch"))?;
        *left -= 1;
        Some(Status::conflict(target.resource, target.name.as_deref().unwrap_or_default()))
    }
}
