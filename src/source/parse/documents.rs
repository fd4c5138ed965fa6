//! Splits a YAML file into its documents, so that a document that does not parse does not affect the others.

/// One document: its text and its location in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct YamlDocument<'a> {
    /// The text, including its `---` line if it has one.
    pub text: &'a str,
    /// The line of the file at which `text` begins, from 1.
    pub first_line: u32,
    /// The line at which the content begins, after comments and `---`, from 1.
    pub content_line: u32,
}

/// Returns the documents of a file that contain more than comments.
///
/// A marker is `---` or `...` at the very start of a line. YAML lets no scalar, quoted or block, continue past a
/// marker, so splitting needs no parser.
pub fn split_documents(text: &str) -> Vec<YamlDocument<'_>> {
    let mut documents = Vec::new();
    let mut open = OpenDocument::default();
    let mut offset = 0;
    for (number, line) in (1_u32..).zip(text.split_inclusive('\n')) {
        if let Some(content) = strip_marker(line, "---") {
            if open.content_line.is_some() || open.has_marker {
                documents.extend(open.finish(text, offset));
                open = OpenDocument::starting_at(offset, number);
            }
            open.has_marker = true;
            if has_content(content) {
                open.content_line = Some(number);
            }
        } else if strip_marker(line, "...").is_some() {
            documents.extend(open.finish(text, offset));
            open = OpenDocument::starting_at(offset + line.len(), number + 1);
        } else if open.content_line.is_none()
            && has_content(line)
            && (open.has_marker || !line.starts_with('%'))
        {
            open.content_line = Some(number);
        }
        offset += line.len();
    }
    documents.extend(open.finish(text, offset));
    documents
}

/// A document whose end was not found yet.
struct OpenDocument {
    start: usize,
    first_line: u32,
    has_marker: bool,
    content_line: Option<u32>,
}

impl Default for OpenDocument {
    fn default() -> Self {
        Self::starting_at(0, 1)
    }
}

impl OpenDocument {
    fn starting_at(start: usize, first_line: u32) -> Self {
        Self { start, first_line, has_marker: false, content_line: None }
    }

    fn finish<'a>(&self, text: &'a str, end: usize) -> Option<YamlDocument<'a>> {
        Some(YamlDocument {
            text: text.get(self.start..end)?,
            first_line: self.first_line,
            content_line: self.content_line?,
        })
    }
}

/// Returns the text after the marker, if the line is a marker line.
fn strip_marker<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.strip_prefix(marker)
        .filter(|content| content.is_empty() || content.starts_with([' ', '\t', '\r', '\n']))
}

fn has_content(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_at_markers_and_keep_their_lines() {
        type ExpectedDocument<'a> = (u32, u32, &'a str);
        let table: &[(&str, &[ExpectedDocument<'_>])] = &[
            ("", &[]),
            ("# only a comment\n", &[]),
            ("---\n---\n# nothing\n...\n", &[]),
            ("a: 1\n", &[(1, 1, "a: 1\n")]),
            ("a: 1\n---\nb: 2", &[(1, 1, "a: 1\n"), (2, 3, "---\nb: 2")]),
            ("# head\n---\n# more\na: 1\n", &[(1, 4, "# head\n---\n# more\na: 1\n")]),
            ("---\n---\na: 1\n", &[(2, 3, "---\na: 1\n")]),
            ("--- {a: 1}\n", &[(1, 1, "--- {a: 1}\n")]),
            ("%YAML 1.2\n---\na: 1\n", &[(1, 3, "%YAML 1.2\n---\na: 1\n")]),
            ("a: 1\n...\n%YAML 1.2\n---\nb: 1\n", &[(1, 1, "a: 1\n"), (3, 5, "%YAML 1.2\n---\nb: 1\n")]),
            ("a: 1\r\n---\r\nb: 1\r\n", &[(1, 1, "a: 1\r\n"), (2, 3, "---\r\nb: 1\r\n")]),
            ("a: |\n  ---\n  x\n", &[(1, 1, "a: |\n  ---\n  x\n")]),
            ("a: 1\n----\n", &[(1, 1, "a: 1\n----\n")]),
        ];
        for (text, expected) in table {
            let documents: Vec<_> = split_documents(text)
                .into_iter()
                .map(|document| (document.first_line, document.content_line, document.text))
                .collect();
            assert_eq!(&documents, expected, "{text:?}");
        }
    }
}
