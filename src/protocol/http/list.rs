//! Lists in header values (RFC 9110, section 5.6.1) and what their members are made of.

/// The members of a comma-separated list, empty ones among them. A comma within a quoted string
/// separates nothing.
pub(in super::super) fn list_members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    split_unquoted(list, b',')
}

/// The parts between separators that are in no quoted string (RFC 9110, section 5.6.4), without
/// white space at their ends. A string that is not closed takes in all that follows.
pub(in super::super) fn split_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = unquoted(text, separator);
        rest = text.get(end + 1..);
        Some(text[..end].trim_ascii())
    })
}

/// The place of the first such byte that is in no quoted string, or else the end.
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

/// Whether this is a token (RFC 9110, section 5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    let is_token_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_token_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

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
