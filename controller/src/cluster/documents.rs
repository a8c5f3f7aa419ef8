//! A file's documents, cut at their markers before anything is parsed, so that one broken document doesn't take the others with it.

/// A document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// Its number, from 1; documents of nothing but comments are not counted.
    pub(super) number: u32,
    /// Lines of the file before it.
    pub(super) lines_before: usize,
    /// Its text.
    pub(super) text: &'a str,
}

/// Cuts at lines that start with `---` or `...`: YAML forbids them within a document, in block scalars and quoted ones too
/// (YAML 1.2.2, section 9.1.2, `c-forbidden`).
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut start = 0;
    let mut start_line = 0;
    let mut offset = 0;
    let mut take = |from: usize, to: usize, lines_before: usize| {
        let text = &text[from..to];
        if text.lines().any(holds_content) {
            documents.push(Document { number: documents.len() as u32 + 1, lines_before, text });
        }
    };
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        if is_marker(line) {
            take(start, offset, start_line);
            // What stands on the line of `---` belongs to the document that it starts.
            start = offset + 3;
            start_line = line_number;
        }
        offset += line.len();
    }
    take(start, text.len(), start_line);
    documents
}

fn is_marker(line: &str) -> bool {
    (line.starts_with("---") || line.starts_with("..."))
        && line[3..].chars().next().is_none_or(|next| next.is_ascii_whitespace())
}

/// Comments, directives and blank lines hold none.
fn holds_content(line: &str) -> bool {
    let content = line.trim_start();
    !content.is_empty() && !content.starts_with('#') && !line.starts_with('%')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_cut_and_comments_do_not_count() {
        for (text, expected) in [
            ("a: 1\n---\nb: 2\n", vec![(1, 0, "a: 1\n"), (2, 1, "\nb: 2\n")]),
            ("---\na: 1\n", vec![(1, 0, "\na: 1\n")]),
            ("# only words\n---\n# and more\n--- \na: 1", vec![(1, 3, " \na: 1")]),
            ("%YAML 1.2\n---\na: 1\n...\n", vec![(1, 1, "\na: 1\n")]),
            ("--- {a: 1}\n", vec![(1, 0, " {a: 1}\n")]),
            ("a: |\n  ---\n  text\n", vec![(1, 0, "a: |\n  ---\n  text\n")]),
            ("a: 1\r\n---\r\nb: 2\r\n", vec![(1, 0, "a: 1\r\n"), (2, 1, "\r\nb: 2\r\n")]),
            ("\u{feff}a: 1", vec![(1, 0, "a: 1")]),
            ("---a: 1\n", vec![(1, 0, "---a: 1\n")]),
            ("", vec![]),
            ("---\n---\n...\n", vec![]),
        ] {
            let found: Vec<_> = documents(text).into_iter().map(|it| (it.number, it.lines_before, it.text)).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
