//! Label and field selectors, as far as clients of a node use them.

use super::{object::Object, resource::Target, status::Status};

/// Which objects of a resource a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector {
    namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Missing(String),
    In(String, Vec<String>),
    /// Objects without the label match too.
    NotIn(String, Vec<String>),
}

impl Selector {
    pub(super) fn new(target: &Target, labels: &str, fields: &str) -> Result<Self, Status> {
        let mut selector = Self { namespace: target.namespace.clone(), labels: Vec::new(), fields: Vec::new() };
        for term in terms(labels) {
            selector.labels.push(requirement(term)?);
        }
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (field, is_equal, value) = match (term.split_once("!="), term.split_once("==").or(term.split_once('='))) {
                (Some((field, value)), _) => (field, false, value),
                (None, Some((field, value))) => (field, true, value),
                (None, None) => return Err(Status::bad_request(format!("invalid field selector: {term:?}"))),
            };
            if !["metadata.name", "metadata.namespace", "spec.nodeName", "spec.clusterIP"].contains(&field) {
                return Err(Status::bad_request(format!("field label not supported: {field}")));
            }
            selector.fields.push((field.to_owned(), is_equal, value.to_owned()));
        }
        if let Some(name) = &target.name {
            selector.fields.push(("metadata.name".to_owned(), true, name.clone()));
        }
        Ok(selector)
    }

    /// Whether objects are chosen by more than their namespace.
    pub(super) fn has_terms(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// Whether every object is selected.
    pub(super) fn takes_all(&self) -> bool {
        self.namespace.is_none() && !self.has_terms()
    }

    pub(super) fn takes(&self, object: &Object) -> bool {
        let (namespace, name) = (&*object.key.0, &*object.key.1);
        let field = |field: &str| match field {
            "metadata.name" => name,
            "metadata.namespace" => namespace,
            "spec.clusterIP" => object.cluster_ip.as_deref().unwrap_or_default(),
            _ => object.node_name.as_deref().unwrap_or_default(),
        };
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
            && self.fields.iter().all(|(name, is_equal, value)| (field(name) == value) == *is_equal)
            && self.labels.iter().all(|requirement| requirement.is_met(object))
    }
}

impl Requirement {
    fn is_met(&self, object: &Object) -> bool {
        let label = |key: &String| object.labels.get(key);
        match self {
            Self::Exists(key) => label(key).is_some(),
            Self::Missing(key) => label(key).is_none(),
            Self::In(key, values) => label(key).is_some_and(|value| values.contains(value)),
            Self::NotIn(key, values) => label(key).is_none_or(|value| !values.contains(value)),
        }
    }
}

/// Cut at commas that stand outside of parentheses.
fn terms(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let cut = text.split(|letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        letter == ',' && depth == 0
    });
    cut.map(str::trim).filter(|term| !term.is_empty()).collect()
}

fn requirement(term: &str) -> Result<Requirement, Status> {
    let bad = || Status::bad_request(format!("unable to parse requirement: {term:?}"));
    let one = |key: &str, value: &str| (key.trim().to_owned(), vec![value.trim().to_owned()]);
    if let Some((key, value)) = term.split_once("!=") {
        let (key, values) = one(key, value);
        return Ok(Requirement::NotIn(key, values));
    }
    if let Some((key, value)) = term.split_once("==").or(term.split_once('=')) {
        let (key, values) = one(key, value);
        return Ok(Requirement::In(key, values));
    }
    if let Some((head, values)) = term.split_once('(') {
        let values = values.strip_suffix(')').ok_or_else(bad)?.split(',').map(|value| value.trim().to_owned()).collect();
        return match head.split_whitespace().collect::<Vec<_>>().as_slice() {
            [key, "in"] => Ok(Requirement::In((*key).to_owned(), values)),
            [key, "notin"] => Ok(Requirement::NotIn((*key).to_owned(), values)),
            _ => Err(bad()),
        };
    }
    let (key, is_missing) = term.strip_prefix('!').map_or((term, false), |key| (key, true));
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok(if is_missing { Requirement::Missing(key.to_owned()) } else { Requirement::Exists(key.to_owned()) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::resource::Resource, *};

    #[test]
    fn objects_are_selected() {
        let pod = json!({
            "metadata": { "name": "a", "namespace": "shop", "labels": { "app": "web", "tier": "front" } },
            "spec": { "nodeName": "n1" },
        });
        let pod = Object::new(Resource::Pods, pod, 1);
        let all = Target { resource: Resource::Pods, namespace: None, name: None, is_status: false };
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app==web,tier!=back", "", true),
            ("app in (api, web),!gone", "", true),
            ("app notin (api,web)", "", false),
            ("gone notin (api)", "", true),
            ("tier", "", true),
            ("!tier", "", false),
            ("", "spec.nodeName=n1", true),
            ("", "spec.nodeName!=n1", false),
            ("", "spec.clusterIP!=None", true),
            ("", "spec.clusterIP=None", false),
            ("", "metadata.name=a,metadata.namespace=shop", true),
            ("", "metadata.name=b", false),
        ] {
            let selector = Selector::new(&all, labels, fields).unwrap();
            assert_eq!(selector.takes(&pod), expected, "{labels} {fields}");
        }
        let elsewhere = Target { namespace: Some("other".to_owned()), ..all.clone() };
        assert!(!Selector::new(&elsewhere, "", "").unwrap().takes(&pod));
        for (labels, fields) in
            [("a in (b", ""), ("a within (b)", ""), ("a b", ""), ("!", ""), ("", "spec.color=red"), ("", "x")]
        {
            assert!(Selector::new(&all, labels, fields).is_err(), "{labels} {fields}");
        }
    }
}
