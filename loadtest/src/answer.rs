//! What the API answers.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};

/// How many connections took a message, and how many did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Tally {
    /// Connections that took it; of a message to one client, 1.
    #[serde(deserialize_with = "number_or_true")]
    pub s: u64,
    /// Connections that did not.
    #[serde(default)]
    pub f: u64,
}

/// A publish is answered with a number, a send with `true`.
fn number_or_true<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    struct Reached;

    impl Visitor<'_> for Reached {
        type Value = u64;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a number, or whether it was sent")
        }

        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_bool<E>(self, is_so: bool) -> Result<u64, E> {
            Ok(is_so.into())
        }
    }

    deserializer.deserialize_any(Reached)
}

/// An answer of the API, as the protocol has it.
#[derive(Deserialize)]
pub struct Answer<R> {
    #[serde(rename = "E")]
    error: Option<Failure>,
    r: Option<R>,
    /// The id of the request; absent over HTTP.
    i: Option<u32>,
}

#[derive(Deserialize)]
struct Failure {
    c: i64,
    m: String,
}

impl<R: DeserializeOwned> Answer<R> {
    /// Reads an answer; gives the id of the request and the result.
    ///
    /// # Errors
    /// It is none, or one that reports a failure.
    pub fn parse(json: &[u8]) -> Result<(Option<u32>, R)> {
        let answer: Self = serde_json::from_slice(json)
            .with_context(|| format!("not an answer: {}", String::from_utf8_lossy(json)))?;
        if let Some(Failure { c, m }) = answer.error {
            bail!("the server answered with error {c}: {m}");
        }
        Ok((answer.i, answer.r.context("an answer without result and without error")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gives_its_id_and_result() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":9,"f":1},"i":7}"#);
        assert_eq!(answer.expect("it reports success"), (Some(7), Tally { s: 9, f: 1 }));
    }

    #[test]
    fn an_answer_over_http_has_no_id() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":9,"f":1}}"#);
        assert_eq!(answer.expect("it reports success").0, None);
    }

    #[test]
    fn a_client_that_was_sent_to_is_one_that_was_reached() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":true},"i":7}"#);
        assert_eq!(answer.expect("it reports success").1, Tally { s: 1, f: 0 });
    }

    #[test]
    fn a_failure_is_an_error_with_its_code_and_message() {
        let answer = Answer::<Tally>::parse(br#"{"E":{"c":101,"m":"why"},"i":7}"#);
        let error = answer.expect_err("it reports a failure").to_string();
        assert!(error.contains("101: why"), "{error}");
    }
}
