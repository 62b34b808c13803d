//! JSON text: writes strings and numbers, finds the raw text of values, and validates text that is
//! forwarded to others (`check.rs`).

mod check;

pub use check::{DEPTH_MAX, Flaw, FlawKind, check, check_but_numbers, check_utf8};

/// Appends `text` as a JSON string, including the quotes.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| must_escape(byte)) {
        out.extend_from_slice(&rest[..at]);
        put_escape(out, rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn must_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn put_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Appends an unsigned integer.
pub fn put_number(out: &mut Vec<u8>, number: u64) {
    // Most tallies are this short.
    if number < 10 {
        return out.push(b'0' + number as u8);
    }
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Returns the text of the first value at or after `from`. White space, colons and commas before it are
/// skipped. `json` must be valid JSON. Numbers keep the digits with which they were sent.
pub fn raw_value(json: &[u8], from: usize) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | b':' | b',');
    let start = from + json[from..].iter().take_while(|byte| blank(byte)).count();
    &json[start..end_of_value(json, start)]
}

fn end_of_value(json: &[u8], start: usize) -> usize {
    let mut depth = 0usize;
    let mut at = start;
    while at < json.len() {
        match json[at] {
            b'"' => at = end_of_string(json, at),
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            _ if depth > 0 => {
                at += 1;
                continue;
            }
            _ => return at + scalar_length(&json[at..]),
        }
        if depth == 0 {
            return at;
        }
    }
    at
}

fn scalar_length(json: &[u8]) -> usize {
    let within = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    json.iter().take_while(within).count()
}

/// Returns the offset after the closing quote of the string that opens at `start`.
pub fn end_of_string(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found + 1;
        if json[at - 1] == b'"' {
            return at;
        }
        at += 1;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_that_json_forbids_in_a_string_is_escaped() {
        let text: String = (0..=0x7Fu8).map(char::from).chain("é😀\u{2028}".chars()).collect();
        let mut out = Vec::new();
        put_string(&mut out, &text);
        assert!(out.iter().all(|&byte| byte >= 0x20));
        let mut parsed = out.clone();
        let value: simd_json::OwnedValue = simd_json::to_owned_value(&mut parsed).unwrap();
        assert_eq!(simd_json::prelude::ValueAsScalar::as_str(&value), Some(&text[..]));
    }

    #[test]
    fn a_raw_value_is_found_whatever_it_is() {
        for value in [
            "1",
            "-1.50e+10",
            "null",
            "true",
            r#""a\"b,}""#,
            r#""\\""#,
            "{}",
            r#"{"a":[1,{"b":"]"}],"c":2}"#,
            "[ [ ] , 2 ]",
        ] {
            for after in ["}", ",", " ,", "]", "\n}"] {
                let text = format!(" : {value}{after}");
                assert_eq!(raw_value(text.as_bytes(), 0), value.as_bytes(), "{text}");
            }
        }
    }
}
