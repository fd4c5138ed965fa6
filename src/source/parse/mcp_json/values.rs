//! Reads the values of the JSON files of agents. Tools write numbers and booleans for texts and texts for booleans, and
//! null or an empty text for a value that is not set. Pure.

use jsonc_parser::ast::Value;
use jsonc_parser::common::{Range, Ranged};
use serde_json::json;

use crate::resource::is_unbraced_variable;

/// A value of an unexpected type: its range, and the expected type.
pub type TypeMismatch = (Range, &'static str);

/// True if the value says that nothing is set: null, or an empty text.
pub fn is_absent(value: &Value<'_>) -> bool {
    matches!(value, Value::NullKeyword(_)) || value.as_string_lit().is_some_and(|text| text.value.is_empty())
}

/// True for the keys in which people write comments, since JSON has none.
pub fn is_comment(key: &str) -> bool {
    key.starts_with("//")
        || key.starts_with('#')
        || matches!(key, "_comment" | "_comments" | "_note" | "$comment")
}

/// Returns the text of a value; a number or boolean stands for its text.
pub fn text(value: &Value<'_>) -> Result<String, TypeMismatch> {
    match value {
        Value::StringLit(text) => Ok(text.value.clone().into_owned()),
        Value::NumberLit(number) => Ok(number.value.to_owned()),
        Value::BooleanLit(boolean) => Ok(boolean.value.to_string()),
        other => Err((other.range(), "a string")),
    }
}

/// Returns the texts of a list, without the nulls in it.
pub fn texts(value: &Value<'_>) -> Result<Vec<String>, TypeMismatch> {
    let list = value.as_array().ok_or((value.range(), "a list of strings"))?;
    list.elements.iter().filter(|element| !matches!(element, Value::NullKeyword(_))).map(text).collect()
}

/// Returns whether a value means yes: true, a number other than 0, or a text other than those that mean no.
pub fn flag(value: &Value<'_>) -> Result<bool, TypeMismatch> {
    match value {
        Value::BooleanLit(boolean) => Ok(boolean.value),
        Value::NumberLit(number) => Ok(number.value.parse::<f64>().is_ok_and(|number| number != 0.0)),
        Value::StringLit(text) => {
            let text = text.value.trim();
            Ok(!["", "0", "false", "no", "off"].iter().any(|no| no.eq_ignore_ascii_case(text)))
        }
        other => Err((other.range(), "true or false")),
    }
}

/// Returns variables or headers as a list of names and values. A null leaves out its variable or header.
pub fn name_value_pairs(value: &Value<'_>) -> Result<Vec<serde_json::Value>, TypeMismatch> {
    let fields = value.as_object().ok_or((value.range(), "an object with string values"))?;
    let is_set = |value: &Value<'_>| !matches!(value, Value::NullKeyword(_));
    fields
        .properties
        .iter()
        .filter(|property| is_set(&property.value))
        .map(|property| Ok(json!({ "name": property.name.as_str(), "value": text(&property.value)? })))
        .collect()
}

/// Returns what `find` finds in the first text in the value, or in the members of a list or object, with the range of
/// that text.
pub fn find_in_texts<T>(value: &Value<'_>, find: &impl Fn(&str) -> Option<T>) -> Option<(Range, T)> {
    match value {
        Value::StringLit(text) => find(&text.value).map(|found| (text.range, found)),
        Value::Array(list) => list.elements.iter().find_map(|element| find_in_texts(element, find)),
        Value::Object(fields) => {
            fields.properties.iter().find_map(|property| find_in_texts(&property.value, find))
        }
        _ => None,
    }
}

/// True if a text holds a reference to a variable in a notation that is not expanded here: `$NAME` or `{env:NAME}`.
pub fn has_unexpanded_reference(text: &str) -> bool {
    let is_reference =
        |word: &str| is_unbraced_variable(word) || word.starts_with("{env:") && word.ends_with('}');
    text.split_whitespace().any(is_reference)
}

#[cfg(test)]
mod tests {
    use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

    use super::*;

    fn with_value<T>(json: &str, read: impl Fn(&Value<'_>) -> T) -> T {
        let parsed = parse_to_ast(json, &CollectOptions::default(), &ParseOptions::default()).unwrap();
        read(parsed.value.as_ref().unwrap())
    }

    #[test]
    fn values_are_read_whatever_type_a_tool_wrote() {
        for (json, absent, as_text, as_flag) in [
            ("null", true, None, None),
            ("\"\"", true, Some(""), Some(false)),
            ("\"x\"", false, Some("x"), Some(true)),
            ("true", false, Some("true"), Some(true)),
            ("false", false, Some("false"), Some(false)),
            ("\"True\"", false, Some("True"), Some(true)),
            ("\" FALSE \"", false, Some(" FALSE "), Some(false)),
            ("\"off\"", false, Some("off"), Some(false)),
            ("1", false, Some("1"), Some(true)),
            ("0", false, Some("0"), Some(false)),
            ("0.0", false, Some("0.0"), Some(false)),
            ("-1.5e3", false, Some("-1.5e3"), Some(true)),
            ("[]", false, None, None),
            ("{}", false, None, None),
        ] {
            let read = with_value(json, |value| (is_absent(value), text(value).ok(), flag(value).ok()));
            assert_eq!(read, (absent, as_text.map(str::to_owned), as_flag), "{json}");
        }
    }

    #[test]
    fn nulls_are_left_out_of_lists_and_pairs() {
        assert_eq!(with_value("[\"a\", null, 1, true, \"\"]", texts).unwrap(), ["a", "1", "true", ""]);
        assert!(with_value("[[]]", texts).is_err() && with_value("\"a b\"", texts).is_err());
        let pairs = with_value(r#"{ "A": 1, "B": null, "C": false, "D": "" }"#, name_value_pairs).unwrap();
        let expected = json!([
            { "name": "A", "value": "1" }, { "name": "C", "value": "false" }, { "name": "D", "value": "" },
        ]);
        assert_eq!(serde_json::Value::Array(pairs), expected);
    }

    #[test]
    fn references_in_other_notations_are_recognized() {
        for (text, expected) in [
            ("$TOKEN", true),
            ("Bearer $TOKEN", true),
            ("$HOME/bin/x", true),
            ("$DISPLAY:0", true),
            ("{env:TOKEN}", true),
            ("Bearer {env:TOKEN}", true),
            ("${TOKEN}", false),
            ("${env:TOKEN}", false),
            ("pa$WORD", false),
            ("$lower", false),
            ("$1", false),
            ("$", false),
            ("a$", false),
            ("$A-B", false),
            ("{env:", false),
        ] {
            assert_eq!(has_unexpanded_reference(text), expected, "{text}");
        }
        assert!(with_value(r#"{ "A": ["x", "$X"] }"#, |value| find_in_texts(value, &|text| {
            has_unexpanded_reference(text).then_some(())
        })
        .is_some()));
    }
}
