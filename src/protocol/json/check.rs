//! Validates JSON strictly (RFC 8259) and locates the first error.
//!
//! Parts of requests and tokens are forwarded to back ends verbatim. Parsers differ in what they
//! tolerate, so text that gridcast's parser accepts could break a back end's. Only text that every
//! parser accepts is forwarded.

use std::fmt;
use std::ops::Range;

use memchr::memchr2;

/// The most levels of nested arrays and objects. Some parsers of back ends stop at 100.
pub const DEPTH_MAX: u32 = 64;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The most digits of an integer that certainly fits into a 64-bit float, whose largest value has 309.
const DIGITS_SAFE: usize = 300;

/// An error in a JSON text, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// The kind of error.
    pub kind: FlawKind,
    /// The offset of the error in bytes, counted from 0.
    pub offset: usize,
}

/// A kind of error in a JSON text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlawKind {
    /// A byte order mark at the start, which RFC 8259, section 8.1, forbids.
    ByteOrderMark,
    /// The text is not valid UTF-8.
    NotUtf8,
    /// The text ends before the value is complete.
    Ends,
    /// A character that is not allowed at this place.
    Unexpected,
    /// An unknown escape sequence.
    Escape,
    /// An escaped surrogate without its partner (RFC 8259, section 8.2).
    HalfSurrogate,
    /// A character below U+0020 in a string that is not escaped.
    Control,
    /// A malformed number.
    BadNumber,
    /// A number that does not fit into a 64-bit float (RFC 8259, section 6).
    HugeNumber,
    /// More levels of nesting than [`DEPTH_MAX`].
    Deep,
    /// More text after the value.
    Trailing,
}

impl fmt::Display for Flaw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.kind {
            FlawKind::ByteOrderMark => "a byte order mark",
            FlawKind::NotUtf8 => "not UTF-8",
            FlawKind::Ends => "the text ends too early",
            FlawKind::Unexpected => "an unexpected character",
            FlawKind::Escape => "an unknown escape",
            FlawKind::HalfSurrogate => "half of a surrogate pair",
            FlawKind::Control => "a control character that is not escaped",
            FlawKind::BadNumber => "a malformed number",
            FlawKind::HugeNumber => "a number too large for a 64-bit float",
            FlawKind::Deep => "more than 64 levels of nesting",
            FlawKind::Trailing => "more text after the value",
        };
        write!(formatter, "{words}, at offset {}", self.offset)
    }
}

impl std::error::Error for Flaw {}

/// Checks that every JSON parser accepts `text`.
///
/// # Errors
/// The first error.
pub fn check(text: &[u8]) -> Result<&str, Flaw> {
    let mut huge = None;
    let checked = check_but_numbers(text, |place| huge = huge.or(Some(place.start)))?;
    match huge {
        None => Ok(checked),
        Some(offset) => Err(Flaw { kind: FlawKind::HugeNumber, offset }),
    }
}

/// Checks a text but accepts numbers that do not fit into a 64-bit float; passes the range of each to
/// `note_huge`.
///
/// # Errors
/// The first error of any other kind.
pub fn check_but_numbers(text: &[u8], note_huge: impl FnMut(Range<usize>)) -> Result<&str, Flaw> {
    if text.starts_with(BYTE_ORDER_MARK) {
        return Err(Flaw { kind: FlawKind::ByteOrderMark, offset: 0 });
    }
    let checked = check_utf8(text)?;
    Checker { text, at: 0, levels: Levels::default(), note_huge }.document()?;
    Ok(checked)
}

/// Checks that bytes are valid UTF-8.
///
/// # Errors
/// The offset of the first invalid byte.
pub fn check_utf8(text: &[u8]) -> Result<&str, Flaw> {
    simdutf8::basic::from_utf8(text).map_err(|_| {
        let valid = str::from_utf8(text).err().map_or(0, |error| error.valid_up_to());
        Flaw { kind: FlawKind::NotUtf8, offset: valid }
    })
}

/// The arrays and objects that contain the current position.
#[derive(Default)]
struct Levels {
    depth: u32,
    // One bit per level, the innermost lowest: 1 for an object, 0 for an array.
    are_objects: u64,
}

const _: () = assert!(DEPTH_MAX <= u64::BITS);

struct Checker<'t, F> {
    text: &'t [u8],
    at: usize,
    levels: Levels,
    note_huge: F,
}

impl<F: FnMut(Range<usize>)> Checker<'_, F> {
    fn document(mut self) -> Result<(), Flaw> {
        loop {
            if self.begin_value()? {
                self.end_values()?;
                if self.levels.depth == 0 {
                    break;
                }
            }
        }
        self.skip_white_space();
        if self.at < self.text.len() { Err(self.flaw(FlawKind::Trailing)) } else { Ok(()) }
    }

    /// Reads a scalar, or the start of an array or object. Returns whether the value is complete.
    fn begin_value(&mut self) -> Result<bool, Flaw> {
        match self.next()? {
            b'"' => self.string()?,
            b'{' => return self.open(true),
            b'[' => return self.open(false),
            b'-' | b'0'..=b'9' => self.number()?,
            b't' => self.word(b"true")?,
            b'f' => self.word(b"false")?,
            b'n' => self.word(b"null")?,
            _ => return Err(self.flaw(FlawKind::Unexpected)),
        }
        Ok(true)
    }

    /// Enters an array or object, up to its first value. Returns whether it is empty and so complete.
    fn open(&mut self, is_object: bool) -> Result<bool, Flaw> {
        if self.levels.depth == DEPTH_MAX {
            return Err(self.flaw(FlawKind::Deep));
        }
        self.at += 1;
        if self.next()? == if is_object { b'}' } else { b']' } {
            self.at += 1;
            return Ok(true);
        }
        self.levels.depth += 1;
        self.levels.are_objects = self.levels.are_objects << 1 | u64::from(is_object);
        if is_object {
            self.key()?;
        }
        Ok(false)
    }

    /// Continues after a value: leaves the arrays and objects that end here, and moves to the next value
    /// if there is one.
    fn end_values(&mut self) -> Result<(), Flaw> {
        while self.levels.depth > 0 {
            let is_object = self.levels.are_objects & 1 != 0;
            match (self.next()?, is_object) {
                (b',', _) => {
                    self.at += 1;
                    return if is_object { self.key() } else { Ok(()) };
                }
                (b'}', true) | (b']', false) => {
                    self.at += 1;
                    self.levels.depth -= 1;
                    self.levels.are_objects >>= 1;
                }
                _ => return Err(self.flaw(FlawKind::Unexpected)),
            }
        }
        Ok(())
    }

    /// Reads a key and its colon.
    fn key(&mut self) -> Result<(), Flaw> {
        if self.next()? != b'"' {
            return Err(self.flaw(FlawKind::Unexpected));
        }
        self.string()?;
        if self.next()? != b':' {
            return Err(self.flaw(FlawKind::Unexpected));
        }
        self.at += 1;
        Ok(())
    }

    fn string(&mut self) -> Result<(), Flaw> {
        self.at += 1;
        loop {
            let rest = &self.text[self.at..];
            let plain = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
            // No early exit, so the compiler can vectorise the loop.
            if rest[..plain].iter().copied().fold(u8::MAX, u8::min) < b' ' {
                self.at += rest.iter().take_while(|&&byte| byte >= b' ').count();
                return Err(self.flaw(FlawKind::Control));
            }
            self.at += plain;
            match self.byte()? {
                b'"' => break,
                _ => self.escape()?,
            }
        }
        self.at += 1;
        Ok(())
    }

    fn escape(&mut self) -> Result<(), Flaw> {
        match self.text.get(self.at + 1) {
            None => return Err(self.ends()),
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => match self.escaped_unit(self.at)? {
                0xD800..0xDC00 if self.text.get(self.at + 6..self.at + 8) == Some(b"\\u") => {
                    match self.escaped_unit(self.at + 6)? {
                        0xDC00..0xE000 => self.at += 12,
                        _ => return Err(self.flaw(FlawKind::HalfSurrogate)),
                    }
                }
                0xD800..0xE000 => return Err(self.flaw(FlawKind::HalfSurrogate)),
                _ => self.at += 6,
            },
            Some(_) => return Err(self.flaw(FlawKind::Escape)),
        }
        Ok(())
    }

    /// Returns the UTF-16 unit of the escape `\uXXXX` at `at`.
    fn escaped_unit(&self, at: usize) -> Result<u32, Flaw> {
        let digits = self.text.get(at + 2..at + 6).ok_or(self.ends())?;
        let unit = digits
            .iter()
            .try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?));
        unit.ok_or(Flaw { kind: FlawKind::Escape, offset: at })
    }

    /// Reads a number (RFC 8259, section 6).
    fn number(&mut self) -> Result<(), Flaw> {
        let start = self.at;
        let bad = Flaw { kind: FlawKind::BadNumber, offset: start };
        self.at += usize::from(self.text[start] == b'-');
        let has_leading_zero = self.text.get(self.at) == Some(&b'0');
        let whole_digits = self.digits();
        if whole_digits == 0 || (has_leading_zero && whole_digits > 1) {
            return Err(bad);
        }
        if self.take(b".") && self.digits() == 0 {
            return Err(bad);
        }
        let has_exponent = self.take(b"eE");
        if has_exponent {
            self.take(b"+-");
            if self.digits() == 0 {
                return Err(bad);
            }
        }
        let is_ended = |byte: &u8| b" \t\n\r,]}".contains(byte);
        if !self.text.get(self.at).is_none_or(is_ended) {
            return Err(bad);
        }
        if (has_exponent || whole_digits > DIGITS_SAFE) && is_huge(&self.text[start..self.at]) {
            (self.note_huge)(start..self.at);
        }
        Ok(())
    }

    /// Skips digits and returns how many there were.
    fn digits(&mut self) -> usize {
        let count = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        count
    }

    /// Skips the next byte if it is one of `bytes`.
    fn take(&mut self, bytes: &[u8]) -> bool {
        let is_next = self.text.get(self.at).is_some_and(|byte| bytes.contains(byte));
        self.at += usize::from(is_next);
        is_next
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Flaw> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.flaw(FlawKind::Unexpected));
        }
        self.at += word.len();
        Ok(())
    }

    fn skip_white_space(&mut self) {
        while self.take(b" \t\n\r") {}
    }

    /// Skips white space and returns the byte after it, without consuming that byte.
    fn next(&mut self) -> Result<u8, Flaw> {
        self.skip_white_space();
        self.byte()
    }

    fn byte(&self) -> Result<u8, Flaw> {
        self.text.get(self.at).copied().ok_or(self.ends())
    }

    fn flaw(&self, kind: FlawKind) -> Flaw {
        Flaw { kind, offset: self.at }
    }

    fn ends(&self) -> Flaw {
        Flaw { kind: FlawKind::Ends, offset: self.text.len() }
    }
}

fn is_huge(number: &[u8]) -> bool {
    let number = str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok());
    number.is_none_or(f64::is_infinite)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flaw(text: impl AsRef<[u8]>) -> Option<(FlawKind, usize)> {
        check(text.as_ref()).err().map(|flaw| (flaw.kind, flaw.offset))
    }

    #[test]
    fn what_is_json_is_taken() {
        let deep =
            format!("{}{}", "[{\"a\":".repeat(31) + "[[", "]]".to_owned() + &"}]".repeat(31));
        for text in [
            "0",
            "-0",
            "-0.0e-0",
            "1E+2",
            "123456789012345678901234567890",
            "1e308",
            "1e-400",
            "\"\"",
            " null ",
            "true",
            "false",
            "[]",
            "{}",
            "[ ]",
            "{ }",
            "[[],[]]",
            "[1 , 2]",
            "{\"\":0}",
            "{\"a\":{},\"a\":[{}]}",
            "\t[\r\n1]\n",
            "\"\u{7f}\u{2028}é😀\"",
            r#""\"\\\/\b\f\n\r\t\u0000\uFFFF\uD83D\ude00""#,
            r#"["\ud834\udd1e"]"#,
            &deep,
        ] {
            assert_eq!(flaw(text), None, "{text}");
        }
        assert_eq!(flaw("9".repeat(308)), None);
        assert_eq!(flaw(format!("0.{}1", "0".repeat(500))), None);
    }

    #[test]
    fn what_some_parser_would_not_read_is_refused_with_its_place() {
        use FlawKind::*;
        let table: &[(&[u8], FlawKind, usize)] = &[
            (b"", Ends, 0),
            (b" ", Ends, 1),
            (b"\xEF\xBB\xBF{}", ByteOrderMark, 0),
            (b"\xEF\xBB", NotUtf8, 0),
            (b"[\"a\xff\"]", NotUtf8, 3),
            (b"[\"\xed\xa0\x80\"]", NotUtf8, 2),
            (b"[\"\xc0\xaf\"]", NotUtf8, 2),
            (b"[1", Ends, 2),
            (b"[\"a", Ends, 3),
            (b"{\"a\"", Ends, 4),
            (b"\"\\", Ends, 2),
            (b"\"\\u12", Ends, 5),
            (b"[1,]", Unexpected, 3),
            (b"[,1]", Unexpected, 1),
            (b"[1 2]", Unexpected, 3),
            (b"[1}", Unexpected, 2),
            (b"{\"a\":1]", Unexpected, 6),
            (b"{\"a\":1,}", Unexpected, 7),
            (b"{a:1}", Unexpected, 1),
            (b"{\"a\" 1}", Unexpected, 5),
            (b"{1:1}", Unexpected, 1),
            (b"{\"a\":}", Unexpected, 5),
            (b"['a']", Unexpected, 1),
            (b"[NaN]", Unexpected, 1),
            (b"[Infinity]", Unexpected, 1),
            (b"[nul]", Unexpected, 1),
            (b"TRUE", Unexpected, 0),
            (b"[+1]", Unexpected, 1),
            (b"[.5]", Unexpected, 1),
            (b"/**/1", Unexpected, 0),
            (b"[\0]", Unexpected, 1),
            (b"[\x0c1]", Unexpected, 1),
            (b"[\xc2\xa0]", Unexpected, 1),
            (b"1 2", Trailing, 2),
            (b"{}}", Trailing, 2),
            (b"nullx", Trailing, 4),
            (b"[01]", BadNumber, 1),
            (b"[-]", BadNumber, 1),
            (b"-01", BadNumber, 0),
            (b"[1.]", BadNumber, 1),
            (b"[1.e1]", BadNumber, 1),
            (b"[1e]", BadNumber, 1),
            (b"[1e+]", BadNumber, 1),
            (b"[1ea]", BadNumber, 1),
            (b"[1e1.5]", BadNumber, 1),
            (b"[0x1]", BadNumber, 1),
            (b"[1\"\"]", BadNumber, 1),
            (b"[-Infinity]", BadNumber, 1),
            (b"[2,1e400]", HugeNumber, 3),
            (b"-1e309", HugeNumber, 0),
            (b"\"\\x\"", Escape, 1),
            (b"\"\\u00g0\"", Escape, 1),
            (b"\"\\u+123\"", Escape, 1),
            (b"\"a\\U0041\"", Escape, 2),
            (b"\"\\\n\"", Escape, 1),
            (b"\"\\ud800\"", HalfSurrogate, 1),
            (b"\"\\udc00\"", HalfSurrogate, 1),
            (b"\"\\ud800x\"", HalfSurrogate, 1),
            (b"\"\\ud800\\n\"", HalfSurrogate, 1),
            (b"\"\\ud800\\ud800\"", HalfSurrogate, 1),
            (b"\"\\udc00\\ud800\"", HalfSurrogate, 1),
            (b"\"ab\ncd\"", Control, 3),
            (b"\"\x1f\"", Control, 1),
            (b"\"\0", Control, 1),
        ];
        for &(text, kind, offset) in table {
            assert_eq!(flaw(text), Some((kind, offset)), "{}", text.escape_ascii());
        }
        assert_eq!(flaw("9".repeat(310)), Some((HugeNumber, 0)));
        assert_eq!(flaw(format!("{}.0", "9".repeat(310))), Some((HugeNumber, 0)));
    }

    #[test]
    fn nesting_is_bounded() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = |levels| format!("{}1{}", open.repeat(levels), close.repeat(levels));
            assert_eq!(flaw(nested(64)), None);
            let expected = Some((FlawKind::Deep, 64 * open.len()));
            assert_eq!(flaw(nested(65)), expected);
            assert_eq!(flaw(open.repeat(1 << 20)), expected);
        }
        // Beside each other they are not within each other.
        assert_eq!(flaw(format!("[{}1]", "[[[]]],".repeat(1000))), None);
    }

    #[test]
    fn every_huge_number_is_shown_where_numbers_are_for_the_caller() {
        let text = b"{\"i\":1e400,\"p\":[-2E999 ,3]}";
        let mut places = Vec::new();
        let checked = check_but_numbers(text, |place| places.push(place));
        assert!(checked.is_ok());
        assert_eq!(places, [5..10, 16..22]);
    }

    /// Pieces of JSON, good and bad, as they may follow each other.
    fn text() -> impl Strategy<Value = Vec<u8>> {
        const PIECES: [&[u8]; 40] = [
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"\"a\"",
            b"\"\"",
            b"\"",
            b"\\",
            b"\\u",
            b"d800",
            b"\\udc00",
            b"\\n",
            b"0",
            b"1",
            b"-",
            b".",
            b"e",
            b"E9",
            b"+",
            b"1e400",
            b"1.5",
            b"true",
            b"null",
            b"nul",
            b" ",
            b"\n",
            b"\x0c",
            b"\x00",
            b"\xff",
            b"\xc3\xa9",
            b"\xed\xa0\x80",
            b"[]",
            b"{}",
            b"{\"a\":1}",
            b"[1,2]",
            b"\xef\xbb\xbf",
            b"'",
            b"/",
        ];
        let pieces = prop::collection::vec(prop::sample::select(&PIECES[..]), 0..12);
        let any = pieces.prop_map(|pieces| pieces.concat());
        let within =
            any.clone().prop_map(|text| [b"{\"k\":[1,", &text[..], b"],\"l\":\"x\"}"].concat());
        let quoted = any.clone().prop_map(|text| [b"[\"", &text[..], b"\"]"].concat());
        prop_oneof![any, within, quoted]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8192))]

        #[test]
        fn others_read_what_is_taken_and_no_more(text in text()) {
            let elsewhere = serde_json::from_slice::<serde_json::Value>(&text);
            prop_assert_eq!(check(&text).is_ok(), elsewhere.is_ok(), "{:?}", elsewhere);
            // Of JSON that the API's parser accepts, only the nesting is checked.
            let parsed = simd_json::to_tape(&mut text.clone()).is_ok();
            prop_assert_eq!(check(&text).is_ok(), parsed);
        }
    }
}
