//! Whether all is there that a trie should hold.
//!
//! It cannot be asked for one entry: for a key it answers with the longest prefix of it that it has (`trie_lookup_elem` in the kernel's
//! kernel/bpf/lpm_trie.c, which is also behind `BPF_MAP_LOOKUP_ELEM`), so that an entry which is gone is not missed where a shorter one leads alike.
//! Nor does the key behind it tell: for one that is gone `trie_get_next_key` of Linux before 6.13 may answer as for another of that length.
//! So entries are counted in a walk, which goes from one that is there to the next: if each is known, and they are as many as are known, none
//! is missing.

use std::{collections::BTreeSet, sync::Arc};

use super::Differ;
use crate::{
    diff::audit::Finding,
    kernel::step::{Part, Step},
};

/// Walks over a part that our own changes may overtake, one after the other, before it is let go until the next audit.
const WALKS: usize = 3;

/// What stands for the entries that each trie holds, and is another after every change.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    routes: Arc<()>,
    source_ranges: Arc<()>,
}

impl Marks {
    /// These are about to be carried out.
    pub(super) fn follow(&mut self, steps: &[Step]) {
        if steps.iter().any(|step| matches!(step, Step::PutRoute { .. } | Step::DeleteRoute { .. })) {
            self.routes = Arc::default();
        }
        if steps.iter().any(|step| matches!(step, Step::PutSourceRange { .. } | Step::DeleteSourceRange { .. })) {
            self.source_ranges = Arc::default();
        }
    }

    /// `None` for what is no trie.
    fn of(&self, part: Part) -> Option<&Arc<()>> {
        match part {
            Part::Routes => Some(&self.routes),
            Part::SourceRanges => Some(&self.source_ranges),
            Part::Addresses | Part::Services | Part::NodePorts | Part::Backends => None,
        }
    }
}

/// Counts what walks over one part meet; where that is no trie, for nothing.
#[derive(Debug)]
pub(super) struct Census {
    mark: Option<Arc<()>>,
    met: usize,
    walks: usize,
}

impl Census {
    pub(super) fn begin(differ: &Differ, part: Part) -> Self {
        Self { mark: differ.marks.of(part).cloned(), met: 0, walks: 1 }
    }

    /// One more entry is there, and is known.
    pub(super) fn meet(&mut self) {
        self.met += 1;
    }

    /// A walk came to its end. [`Finding::GoesOn`] asks for another: the part was changed under this one.
    pub(super) fn end_walk(&mut self, differ: &Differ, part: Part) -> Finding {
        let (Some(before), Some(now)) = (&self.mark, differ.marks.of(part)) else { return Finding::AsKnown };
        if Arc::ptr_eq(before, now) {
            let wanted = match part {
                Part::Routes => differ.routes.len(),
                _ => differ.source_ranges.values().map(BTreeSet::len).sum(),
            };
            return if self.met == wanted { Finding::AsKnown } else { Finding::Differs };
        }
        if self.walks == WALKS {
            return Finding::AsKnown;
        }
        *self = Self { mark: Some(now.clone()), met: 0, walks: self.walks + 1 };
        Finding::GoesOn
    }
}
