//! The conversation with an admission hook: a back end that decides whether a device may connect.

use std::borrow::Cow;
use std::fmt;

use super::api::{self, ContextEntry};
use super::fields::{JsonFields, WrongField};
use super::json;
use super::service::HttpService;
use super::signature::SigningSecret;
use crate::address::remote::Remote;

/// The longest answer of a hook, in bytes. A context has at most 64 KiB.
pub const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// A back end that decides which devices may connect to a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AdmissionHook {
    /// Where the questions are posted.
    pub service: HttpService,
    /// The secret that signs the questions. `None`: they are not signed.
    pub secret: Option<SigningSecret>,
}

/// The request that is sent to the hook.
pub struct AdmissionQuestion<'a, Q, H> {
    /// The path of the request.
    pub path: &'a str,
    /// The names and values of the query.
    pub query: Q,
    /// The names and values of the headers.
    pub headers: H,
    /// The address of the device.
    pub remote: Remote,
    /// The claims of the device's token, as JSON.
    pub claims: Option<&'a str>,
}

impl<'a, Q, H> AdmissionQuestion<'a, Q, H>
where
    Q: Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
    H: Iterator<Item = (String, Cow<'a, str>)>,
{
    /// Appends the question as a JSON object.
    pub fn put(self, out: &mut Vec<u8>) {
        out.push(b'{');
        api::put_request(out, self.path, self.query, self.headers, self.remote);
        if let Some(claims) = self.claims {
            out.extend_from_slice(b",\"claims\":");
            out.extend_from_slice(claims.as_bytes());
        }
        out.push(b'}');
    }
}

/// The rights that a hook grants a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// The channels to subscribe the client to.
    pub channels: Vec<String>,
    /// Entries of the client's context, `user_id` among them.
    pub context: Vec<ContextEntry>,
    /// The time after which the client is closed, in milliseconds. `None`: never.
    pub expires_ms: Option<u64>,
}

/// Why the answer of a hook is not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerError {
    /// The answer is not strictly valid JSON.
    NotJson(json::Flaw),
    /// The answer is not an object in which each name appears once.
    NotAnObject,
    /// A field has the wrong type or value.
    Field(WrongField),
}

impl fmt::Display for AnswerError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson(flaw) => write!(formatter, "the answer is not JSON: {flaw}"),
            Self::NotAnObject => {
                formatter.write_str("the answer is not an object in which each name appears once")
            }
            Self::Field(wrong) => write!(formatter, "the answer's {wrong}"),
        }
    }
}

impl std::error::Error for AnswerError {}

impl From<WrongField> for AnswerError {
    fn from(wrong: WrongField) -> Self {
        Self::Field(wrong)
    }
}

impl Admission {
    /// Reads the body of a hook's answer. All fields are optional, and unknown ones are ignored.
    ///
    /// # Errors
    /// The body is not an object, or a field is not valid.
    pub fn read(body: &[u8]) -> Result<Self, AnswerError> {
        json::check(body).map_err(AnswerError::NotJson)?;
        let fields = JsonFields::read(body).map_err(|_| AnswerError::NotAnObject)?;
        let wrong = "expires_s is not a number above 0";
        let expires_s = fields.number("expires_s", wrong)?;
        if expires_s.is_some_and(|seconds| seconds <= 0.0) {
            return Err(WrongField(wrong).into());
        }
        let user = "user_id is neither a string nor a 64-bit integer";
        Ok(Self {
            channels: fields.channels()?,
            context: fields.context("user_id", user)?,
            // The conversion saturates.
            expires_ms: expires_s.map(|seconds| (seconds * 1000.0) as u64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_object_that_shows_the_request() {
        let query = [("a", "1"), ("a", "2")].map(|(name, value)| (name.into(), value.into()));
        let headers = [("cookie".to_owned(), "x=1".into()), ("cookie".to_owned(), "y=2".into())];
        let question = |claims| {
            let mut out = Vec::new();
            AdmissionQuestion {
                path: "/ws",
                query: query.clone().into_iter(),
                headers: headers.clone().into_iter(),
                remote: ([10, 0, 0, 1], 5).into(),
                claims,
            }
            .put(&mut out);
            String::from_utf8(out).expect("JSON is text")
        };
        let request = r#""path":"/ws","query":{"a":"1,2"},"headers":{"cookie":"x=1; y=2"},"remote":"10.0.0.1:5""#;
        assert_eq!(question(None), format!("{{{request}}}"));
        assert_eq!(
            question(Some(r#"{"sub":"7"}"#)),
            format!(r#"{{{request},"claims":{{"sub":"7"}}}}"#)
        );
    }

    #[test]
    fn an_answer_grants_what_it_says_and_an_empty_object_grants_nothing() {
        assert_eq!(Admission::read(b"{}"), Ok(Admission::default()));
        let answer = br#"{"user_id":10000,"context":{"b":[1.50],"user_id":"x"},"channels":["a"],
            "expires_s":1.5,"other":null}"#;
        let entry = |key: &str, value: &str| (Box::from(key), Box::from(value));
        let expected = Admission {
            channels: vec!["a".into()],
            context: vec![entry("b", "[1.50]"), entry("user_id", "10000")],
            expires_ms: Some(1500),
        };
        assert_eq!(Admission::read(answer), Ok(expected));
        let long = Admission::read(br#"{"expires_s":1e300}"#).expect("a number");
        assert_eq!(long.expires_ms, Some(u64::MAX));
    }

    #[test]
    fn an_answer_that_is_not_understood_says_why() {
        let field = |wrong| Err(AnswerError::Field(WrongField(wrong)));
        for (answer, expected) in [
            ("[]", Err(AnswerError::NotAnObject)),
            ("null", Err(AnswerError::NotAnObject)),
            (r#"{"a":1,"a":2}"#, Err(AnswerError::NotAnObject)),
            (r#"{"expires_s":0}"#, field("expires_s is not a number above 0")),
            (r#"{"expires_s":-1}"#, field("expires_s is not a number above 0")),
            (r#"{"expires_s":"60"}"#, field("expires_s is not a number above 0")),
            (r#"{"expires_s":null}"#, field("expires_s is not a number above 0")),
            (r#"{"user_id":1.5}"#, field("user_id is neither a string nor a 64-bit integer")),
            (r#"{"user_id":{}}"#, field("user_id is neither a string nor a 64-bit integer")),
            (r#"{"channels":"a"}"#, field("channels is not a list of names of 1 to 255 bytes")),
            (
                r#"{"context":[]}"#,
                field("context is not an object with unique keys of 1 to 255 bytes"),
            ),
        ] {
            assert_eq!(Admission::read(answer.as_bytes()), expected, "{answer}");
        }
        for garbage in ["", "<html>", "{", "{}{}", "{\"a\":\"\\ud800\"}", "{\"a\":01}"] {
            let read = Admission::read(garbage.as_bytes());
            assert!(matches!(read, Err(AnswerError::NotJson(_))), "{garbage}: {read:?}");
        }
    }
}
