//! The tokens that a route takes. No message shows what is written for a key.

use std::path::Path;
use std::sync::Arc;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::read_bounded;
use super::shape::{Choice, List, SecretText, Text, Words};
use crate::protocol::token::{TokenRule, TokenSources};

section! {
    pub(super) struct TokenKeys(section) {
        /// The algorithm that tokens are signed with.
        algorithm: &'static str = ALGORITHMS,
            required("a token is of one algorithm", "\"HS256\"");

        /// The secret of at least 32 bytes for HS256, or the public key in PEM for the others.
        key: Option<String> = KEY,
            none("none: `key_file` has to be there", "\"change-me: a secret of at least 32 bytes\"");

        /// A file that holds the key, instead of `key`.
        key_file: Option<String> = FILE,
            none("none: `key` has to be there", "\"/etc/gridcast/token.pem\"");

        /// Where a client may put the token; the first that is there counts. `header`:
        /// `Authorization: Bearer TOKEN`. `protocol`: the subprotocol `bearer.TOKEN`, which browsers can
        /// set. `query`: `?token=TOKEN`, which ends up in logs.
        from: TokenSources = PLACES, derived(
            TokenSources { header: true, protocol: true, query: false },
            "`[\"header\", \"protocol\"]`", "[\"header\", \"protocol\"]"
        );

        /// Names of this service: a token has to have one of them in `aud`.
        audience: Vec<String> = AUDIENCES, derived(
            Vec::new(), "none: a token with an `aud` is refused, since it is for another service",
            "[\"chat\"]"
        );

        /// The issuer that a token has to name in `iss`.
        issuer: Option<String> = ISSUER,
            none("any", "\"https://login.example.org\"");
    }
}

/// Reads the table `token` of a route.
pub(super) fn read_token(route: &Section<'_>) -> Result<Option<Arc<TokenRule>>, ConfigError> {
    let section = route.table("token")?;
    if !section.is_written() {
        return Ok(None);
    }
    let keys = TokenKeys::read_keys(&section)?;
    let algorithm = keys.algorithm;
    let key = read_key(&section, keys.key, keys.key_file)?;
    let mut rule = TokenRule::new(algorithm, &key, keys.from).ok_or_else(|| {
        let reason = match algorithm {
            "HS256" => "expected a secret of at least 32 bytes (RFC 7518, section 3.2)".to_owned(),
            _ => format!("expected a public key for {algorithm} in PEM"),
        };
        section.fault(&["key", "key_file"], reason)
    })?;
    rule.audience = keys.audience;
    rule.issuer = keys.issuer;
    Ok(Some(Arc::new(rule)))
}

fn read_key(
    section: &Section<'_>,
    key: Option<String>,
    file: Option<String>,
) -> Result<String, ConfigError> {
    match (key, file) {
        (Some(key), None) => Ok(key),
        (None, Some(file)) => {
            let read = read_bounded(Path::new(&file));
            let unreadable =
                |error| section.fault(&["key_file"], format!("cannot be read: {error}"));
            // The line end that editors put behind a secret is not part of it.
            read.map(|key| key.trim_end_matches(['\r', '\n']).to_owned()).map_err(unreadable)
        }
        (None, None) => Err(section.fault(&["key"], "missing; a token has a key or a key_file")),
        (Some(_), Some(_)) => {
            Err(section.fault(&["key_file"], "a token has a key or a key_file, not both"))
        }
    }
}

const ALGORITHMS: Choice<&str> =
    Choice(&[("HS256", "HS256"), ("RS256", "RS256"), ("ES256", "ES256"), ("EdDSA", "EdDSA")]);

/// Any string. The algorithm decides whether it is a valid key; see [`read_token`].
const KEY: SecretText<String> =
    SecretText { expected: "a string", parse: |text| Ok(text.to_owned()) };

const FILE: SecretText<String> =
    SecretText { expected: "the path of a file", parse: |text| Ok(text.to_owned()) };

const PLACES: Words<TokenSources> = Words {
    words: &["header", "protocol", "query"],
    collect: |has| {
        let places =
            TokenSources { header: has("header"), protocol: has("protocol"), query: has("query") };
        let is_empty = !places.header && !places.protocol && !places.query;
        if is_empty { Err("an empty list lets nobody in") } else { Ok(places) }
    },
};

const PARTY: &str = "a string of 1 to 1024 bytes, as it stands in the token";

const AUDIENCES: List<String> = List {
    expected: PARTY,
    parse: |text| party(text).ok_or_else(|| PARTY.to_owned()),
    empty: Some("an empty list names nobody: leave it out to take tokens without an aud"),
};

const ISSUER: Text<String> = Text { expected: PARTY, parse: party };

fn party(text: &str) -> Option<String> {
    (1..=1024).contains(&text.len()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{refused, route};

    #[test]
    fn a_token_has_an_algorithm_and_one_key_that_is_not_shown() {
        let refused = |line: &str, reason: &str| {
            refused(&route(line), &format!("gridcast.toml:4: edge.route.token{reason}"));
        };
        let key = "key = \"0123456789abcdef0123456789abcdef\"";
        refused(
            &format!("token = {{ {key} }}"),
            ".algorithm: missing; a token is of one algorithm",
        );
        refused(
            &format!("token = {{ algorithm = \"none\", {key} }}"),
            ".algorithm: expected \"HS256\" or \"RS256\" or \"ES256\" or \"EdDSA\", found \"none\"",
        );
        refused(
            "token = { algorithm = \"HS256\", key = \"open sesame\" }",
            ".key: expected a secret of at least 32 bytes (RFC 7518, section 3.2)",
        );
        refused(
            &format!("token = {{ algorithm = \"ES256\", {key} }}"),
            ".key: expected a public key for ES256 in PEM",
        );
        refused(
            "token = { algorithm = \"HS256\" }",
            ".key: missing; a token has a key or a key_file",
        );
        refused(
            &format!("token = {{ algorithm = \"HS256\", {key}, key_file = \"k\" }}"),
            ".key_file: a token has a key or a key_file, not both",
        );
        refused(
            "token = { algorithm = \"HS256\", key_file = \"no/such\" }",
            ".key_file: cannot be read: No such file or directory (os error 2)",
        );
        refused(
            &format!("token = {{ algorithm = \"HS256\", {key}, from = [\"cookie\"] }}"),
            ".from: expected \"header\", \"protocol\" or \"query\", found \"cookie\"",
        );
        refused(
            &format!("token = {{ algorithm = \"HS256\", {key}, from = [] }}"),
            ".from: an empty list lets nobody in",
        );
        refused(
            &format!("token = {{ algorithm = \"HS256\", {key}, audience = [] }}"),
            ".audience: an empty list names nobody: leave it out to take tokens without an aud",
        );
        refused(
            &format!("token = {{ algorithm = \"HS256\", {key}, audience = \"us\" }}"),
            ".audience: expected a list of at most 1024 strings, found \"us\"",
        );
        refused(
            &format!("token = {{ algorithm = \"HS256\", {key}, issuer = \"\" }}"),
            ".issuer: expected a string of 1 to 1024 bytes, as it stands in the token, found \"\"",
        );
    }
}
