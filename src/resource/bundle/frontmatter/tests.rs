use super::*;

/// Returns the violations of a text, or the error because of which it cannot be used.
fn messages(text: &str) -> Vec<String> {
    match parse("a", text.as_bytes()) {
        Ok(parsed) => parsed.violations.iter().map(ToString::to_string).collect(),
        Err(error) => vec![format!("unusable: {error}")],
    }
}

#[test]
fn well_formed_frontmatter_has_no_violations() {
    for text in [
        "---\nname: a\ndescription: Does it.\n---\nBody.\n",
        "---\r\nname: a\r\ndescription: Does it.\r\n---\r\nBody.\r\n",
        "---\nname: a\ndescription: >-\n  Two\n  lines.\nlicense: MIT\nmetadata: { x: 'y' }\nwhenToUse: now\n---",
        "---\nname: a\ndescription: \"Use: when asked\"\n---\n",
        "--- \nname: a\ndescription: x\n---\t\n",
    ] {
        assert_eq!(messages(text), [""; 0], "{text:?}");
    }
}

#[test]
fn text_that_other_agents_load_is_accepted_with_its_violations() {
    let long = format!("---\nname: a\ndescription: {}\n---\n", "x".repeat(1025));
    let cut = format!("{}…", "x".repeat(1023));
    let table: &[(&str, &str, &[&str])] = &[
        ("# Title\n", "Title", &["SKILL.md:1: the frontmatter is missing"]),
        ("# Title\n\nDoes\nit.\n\nMore.\n", "Does it.", &["SKILL.md:1: the frontmatter is missing"]),
        (
            "\u{feff}---\r\nname: a\r\ndescription: Does it.\r\n---\r\n",
            "Does it.",
            &["SKILL.md:1: the file begins with a byte order mark"],
        ),
        (
            "<!-- from x -->\n\n---\nname: a\ndescription: Does it.\n---\n",
            "Does it.",
            &["SKILL.md:3: the line --- must be the first line of the file"],
        ),
        (
            "---\nname: a\ndescription: Use: when asked\n  or not\n---\n",
            "Use: when asked or not",
            &["SKILL.md:3: the frontmatter is not valid YAML"],
        ),
        (
            "---\nname: a\ndescription: >-\n\tUse it\n\twhen asked\nlicense: MIT\n---\n",
            "Use it when asked",
            &["SKILL.md:3: the frontmatter is not valid YAML"],
        ),
        (
            "---\nname: a\nargument-hint: [x] [y]\ndescription: 'Does: it'\n---\n",
            "Does: it",
            &["SKILL.md:3: the frontmatter is not valid YAML"],
        ),
        (
            "---\nname: [a]\ndescription: x\n---\n",
            "x",
            &["SKILL.md:2: the frontmatter is not valid YAML", "SKILL.md:2: the name"],
        ),
        (
            "---\nName: a\nDescription: Does it.\n---\n",
            "Does it.",
            &[
                "SKILL.md:2: the field must be written \"name\"",
                "SKILL.md:3: the field must be written \"description\"",
            ],
        ),
        ("---\ndescription: x\n---\n", "x", &["SKILL.md:1: the frontmatter has no name; write name: a"]),
        (
            "---\nname: a\n---\n\n# Title\n\nDoes it.\n",
            "Does it.",
            &["SKILL.md:1: the frontmatter has no description"],
        ),
        (
            "---\nname: a\ndescription:\n---\nDoes it.\n",
            "Does it.",
            &["SKILL.md:3: the frontmatter has no description"],
        ),
        (
            "---\n---\nBody.\n",
            "Body.",
            &["SKILL.md:1: the frontmatter has no name", "SKILL.md:1: the frontmatter has no d"],
        ),
        (
            "---\nname: b\ndescription: x\n---\n",
            "x",
            &[
                "SKILL.md:2: the name \"b\" must be the same as the name of the skill; the skill is offered as \"a\": \"name: b\"",
            ],
        ),
        ("---\nname: A b\ndescription: x\n---\n", "x", &["SKILL.md:2: the name \"A b\" may contain"]),
        ("---\nname: a--b\ndescription: x\n---\n", "x", &["SKILL.md:2: the name \"a--b\" must not start"]),
        ("---\nname: -a\ndescription: x\n---\n", "x", &["SKILL.md:2: the name \"-a\" must not start"]),
        (&long, &cut, &["SKILL.md:3: the description has 1025 characters"]),
    ];
    for (text, description, expected) in table {
        let found = messages(text);
        assert_eq!(found.len(), expected.len(), "{text:?}: {found:?}");
        for (found, expected) in found.iter().zip(*expected) {
            assert!(found.starts_with(expected), "{text:?}: {found}");
        }
        assert_eq!(parse("a", text.as_bytes()).unwrap().description, *description, "{text:?}");
    }
}

#[test]
fn text_that_cannot_be_used_is_rejected() {
    for (text, expected) in [
        ("", "unusable: SKILL.md:1: there is no description"),
        ("\n<!-- nothing -->\n", "unusable: SKILL.md:1: there is no description"),
        ("---\nname: a\n", "unusable: SKILL.md:1: the frontmatter is not closed"),
        ("---\nname: a\n---\n", "unusable: SKILL.md:1: there is no description"),
        ("---\nname: a\ndescription: '  '\n---\n", "unusable: SKILL.md:3: there is no description"),
    ] {
        let found = messages(text);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{text:?}: {found:?}");
    }
    let error = parse("a", b"---\n\xff").unwrap_err().to_string();
    assert_eq!(error, "SKILL.md:2: the file is not valid UTF-8; save it as UTF-8");
}

#[test]
fn frontmatter_is_kept_byte_for_byte() {
    let text = "---\r\nname: a\r\ndescription:   x  # why\r\nx-vendor: { odd:  [1,2] }\r\n---\r\n# Body\r\n";
    let parsed = parse("a", text.as_bytes()).unwrap();
    assert_eq!(&text[parsed.yaml], "name: a\r\ndescription:   x  # why\r\nx-vendor: { odd:  [1,2] }\r\n");
    assert_eq!(&text[parsed.body], "# Body\r\n");
    assert_eq!(parsed.description, "x");
}
