//! Lists, quoted strings and tokens in header values (RFC 9110, section 5.6).

/// Yields the members of a comma-separated list, including empty ones. A comma in a quoted string does
/// not separate.
pub(in super::super) fn list_members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    split_unquoted(list, b',')
}

/// Splits a value at separators outside quoted strings (RFC 9110, section 5.6.4) and trims each part. A
/// quoted string without an end extends to the end of the value.
pub(in super::super) fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = unquoted(text, separator);
        rest = text.get(end + 1..);
        Some(text[..end].trim_ascii())
    })
}

/// Returns the offset of the first `wanted` byte outside quoted strings, or the length of the text.
fn unquoted(text: &[u8], wanted: u8) -> usize {
    let (mut is_quoted, mut at) = (false, 0);
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' if is_quoted => at += 1,
            _ if byte == wanted && !is_quoted => break,
            _ => {}
        }
        at += 1;
    }
    at.min(text.len())
}

/// Whether the text ends inside a quoted string.
pub(super) fn ends_quoted(text: &[u8]) -> bool {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for &byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            _ => {}
        }
    }
    is_quoted
}

/// Whether the text is a token (RFC 9110, section 5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    let is_token_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_token_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_string_without_an_end_is_found() {
        for whole in ["", "a", r#""a""#, r#""a\"""#, r#""a\\""#, r"a\"] {
            assert!(!ends_quoted(whole.as_bytes()) || whole.starts_with('\\'), "{whole}");
        }
        for open in [r#"""#, r#"a"b"#, r#""a\""#, r#""a\"#, r#"\""#] {
            assert!(ends_quoted(open.as_bytes()), "{open}");
        }
    }

    #[test]
    fn a_list_is_split_where_no_string_is_quoted() {
        let table: [(&str, &[&str]); 10] = [
            ("", &[""]),
            ("a", &["a"]),
            (" a ,\tb,,c", &["a", "b", "", "c"]),
            (r#"x=", b, ", c"#, &[r#"x=", b, ""#, "c"]),
            (r#"x="\",", c"#, &[r#"x="\",""#, "c"]),
            (r#"x="\\",c"#, &[r#"x="\\""#, "c"]),
            (r#"a"b,c"d,e"#, &[r#"a"b,c"d"#, "e"]),
            (r#"a,"b,c"#, &["a", r#""b,c"#]),
            (r#"a,"b\"#, &["a", r#""b\"#]),
            (r"a\,b", &[r"a\", "b"]),
        ];
        for (list, expected) in table {
            let members = list_members(list.as_bytes());
            let members: Vec<_> = members.map(|m| str::from_utf8(m).expect("ASCII")).collect();
            assert_eq!(members, expected, "{list}");
        }
    }
}
