//! The fast path of the parser: reads the most frequent requests in one pass. These are `mesh.send`,
//! `mesh.publish` and `queue.ack` in their common form. Everything else, rare or invalid, is left to
//! [`super::read`], which reports errors.

use std::ops::Range;

use super::read::{ApiMethod, invalid_json};
use super::{ApiRequest, Call, Content, NAME_BYTES_MAX, Tags};
use crate::address::ClientId;
use crate::protocol::frame::Kind;
use crate::protocol::json;

/// A request in its common form, as byte ranges of its text.
pub(super) struct FastRequest {
    // The range of the id; `None`: the request has none.
    id: Option<Range<usize>>,
    call: FastCall,
}

enum FastCall {
    Send(ClientId, StringContent),
    Publish(Range<usize>, StringContent),
    Ack(u64),
}

/// The content of a string, without the quotes.
struct StringContent {
    place: Range<usize>,
    has_escapes: bool,
}

impl FastRequest {
    /// Scans a request of the WebSocket API. Returns `None` if it does not have the common form.
    pub(super) fn request(text: &[u8]) -> Option<Self> {
        let (mut method, mut params, mut id) = (None, None, None);
        let mut cursor = Cursor::new(text);
        cursor.object(|cursor, key| {
            match key {
                b'm' => method = frequent_method(&text[cursor.name()?]),
                b'p' => params = Some(cursor.params()?),
                b'i' => id = Some(cursor.id()?),
                _ => return None,
            }
            Some(())
        })?;
        cursor.ended()?;
        Some(Self { id, call: params?.call(method?, text)? })
    }

    /// Scans the parameters of a method in the body of an HTTP request. Returns `None` if they do not
    /// have the common form.
    pub(super) fn params(method: ApiMethod, text: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(text);
        let params = cursor.params()?;
        cursor.ended()?;
        Some(Self { id: None, call: params.call(method, text)? })
    }

    /// Converts to a request. `input` must be the text that was scanned; its escapes are decoded in
    /// place.
    pub(super) fn read(self, input: &mut [u8]) -> ApiRequest<'_> {
        match self.read_valid(input) {
            Ok(request) => request,
            Err(flaw) => ApiRequest { id: "null", call: Err(invalid_json(flaw)) },
        }
    }

    /// Does what [`Self::read`] does.
    ///
    /// # Errors
    /// The input is not UTF-8.
    pub(super) fn read_valid(self, input: &mut [u8]) -> Result<ApiRequest<'_>, json::Flaw> {
        let call = match self.call {
            FastCall::Send(client, data) => FastCall::Send(client, data.unescape(input)?),
            FastCall::Publish(channel, data) => FastCall::Publish(channel, data.unescape(input)?),
            call @ FastCall::Ack(_) => call,
        };
        // Checked as a whole, so that its parts need no check of their own.
        let text = json::check_utf8(input)?;
        let content = |data: StringContent| Content {
            kind: Kind::Text,
            bytes: text[data.place].as_bytes().into(),
        };
        Ok(ApiRequest {
            id: self.id.map_or("null", |place| &text[place]),
            call: Ok(match call {
                FastCall::Send(client, data) => Call::Send(client, content(data)),
                FastCall::Publish(channel, data) => Call::Publish(&text[channel], content(data)),
                FastCall::Ack(tag) => Call::Ack(Tags::One(tag)),
            }),
        })
    }
}

/// Returns the method of this name, if its requests have a common form.
fn frequent_method(name: &[u8]) -> Option<ApiMethod> {
    match name {
        b"mesh.publish" => Some(ApiMethod::Publish),
        b"mesh.send" => Some(ApiMethod::Send),
        b"queue.ack" => Some(ApiMethod::Ack),
        _ => None,
    }
}

impl StringContent {
    /// Decodes the escapes in place. Overwrites what is left over with spaces, so that the input stays
    /// valid UTF-8.
    ///
    /// # Errors
    /// The input is not UTF-8. Without escapes it is not checked.
    fn unescape(self, input: &mut [u8]) -> Result<Self, json::Flaw> {
        if !self.has_escapes {
            return Ok(self);
        }
        json::check_utf8(input)?;
        let Range { start, end } = self.place;
        let (mut from, mut to) = (start, start);
        while from < end {
            let plain = memchr::memchr(b'\\', &input[from..end]).unwrap_or(end - from);
            input.copy_within(from..from + plain, to);
            (from, to) = (from + plain, to + plain);
            if from < end {
                input[to] = unescaped(input[from + 1]).expect("the scan accepted this escape");
                (from, to) = (from + 2, to + 1);
            }
        }
        input[to..end].fill(b' ');
        Ok(Self { place: start..to, has_escapes: false })
    }
}

/// Returns the byte that an escape stands for, given the byte after its backslash. Returns `None` for
/// `\u` and for unknown escapes.
fn unescaped(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

/// The parameters of calls in the common form.
#[derive(Default)]
struct Params {
    // `c`
    receiver: Option<Range<usize>>,
    // `d`
    data: Option<StringContent>,
    // `g`
    tag: Option<u64>,
}

impl Params {
    fn call(self, method: ApiMethod, text: &[u8]) -> Option<FastCall> {
        match method {
            ApiMethod::Send => {
                let client = std::str::from_utf8(&text[self.receiver?]).ok()?.parse().ok()?;
                Some(FastCall::Send(client, self.data?))
            }
            ApiMethod::Publish => {
                let is_good = |name: &Range<usize>| (1..=NAME_BYTES_MAX).contains(&name.len());
                Some(FastCall::Publish(self.receiver.filter(is_good)?, self.data?))
            }
            ApiMethod::Ack => self.tag.map(FastCall::Ack),
            _ => None,
        }
    }
}

/// The bytes that end a string or cannot appear in it unescaped: quotes, backslashes and control
/// characters.
const IS_SPECIAL: [bool; 256] = {
    let mut is_special = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        is_special[byte] = true;
        byte += 1;
    }
    is_special[b'"' as usize] = true;
    is_special[b'\\' as usize] = true;
    is_special
};

/// A position in a JSON text. Each method skips white space, then consumes one element and returns it,
/// or returns `None` if the text does not continue with it.
struct Cursor<'t> {
    text: &'t [u8],
    // The part of `text` that is not consumed yet.
    rest: &'t [u8],
}

impl<'t> Cursor<'t> {
    fn new(text: &'t [u8]) -> Self {
        Self { text, rest: text }
    }

    fn params(&mut self) -> Option<Params> {
        let mut params = Params::default();
        self.object(|cursor, key| {
            match key {
                b'c' => params.receiver = Some(cursor.name()?),
                b'd' => params.data = Some(cursor.string()?),
                b't' if &cursor.text[cursor.name()?] == b"text" => {}
                b'g' => params.tag = Some(cursor.number()?.1),
                _ => return None,
            }
            Some(())
        })?;
        Some(params)
    }

    /// Consumes a non-empty object whose keys are one byte long. Calls `field` at each value.
    fn object(&mut self, mut field: impl FnMut(&mut Self, u8) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        loop {
            let key = self.key()?;
            field(self, key)?;
            if self.take(b',').is_none() {
                return self.take(b'}');
            }
        }
    }

    /// Consumes a key of one byte and its colon.
    fn key(&mut self) -> Option<u8> {
        if let [b'"', key, b'"', b':', rest @ ..] = self.rest {
            self.rest = rest;
            return Some(*key);
        }
        self.take(b'"')?;
        let [key, b'"', rest @ ..] = self.rest else { return None };
        self.rest = rest;
        self.take(b':')?;
        Some(*key)
    }

    /// Consumes the id of a request: a number, or a string with its quotes.
    fn id(&mut self) -> Option<Range<usize>> {
        if self.peek()? == b'"' {
            let Range { start, end } = self.name()?;
            return Some(start - 1..end + 1);
        }
        Some(self.number()?.0)
    }

    /// Consumes a string without escapes. Optimised for short strings.
    fn name(&mut self) -> Option<Range<usize>> {
        self.take(b'"')?;
        let length = self.rest.iter().position(|&byte| IS_SPECIAL[usize::from(byte)])?;
        let place = self.advance(length);
        self.take_next(b'"')?;
        Some(place)
    }

    /// Consumes any string without `\u` escapes. Optimised for long strings.
    fn string(&mut self) -> Option<StringContent> {
        self.take(b'"')?;
        let (mut length, mut has_escapes) = (0, false);
        loop {
            length += memchr::memchr2(b'"', b'\\', &self.rest[length..])?;
            if self.rest[length] == b'"' {
                break;
            }
            unescaped(*self.rest.get(length + 1)?)?;
            has_escapes = true;
            length += 2;
        }
        // No early exit, so the compiler can vectorise the loop.
        let least = self.rest[..length].iter().copied().fold(u8::MAX, u8::min);
        if least < 0x20 {
            return None;
        }
        let place = self.advance(length);
        self.take_next(b'"')?;
        Some(StringContent { place, has_escapes })
    }

    /// Consumes an unsigned integer of at most 19 digits.
    fn number(&mut self) -> Option<(Range<usize>, u64)> {
        self.peek()?;
        // The value wraps only at 20 digits, which are refused below.
        let (mut length, mut value) = (0, 0_u64);
        while let Some(digit @ b'0'..=b'9') = self.rest.get(length)
            && length < 20
        {
            value = value.wrapping_mul(10).wrapping_add((digit - b'0').into());
            length += 1;
        }
        let is_whole = (1..20).contains(&length)
            && (length == 1 || self.rest[0] != b'0')
            && matches!(self.rest.get(length)?, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r');
        is_whole.then(|| (self.advance(length), value))
    }

    fn ended(&mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.peek()?;
        self.take_next(byte)
    }

    fn take_next(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.rest.split_first()?;
        (*first == byte).then(|| self.rest = rest)
    }

    fn peek(&mut self) -> Option<u8> {
        loop {
            let (&first, rest) = self.rest.split_first()?;
            if first > b' ' || !matches!(first, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(first);
            }
            self.rest = rest;
        }
    }

    /// Consumes `length` bytes, which must be present, and returns their range.
    fn advance(&mut self, length: usize) -> Range<usize> {
        let start = self.text.len() - self.rest.len();
        self.rest = &self.rest[length..];
        start..start + length
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::read::Parser;
    use super::*;

    /// Strings, numbers and other values, valid and invalid, as requests may contain them.
    const VALUES: [&str; 32] = [
        r#""a""#,
        r#""text""#,
        r#""binary""#,
        r#""""#,
        r#""7""#,
        r#""18446744073709551615""#,
        r#""18446744073709551616""#,
        r#""mesh.send""#,
        r#""mesh.publish""#,
        r#""queue.ack""#,
        r#""{\"a\":\"b\\n\"}\b\f\n\r\t\/\"""#,
        r#""\u00e9""#,
        r#""\ud83d""#,
        r#""\x""#,
        r#""é😀""#,
        "\"a\nb\"",
        "\"\u{7f}\"",
        r#""\"#,
        "0",
        "7",
        "01",
        "-1",
        "1.5",
        "1e3",
        "9999999999999999999",
        "18446744073709551616",
        "true",
        "null",
        "[]",
        "{}",
        r#"{"c":"a","d":"x"}"#,
        r#"{"g":1}"#,
    ];

    fn object(
        keys: &'static [&'static str],
        value: BoxedStrategy<String>,
    ) -> BoxedStrategy<String> {
        let blank = prop_oneof![4 => Just(""), 1 => Just(" "), 1 => Just("\r\n\t")];
        let field = (prop::sample::select(keys), value, blank);
        let fields = prop::collection::vec(field, 0..5).prop_map(|fields| {
            let fields = fields.into_iter().map(|(key, value, blank)| {
                format!("{blank}\"{key}\"{blank}:{blank}{value}{blank}")
            });
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        });
        fields.boxed()
    }

    fn value() -> BoxedStrategy<String> {
        prop::sample::select(&VALUES).prop_map(String::from).boxed()
    }

    /// Parameters of calls, most of them valid.
    fn params() -> BoxedStrategy<String> {
        let good = prop_oneof![
            Just(r#"{"c":"a","d":"x"}"#.to_owned()),
            Just(r#"{ "c" : "1" , "t":"text","d":"\"" }"#.to_owned()),
            Just(r#"{"g":19}"#.to_owned()),
        ];
        prop_oneof![good, object(&["c", "d", "t", "g", "u", "cd", ""], value())].boxed()
    }

    fn request() -> impl Strategy<Value = String> {
        let method =
            prop::sample::select(&["mesh.send", "mesh.publish", "queue.ack", "queue.unpop"]);
        let good = (method, params(), value(), "[ x]?").prop_map(|(method, params, id, end)| {
            format!(r#"{{"m":"{method}","p":{params},"i":{id}}}{end}"#)
        });
        let any = prop_oneof![value(), params()].boxed();
        prop_oneof![3 => good, 1 => object(&["m", "p", "i", "id", "x"], any)]
    }

    /// Parts of a string: escapes, characters of one to four bytes, and fragments of these.
    fn pieces() -> impl Strategy<Value = Vec<&'static [u8]>> {
        const PIECES: [&[u8]; 12] = [
            b"a",
            b"\\n",
            b"\\\"",
            b"\\\\",
            b"\\/",
            "é".as_bytes(),
            "你".as_bytes(),
            "😀".as_bytes(),
            b"\xe4",
            b"\xbd",
            b"\xa0",
            b"\xff",
        ];
        let good = prop::collection::vec(prop::sample::select(&PIECES[..8]), 0..8);
        let any = prop::collection::vec(prop::sample::select(&PIECES[..]), 0..8);
        prop_oneof![good, any]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_is_found_is_what_a_whole_parser_reads(text in request()) {
            let (mut found, mut read) = (text.clone().into_bytes(), text.clone().into_bytes());
            if let Some(fast) = FastRequest::request(&found) {
                let mut parser = Parser::default();
                prop_assert_eq!(fast.read(&mut found), parser.request_of_any_form(&mut read));
            }
        }

        #[test]
        fn what_a_string_holds_is_what_a_whole_parser_reads(pieces in pieces()) {
            let text = [&b"{\"c\":\"a\",\"d\":\""[..], &pieces.concat(), b"\"}"].concat();
            let (mut found, mut read) = (text.clone(), text.clone());
            let fast = FastRequest::params(ApiMethod::Publish, &found).expect("the fast path reads this form");
            let mut parser = Parser::default();
            match (fast.read(&mut found).call, parser.params_of_any_form(ApiMethod::Publish, &mut read)) {
                (Err(found), Err(read)) => {
                    prop_assert!(std::str::from_utf8(&text).is_err());
                    prop_assert_eq!(found, read);
                }
                (found, read) => prop_assert_eq!(found, read),
            }
        }

        #[test]
        fn what_is_found_in_parameters_alone_is_what_a_whole_parser_reads(text in params()) {
            for method in [ApiMethod::Send, ApiMethod::Publish, ApiMethod::Ack, ApiMethod::Unpop] {
                let (mut found, mut read) = (text.clone().into_bytes(), text.clone().into_bytes());
                if let Some(fast) = FastRequest::params(method, &found) {
                    let mut parser = Parser::default();
                    let read = parser.params_of_any_form(method, &mut read);
                    prop_assert_eq!(fast.read(&mut found).call, read);
                }
            }
        }
    }

    #[test]
    fn what_back_ends_send_most_takes_the_fast_path() {
        for text in [
            r#"{"m":"mesh.publish","p":{"c":"news","d":"hello"},"i":1}"#,
            r#"{"i": "a-1", "p": {"d": "{\"tick\":1}", "c": "é", "t": "text"}, "m": "mesh.publish"}"#,
            r#"{"m":"mesh.send","p":{"c":"1463819408261513216","d":""}}"#,
            r#"{"m":"queue.ack","p":{"g":12},"i":9999999999999999999}"#,
        ] {
            let mut text = text.as_bytes().to_vec();
            let fast = FastRequest::request(&text).expect("the fast path reads this form");
            assert!(fast.read(&mut text).call.is_ok());
        }
    }

    #[test]
    fn text_that_is_not_utf_8_is_refused() {
        // The second request would be accepted if leftovers of its escape were parsed.
        for data in [&b"\xff"[..], b"\\n\xe4\xbd"] {
            let before = &b"{\"m\":\"mesh.publish\",\"p\":{\"c\":\"a\",\"d\":\""[..];
            let mut text = [before, data, b"\"},\"i\":1}"].concat();
            let fault = invalid_json(json::check_utf8(&text).expect_err("it is none"));
            let request =
                FastRequest::request(&text).expect("the fast path reads this form").read(&mut text);
            assert_eq!((request.id, request.call), ("null", Err(fault)));
        }
    }
}
