//! Why the node is not healthy, by subject. A reason is logged when it comes, when it changes and when it goes, and not in between.

use std::{collections::BTreeMap, error::Error};

/// What a reason is about; there is one reason a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// This node's own Node object.
    Node,
    /// Devices, programs and maps.
    Dataplane,
    /// Bringing cluster state into force.
    Sync,
    /// The Node's pod range.
    PodRange,
    /// Pods whose host side could not be restored.
    Pods,
    /// Forgetting expired flows.
    Sweeper,
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

    /// All reasons.
    pub(super) fn reasons(&self) -> Vec<String> {
        self.reasons.values().cloned().collect()
    }
}

/// An error with its causes on one line, none repeated.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn one_reason_a_subject_and_causes_on_one_line() {
        let mut health = Health::default();
        health.set(Subject::Sync, &Err::<(), _>(Outer(std::io::ErrorKind::NotFound.into())));
        health.fail(Subject::Sync, "second");
        health.fail(Subject::Node, "no Node");
        assert_eq!(health.reasons(), ["no Node", "second"]);
        health.mend(Subject::Node);
        health.set(Subject::Sync, &Ok::<_, Outer>(()));
        assert!(health.reasons().is_empty());
        assert_eq!(with_causes(&Outer(std::io::Error::other("the inner"))), "the outer: the inner");
    }
}
