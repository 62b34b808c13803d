//! Percent-encoding in paths and queries.

use std::{borrow::Cow, fmt};

/// Why percent-encoded text cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapeError {
    /// A `%` is not followed by two hexadecimal digits (RFC 3986, section 2.1).
    Digits,
    /// The decoded bytes are not UTF-8.
    Utf8,
}

impl fmt::Display for EscapeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Digits => "a % is not followed by two hexadecimal digits",
            Self::Utf8 => "the percent-encoded text is not UTF-8",
        })
    }
}

impl std::error::Error for EscapeError {}

/// Decodes `%XX` (RFC 3986, section 2.1). The result may contain any character, including `/` and NUL.
///
/// # Errors
/// An escape is malformed, or the decoded bytes are not UTF-8.
pub fn percent_decode(text: &str) -> Result<Cow<'_, str>, EscapeError> {
    decode(text, false)
}

/// One `name=value` pair of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueryPair<'q> {
    /// The decoded name, or the name as sent if it cannot be decoded.
    pub name: Cow<'q, str>,
    /// The decoded value, or the value as sent if it cannot be decoded.
    pub value: Cow<'q, str>,
    /// Why the value could not be decoded.
    pub flaw: Option<EscapeError>,
}

/// Yields the `name=value` pairs of a query, decoded as a form: `+` is a space. A name without `=` has
/// an empty value. A pair that cannot be decoded does not affect the others, because links often carry
/// unrelated parameters.
pub fn query_pairs(query: &str) -> impl Iterator<Item = QueryPair<'_>> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (value, flaw) = match decode(value, true) {
            Ok(decoded) => (decoded, None),
            Err(flaw) => (value.into(), Some(flaw)),
        };
        QueryPair { name: decode(name, true).unwrap_or(name.into()), value, flaw }
    })
}

fn decode(text: &str, plus_is_space: bool) -> Result<Cow<'_, str>, EscapeError> {
    let is_encoded = |byte| byte == b'%' || (plus_is_space && byte == b'+');
    if !text.bytes().any(is_encoded) {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        decoded.push(match first {
            b'%' => {
                let (digits, after) = rest.split_at_checked(2).ok_or(EscapeError::Digits)?;
                rest = after;
                escaped_byte(digits).ok_or(EscapeError::Digits)?
            }
            b'+' if plus_is_space => b' ',
            &byte => byte,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| EscapeError::Utf8)
}

fn escaped_byte(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0, |byte, &digit| {
        let value = char::from(digit).to_digit(16)?;
        Some(byte << 4 | value as u8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_escapes_is_not_copied() {
        assert!(matches!(percent_decode("/v1/a+b"), Ok(Cow::Borrowed("/v1/a+b"))));
    }

    #[test]
    fn escapes_in_either_case_are_decoded_once() {
        assert_eq!(percent_decode("%c3%A9%2f%2525+").unwrap(), "é/%25+");
    }

    #[test]
    fn a_broken_escape_is_an_error() {
        for text in ["%", "%4", "a%4", "%4g", "%+1", "%é0"] {
            assert_eq!(percent_decode(text), Err(EscapeError::Digits), "{text}");
        }
        assert_eq!(percent_decode("%ff"), Err(EscapeError::Utf8));
    }

    #[test]
    fn a_query_is_split_before_it_is_decoded() {
        let decoded = |query| {
            let pairs = query_pairs(query).map(|QueryPair { name, value, flaw }| {
                assert_eq!(flaw, None);
                (name.into_owned(), value.into_owned())
            });
            pairs.collect::<Vec<_>>()
        };
        let expected = [("a", "1"), ("b c", "&="), ("d", ""), ("e", "f=g"), ("", "h")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(decoded("a=1&&b+c=%26%3D&d&e=f=g&=h"), expected);
        assert_eq!(query_pairs("").count(), 0);
    }

    #[test]
    fn a_pair_that_cannot_be_decoded_stays_as_it_was_sent_and_spoils_no_other() {
        let pairs: Vec<_> = query_pairs("%zz=%41&%62=%zz+&c=%ff&d=%64").collect();
        let expected = [
            ("%zz", "A", None),
            ("b", "%zz+", Some(EscapeError::Digits)),
            ("c", "%ff", Some(EscapeError::Utf8)),
            ("d", "d", None),
        ];
        let expected = expected.map(|(name, value, flaw)| QueryPair {
            name: name.into(),
            value: value.into(),
            flaw,
        });
        assert_eq!(pairs, expected);
    }
}
