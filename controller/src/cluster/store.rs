//! What each file gives, the last good version of it, and who is believed where two files give the same object.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    convert::{self, Fault, Names, Object, Translated},
    decode::{Content, Syntax, decode},
    documents::{Document, documents},
    kind::{Kind, ObjectId},
};
use crate::{
    model::{Changes, Model, Name},
    problem::Problem,
};

/// Where an object stands. The first is believed: by file name, then document, then place in a list.
type Origin = (Name, u32, u32);

/// Of one file: nobody reads more, and a file of rubbish must not fill the memory with complaints.
const MAX_PROBLEMS: usize = 1000;

/// How many valid objects of each kind there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs, reason = "each is the number of objects of the kind that it is named by")]
pub struct Counts {
    pub nodes: usize,
    pub services: usize,
    pub endpoint_slices: usize,
    pub pods: usize,
    pub namespaces: usize,
    pub network_policies: usize,
}

/// The objects of all files.
#[derive(Debug, Default)]
pub(super) struct Store {
    model: Model,
    names: Names,
    files: BTreeMap<Name, FileState>,
    objects: BTreeMap<ObjectId, Claims>,
    /// Those that more than one origin gives.
    contested: BTreeSet<ObjectId>,
}

#[derive(Debug, Default)]
struct FileState {
    /// Sorted.
    objects: Vec<ObjectId>,
    problems: Vec<Problem>,
    notices: Vec<Problem>,
}

/// Who gives an object. What the believed one says is in the model.
#[derive(Debug)]
struct Claims {
    believed: Origin,
    others: BTreeMap<Origin, Object>,
}

/// What a file's text turned out to hold.
#[derive(Default)]
struct Contents {
    objects: BTreeMap<ObjectId, Vec<(Origin, Object)>>,
    problems: Vec<Problem>,
    notices: Vec<Problem>,
    /// Objects that are there, but not in a good version.
    bad: BTreeSet<ObjectId>,
    /// Something is there that may be any object.
    is_obscure: bool,
}

impl Store {
    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Takes a file's new text. What it gave before and now gives in no good version stays, unless it is plain that it is gone.
    pub(super) fn load(&mut self, file: &Name, text: &str, syntax: Syntax, changes: &mut Changes) {
        if text.trim().is_empty() && self.files.get(file).is_some_and(|state| !state.objects.is_empty()) {
            return self
                .fail(file, "is empty; what it gave before stays in force. To withdraw that, delete the file".to_owned());
        }
        let mut contents = Contents::default();
        let documents = match syntax {
            Syntax::Yaml => documents(text),
            Syntax::Json => vec![Document { number: 1, lines_before: 0, text }],
        };
        for document in documents {
            self.read(file, document, syntax, &mut contents);
            if contents.problems.len() >= MAX_PROBLEMS {
                let message =
                    format!("has {MAX_PROBLEMS} problems or more; what comes after them is not read. Mend these first");
                contents.problems.push(Problem { file: Some(file.to_string()), message, ..Problem::default() });
                contents.is_obscure = true;
                break;
            }
        }
        contents.notices.truncate(MAX_PROBLEMS);
        let state = self.files.remove(file).unwrap_or_default();
        let is_kept = |id: &ObjectId| contents.is_obscure || contents.bad.contains(id);
        let (gone, kept): (Vec<_>, Vec<_>) =
            state.objects.into_iter().filter(|id| !contents.objects.contains_key(id)).partition(|id| !is_kept(id));
        for id in gone {
            self.claim(file, id, Vec::new(), changes);
        }
        let mut objects: Vec<ObjectId> = contents.objects.keys().cloned().chain(kept).collect();
        objects.sort();
        objects.shrink_to_fit();
        for (id, given) in contents.objects {
            self.claim(file, id, given, changes);
        }
        self.files.insert(file.clone(), FileState { objects, problems: contents.problems, notices: contents.notices });
    }

    /// Notes that a file is there but cannot be read; what it gave before stays.
    pub(super) fn fail(&mut self, file: &Name, message: String) {
        let state = self.files.entry(file.clone()).or_default();
        state.problems = vec![Problem { file: Some(file.to_string()), message, ..Problem::default() }];
    }

    /// Withdraws what a file gave.
    pub(super) fn remove(&mut self, file: &Name, changes: &mut Changes) {
        for id in self.files.remove(file).map(|state| state.objects).unwrap_or_default() {
            self.claim(file, id, Vec::new(), changes);
        }
    }

    /// Whether a file has been seen, readable or not.
    pub(super) fn knows(&self, file: &Name) -> bool {
        self.files.contains_key(file)
    }

    /// Files that are known.
    pub(super) fn files(&self) -> impl Iterator<Item = &Name> {
        self.files.keys()
    }

    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.files.values().flat_map(|state| &state.problems).cloned().collect();
        for (id, claims) in self.contested.iter().filter_map(|id| Some((id, self.objects.get(id)?))) {
            let (file, document, _) = &claims.believed;
            let message =
                format!("is given by {file}, document {document}, already, which stays in force; remove one of the two");
            problems.extend(claims.others.keys().map(|(file, document, _)| Problem {
                file: Some(file.to_string()),
                document: Some(*document),
                object: Some(id.to_string()),
                message: message.clone(),
                ..Problem::default()
            }));
        }
        problems.sort();
        problems
    }

    pub(super) fn notices(&self) -> Vec<Problem> {
        self.files.values().flat_map(|state| &state.notices).cloned().collect()
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for id in self.objects.keys() {
            *match id.kind {
                Kind::Node => &mut counts.nodes,
                Kind::Service => &mut counts.services,
                Kind::EndpointSlice => &mut counts.endpoint_slices,
                Kind::Pod => &mut counts.pods,
                Kind::Namespace => &mut counts.namespaces,
                Kind::NetworkPolicy => &mut counts.network_policies,
            } += 1;
        }
        counts
    }

    fn read(&mut self, file: &Name, document: Document<'_>, syntax: Syntax, contents: &mut Contents) {
        let about = |object: Option<&ObjectId>, field: Option<String>, message: String| Problem {
            file: Some(file.to_string()),
            document: Some(document.number),
            object: object.map(ObjectId::to_string),
            field,
            message,
            ..Problem::default()
        };
        for (place, item) in decode(document, syntax).into_iter().enumerate() {
            let locate = |field: String| if item.path.is_empty() { field } else { format!("{}.{field}", item.path) };
            let translated = match item.content {
                Content::Object(object) => object.translate(&mut self.names),
                Content::Refused(fault) => Err(fault),
                Content::Ignored(kind) => {
                    let path = (!item.path.is_empty()).then(|| item.path.clone());
                    contents.notices.push(about(None, path, format!("{kind} is of no interest here and ignored")));
                    continue;
                }
            };
            let origin = (file.clone(), document.number, place as u32);
            match translated {
                Ok(Translated { id, meaning, without_effect }) => {
                    for (field, message) in without_effect {
                        let field = (!field.is_empty()).then(|| locate(field.to_owned()));
                        contents.notices.push(about(Some(&id), field, message.to_owned()));
                    }
                    contents.objects.entry(id).or_default().push((origin, meaning));
                }
                Err(Fault { object, field, message }) => {
                    contents.problems.push(about(object.as_ref(), field.map(locate), message));
                    contents.is_obscure |= object.is_none();
                    contents.bad.extend(object);
                }
            }
        }
    }

    /// Replaces all that a file says of an object, and brings the model to what is then believed.
    fn claim(&mut self, file: &Name, id: ObjectId, given: Vec<(Origin, Object)>, changes: &mut Changes) {
        let (believed, mut others) = match self.objects.remove(&id) {
            Some(Claims { believed, others }) => (Some(believed), others),
            None => (None, BTreeMap::new()),
        };
        others.retain(|(origin, _, _), _| origin != file);
        others.extend(given);
        let still_believed = believed.filter(|(origin, _, _)| origin != file);
        let first = match (still_believed, others.pop_first()) {
            (Some(believed), None) => Some((believed, None)),
            (Some(believed), Some((origin, object))) if believed < origin => {
                others.insert(origin, object);
                Some((believed, None))
            }
            (Some(believed), Some((origin, object))) => {
                others.insert(believed, convert::present(&id, &self.model));
                Some((origin, Some(object)))
            }
            (None, Some((origin, object))) => Some((origin, Some(object))),
            (None, None) => None,
        };
        let Some((believed, object)) = first else {
            self.contested.remove(&id);
            return convert::withdraw(&id, &mut self.model, changes);
        };
        if let Some(object) = object {
            object.put(&id, &mut self.model, changes);
        }
        if others.is_empty() {
            // An emptied map keeps a node, which counts where nearly all are empty.
            others = BTreeMap::new();
            self.contested.remove(&id);
        } else {
            self.contested.insert(id.clone());
        }
        self.objects.insert(id, Claims { believed, others });
    }
}
