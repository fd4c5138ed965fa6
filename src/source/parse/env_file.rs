//! Parses files of environment variables as VS Code and dotenv read them. Pure.

use secrecy::SecretString;

use crate::resource::is_env_var_name;

/// Returns the variables of a file, in its order; of a name that occurs twice, the last value.
///
/// A line is `NAME=value`, optionally after `export`. Blank lines, lines that begin with `#`, and lines without a valid
/// name are ignored. A value may be in single quotes, double quotes or backticks, and then span lines; in double quotes
/// `\n` and `\r` stand for line breaks. Without quotes, a `#` begins a comment. Nothing is expanded.
pub fn parse_env_file(text: &str) -> Vec<(String, SecretString)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
    let mut variables: Vec<(String, SecretString)> = Vec::new();
    let mut next_line = 0;
    while let Some(rest) = text.get(next_line..).filter(|rest| !rest.is_empty()) {
        let line_end = next_line + rest.find('\n').unwrap_or(rest.len());
        let line = text.get(next_line..line_end).unwrap_or_default().trim_start();
        next_line = line_end + 1;
        let Some((name, value)) = line.strip_prefix("export ").unwrap_or(line).split_once('=') else {
            continue;
        };
        let name = name.trim();
        if !is_env_var_name(name) {
            continue;
        }
        let value = value.trim_start();
        let value = match closed_quote(text.get(line_end - value.len()..).unwrap_or_default()) {
            Some((quoted, length)) => {
                let end = line_end - value.len() + length;
                let after = text.get(end..).unwrap_or_default();
                next_line = end + after.find('\n').map_or(after.len(), |line_break| line_break + 1);
                quoted
            }
            None => value.split('#').next().unwrap_or_default().trim().to_owned(),
        };
        variables.retain(|(other, _)| other != name);
        variables.push((name.to_owned(), value.into()));
    }
    variables
}

/// Returns the text in the quotes at the start of `text`, which may span lines, and its length with the quotes. `None`
/// without a closing quote.
fn closed_quote(text: &str) -> Option<(String, usize)> {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\'' | '`'))?;
    let mut is_escaped = false;
    let (end, _) = text.char_indices().skip(1).find(|(_, char)| {
        let closes = *char == quote && !is_escaped;
        is_escaped = *char == '\\' && !is_escaped;
        closes
    })?;
    let quoted = text.get(1..end)?;
    let value =
        if quote == '"' { quoted.replace("\\n", "\n").replace("\\r", "\r") } else { quoted.to_owned() };
    Some((value, end + 1))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn lines_are_read_as_dotenv_reads_them() {
        for (text, expected) in [
            ("", ""),
            ("A=1", "A=1"),
            ("A=1\nB=2\n", "A=1|B=2"),
            ("\u{feff}A=1\r\nB=2\r\n", "A=1|B=2"),
            ("# comment\n\n  A = 1  \n", "A=1"),
            ("export A=1\n", "A=1"),
            ("A=\nB=2", "A=|B=2"),
            ("A=x=y", "A=x=y"),
            ("A=1 # comment", "A=1"),
            ("A=a#b", "A=a"),
            ("A=\"a # b\" # comment\nB=2", "A=a # b|B=2"),
            ("A='a\\nb'", "A=a\\nb"),
            ("A=\"a\\nb\"", "A=a\nb"),
            ("A=\"one\ntwo\"\nB=2", "A=one\ntwo|B=2"),
            ("A='one\ntwo\n'\nB=\"3\"\n", "A=one\ntwo\n|B=3"),
            ("A=`it's \"x\"`", "A=it's \"x\""),
            ("A=\"not closed\nB=2", "A=\"not closed|B=2"),
            ("A=$B ${C}", "A=$B ${C}"),
            ("A=1\nA=2\n", "A=2"),
            ("1A=1\nA B=2\n=3\nno equals sign\n", ""),
            ("A=\"\"", "A="),
            ("A=ä \nB='ö\nü'", "A=ä|B=ö\nü"),
        ] {
            let variables = parse_env_file(text);
            let pairs: Vec<_> =
                variables.iter().map(|(name, value)| format!("{name}={}", value.expose_secret())).collect();
            assert_eq!(pairs.join("|"), expected, "{text:?}");
        }
    }
}
