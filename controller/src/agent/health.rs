//! Why the node is not healthy, by subject. A reason is logged when it comes, when it changes and when it goes, and not in between.

use std::{collections::BTreeMap, error::Error};

use crate::problem::with_causes;

macro_rules! subjects {
    ($( $(#[$doc:meta])* $subject:ident = $name:literal, $weight:ident; )+) => {
        /// What a reason is about; there is one reason a subject.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum Subject { $( $(#[$doc])* $subject ),+ }

        impl Subject {
            /// All of them.
            pub(super) const ALL: &[Self] = &[ $( Self::$subject ),+ ];

            /// The word for it in metrics.
            pub(super) const fn name(self) -> &'static str {
                match self { $( Self::$subject => $name ),+ }
            }

            /// What a reason of it means for readiness.
            pub(super) const fn weight(self) -> Weight {
                match self { $( Self::$subject => Weight::$weight ),+ }
            }
        }
    };
}

/// What it means for readiness that a subject is not well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// The node cannot serve new pods, or does not follow the cluster.
    Withholds,
    /// An operator should look; pods are served all the same.
    Besides,
}

subjects! {
    /// Where cluster state comes from; what it said last stays in force.
    Source = "source", Besides;
    /// This node's own Node object.
    Node = "node", Withholds;
    /// Devices, programs and maps.
    Dataplane = "dataplane", Withholds;
    /// Bringing cluster state into force.
    Sync = "sync", Withholds;
    /// The Node's pod range.
    PodRange = "pod_range", Withholds;
    /// Pods whose host side could not be restored.
    Pods = "pods", Besides;
    /// Adopting pods of a network that was taken over.
    Takeover = "takeover", Besides;
    /// Forgetting expired flows.
    Sweeper = "sweeper", Besides;
    /// Room for new flows.
    FlowTable = "flow_table", Besides;
    /// Answering for health and metrics.
    Http = "http", Besides;
    /// The CNI plugin and its configuration.
    Installation = "installation", Withholds;
    /// Keeping node ports from sockets that ask for any port.
    ReservedPorts = "reserved_ports", Besides;
    /// Telling the cluster of this node.
    Announcement = "announcement", Besides;
}

/// The present reasons.
#[derive(Debug, Default)]
pub(super) struct Health {
    reasons: BTreeMap<Subject, String>,
}

impl Health {
    /// A subject is not well.
    pub(super) fn fail(&mut self, subject: Subject, reason: impl Into<String>) {
        let reason = reason.into();
        if self.reasons.get(&subject) != Some(&reason) {
            tracing::warn!("{reason}");
            self.reasons.insert(subject, reason);
        }
    }

    /// A subject is well.
    pub(super) fn mend(&mut self, subject: Subject) {
        if let Some(reason) = self.reasons.remove(&subject) {
            tracing::info!("no longer: {reason}");
        }
    }

    /// Either of both, by an outcome.
    pub(super) fn set<T, E: Error>(&mut self, subject: Subject, outcome: &Result<T, E>) {
        match outcome {
            Ok(_) => self.mend(subject),
            Err(error) => self.fail(subject, with_causes(error)),
        }
    }

    /// The reason of a subject, if it is not well.
    pub(super) fn reason(&self, subject: Subject) -> Option<&str> {
        self.reasons.get(&subject).map(String::as_str)
    }

    /// All reasons, by what they are about.
    pub(super) fn by_subject(&self) -> &BTreeMap<Subject, String> {
        &self.reasons
    }

    /// All reasons.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.values().cloned().collect()
    }

    /// The reasons of a weight.
    pub(super) fn reasons_of(&self, weight: Weight) -> Vec<String> {
        let of = self.reasons.iter().filter(|(subject, _)| subject.weight() == weight);
        of.map(|(_, reason)| reason.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_subject_has_a_word_of_its_own() {
        let names: std::collections::BTreeSet<_> = Subject::ALL.iter().map(|subject| subject.name()).collect();
        assert_eq!(names.len(), Subject::ALL.len());
    }

    #[test]
    fn one_reason_a_subject_and_causes_on_one_line() {
        let mut health = Health::default();
        health.set(Subject::Sync, &Err::<(), _>(Outer(std::io::ErrorKind::NotFound.into())));
        health.fail(Subject::Sync, "second");
        health.fail(Subject::Node, "no Node");
        assert_eq!(health.reasons(), ["no Node", "second"]);
        health.fail(Subject::Sweeper, "third");
        assert_eq!(health.reasons_of(Weight::Withholds), ["no Node", "second"]);
        assert_eq!(health.reasons_of(Weight::Besides), ["third"]);
        health.mend(Subject::Sweeper);
        health.mend(Subject::Node);
        health.set(Subject::Sync, &Ok::<_, Outer>(()));
        assert!(health.reasons().is_empty());
        assert_eq!(with_causes(&Outer(std::io::Error::other("the inner"))), "the outer: the inner");
    }
}
