//! WebSocket extensions that a client offers in its handshake (RFC 6455, section 9.1).

use std::borrow::Cow;

use super::http::{is_token, list_members, split_unquoted};

/// One offered extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension<'r> {
    /// The extension's name.
    pub name: &'r str,
    /// The parameters in order: each name with its value, if there is one.
    pub parameters: Vec<(&'r str, Option<Cow<'r, str>>)>,
}

impl<'r> Extension<'r> {
    /// Parses the value of one `Sec-WebSocket-Extensions` line. Yields `None` in place of a malformed
    /// extension.
    pub fn list(line: &'r [u8]) -> impl Iterator<Item = Option<Self>> {
        list_members(line).filter(|member| !member.is_empty()).map(Self::parse)
    }

    fn parse(member: &'r [u8]) -> Option<Self> {
        let mut parts = split_unquoted(member, b';');
        let name = token(parts.next()?)?;
        let parameters = parts.map(parameter).collect::<Option<_>>()?;
        Some(Self { name, parameters })
    }
}

fn parameter(text: &[u8]) -> Option<(&str, Option<Cow<'_, str>>)> {
    let Some(equals) = text.iter().position(|&byte| byte == b'=') else {
        return Some((token(text)?, None));
    };
    let (name, value) = (text[..equals].trim_ascii(), text[equals + 1..].trim_ascii());
    Some((token(name)?, Some(unquoted(value)?)))
}

/// Returns a parameter's value, which is a token or a quoted string that contains a token.
fn unquoted(value: &[u8]) -> Option<Cow<'_, str>> {
    let Some(quoted) = value.strip_prefix(b"\"") else { return token(value).map(Cow::from) };
    let mut content = Vec::new();
    let mut bytes = quoted.strip_suffix(b"\"")?.iter();
    while let Some(&byte) = bytes.next() {
        content.push(if byte == b'\\' { *bytes.next()? } else { byte });
    }
    token(&content).map(|content| Cow::from(content.to_owned()))
}

fn token(text: &[u8]) -> Option<&str> {
    str::from_utf8(text).ok().filter(|_| is_token(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(
        name: &'static str,
        parameters: &[(&'static str, Option<&'static str>)],
    ) -> Option<Extension<'static>> {
        let own =
            |&(name, value): &(&'static str, Option<&'static str>)| (name, value.map(Cow::from));
        Some(Extension { name, parameters: parameters.iter().map(own).collect() })
    }

    #[test]
    fn extensions_are_listed_with_their_parameters() {
        let line = br#" a , b;c ; d=1;e = "2" ,, f;g="\3x\-" "#;
        let expected = [
            extension("a", &[]),
            extension("b", &[("c", None), ("d", Some("1")), ("e", Some("2"))]),
            extension("f", &[("g", Some("3x-"))]),
        ];
        assert_eq!(Extension::list(line).collect::<Vec<_>>(), expected);
        assert_eq!(Extension::list(b" ,").count(), 0);
    }

    #[test]
    fn what_is_malformed_is_told_and_hides_no_other() {
        for member in [
            "a;",
            "a;;b",
            ";a",
            "a b",
            "a=1",
            "a;=1",
            "a;b=",
            "a;b=\"\"",
            "a;b=\"c",
            "a;b=c\"",
            "a;b=\"c d\"",
            "a;b=\", c, \"",
            "a;b=\"c\"d",
            "a;b=\"\\",
            "a;b=\"c\\\"",
            "\"a\"",
            "a;\"b\"",
            "a;b=1=2",
            "ü",
            "a;b=ü",
        ] {
            let read: Vec<_> = Extension::list(member.as_bytes()).collect();
            assert_eq!(read, [None], "{member}");
        }
        let read: Vec<_> = Extension::list(b"x;y=\", z, \", w").collect();
        assert_eq!(read, [None, extension("w", &[])]);
    }
}
