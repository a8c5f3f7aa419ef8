//! What a YAML document says of itself, without parsing it.

use super::{ObjectId, identity};
use crate::cluster::kind::Kind;

/// `apiVersion` and `kind`, if both stand at the top level as plain text: a parser has to look at documents that write them otherwise.
pub(super) fn scan(text: &str) -> Option<(&str, &str)> {
    let mut api_version = None;
    let mut kind = None;
    for line in text.lines() {
        if let Some(value) = line.strip_prefix("apiVersion:") {
            api_version = Some(plain(value)?);
        } else if let Some(value) = line.strip_prefix("kind:") {
            kind = Some(plain(value)?);
        }
        if let (Some(api_version), Some(kind)) = (api_version, kind) {
            return Some((api_version, kind));
        }
    }
    None
}

/// Which object a document that cannot be parsed seems to be, going by its lines.
pub(super) fn guess(text: &str) -> Option<ObjectId> {
    let (api_version, kind) = scan(text)?;
    let kind = Kind::of(api_version, kind)?;
    let mut fields = text.lines().skip_while(|line| !line.starts_with("metadata:")).skip(1).peekable();
    let indent = indentation(fields.peek()?);
    let mut name = None;
    let mut namespace = None;
    for line in fields.take_while(|line| line.trim().is_empty() || indentation(line) > 0) {
        if indentation(line) != indent {
            continue;
        }
        if let Some(value) = line[indent..].strip_prefix("name:") {
            name = plain(value);
        } else if let Some(value) = line[indent..].strip_prefix("namespace:") {
            namespace = plain(value);
        }
    }
    Some(identity(kind, namespace.unwrap_or_default(), name?))
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// A scalar that means itself: no quotes but a pair around it, no anchors, no escapes, a comment at most.
fn plain(value: &str) -> Option<&str> {
    let value = value.split_once(" #").map_or(value, |(value, _)| value).trim();
    let value = match value.as_bytes() {
        [b'"', .., b'"'] | [b'\'', .., b'\''] => &value[1..value.len() - 1],
        _ => value,
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"./-".contains(&byte);
    (!value.is_empty() && value.bytes().all(is_plain)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_found_where_it_is_plain() {
        for (text, expected) in [
            ("apiVersion: v1\nkind: Node\n", Some(("v1", "Node"))),
            ("kind: \"Node\" # a node\napiVersion: 'v1'\n", Some(("v1", "Node"))),
            ("metadata:\n  kind: Pod\nkind: Node\napiVersion: v1", Some(("v1", "Node"))),
            ("kind: &k Node\napiVersion: v1\n", None),
            ("{kind: Node, apiVersion: v1}\n", None),
            ("kind:\n  Node\napiVersion: v1\n", None),
            ("kind: \"\napiVersion: v1\n", None),
        ] {
            assert_eq!(scan(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_broken_document_is_known_by_its_lines() {
        let text =
            "kind: Service\napiVersion: v1\nmetadata:\n  labels:\n    name: no\n  name: web\n  namespace: shop\nspec: [\n";
        assert_eq!(guess(text).map(|id| id.to_string()).as_deref(), Some("Service shop/web"));
        assert_eq!(guess("kind: Service\napiVersion: v1\nmetadata: {name: web}\n"), None);
        assert_eq!(guess("kind: Service\napiVersion: v1\nmetadata:\n"), None);
    }
}
