//! The tokens that a route takes. No message shows what is written for a key.

use std::path::Path;
use std::sync::Arc;

use super::document::{ConfigError, Section};
use super::read_bounded;
use crate::protocol::token::{Places, TokenRule};

const TOKEN_KEYS: [&str; 6] = ["algorithm", "key", "key_file", "from", "audience", "issuer"];

const PARTY: &str = "a string of 1 to 1024 bytes, as it stands in the token";

const ALGORITHMS: [(&str, &str); 4] =
    [("HS256", "HS256"), ("RS256", "RS256"), ("ES256", "ES256"), ("EdDSA", "EdDSA")];

/// Reads the table `token` of a route.
pub(super) fn read_token(route: &Section) -> Result<Option<Arc<TokenRule>>, ConfigError> {
    if !route.has("token") {
        return Ok(None);
    }
    let section = route.table("token")?.only(&TOKEN_KEYS)?;
    let algorithm = section.choice("algorithm", &ALGORITHMS, "")?;
    if algorithm.is_empty() {
        return Err(section.fault(&["algorithm"], "missing; a token is of one algorithm"));
    }
    let key = read_key(&section)?;
    let mut rule = TokenRule::new(algorithm, &key, read_places(&section)?).ok_or_else(|| {
        let reason = match algorithm {
            "HS256" => "expected a secret of at least 32 bytes (RFC 7518, section 3.2)".to_owned(),
            _ => format!("expected a public key for {algorithm} in PEM"),
        };
        section.fault(&["key", "key_file"], reason)
    })?;
    rule.audience = section.texts("audience", PARTY, is_party)?.unwrap_or_default();
    if rule.audience.is_empty() && section.has("audience") {
        let reason = "an empty list names nobody: leave it out to take tokens without an aud";
        return Err(section.fault(&["audience"], reason));
    }
    rule.issuer = section.text("issuer", PARTY, is_party)?;
    Ok(Some(Arc::new(rule)))
}

fn is_party(text: &str) -> bool {
    (1..=1024).contains(&text.len())
}

fn read_key(section: &Section) -> Result<String, ConfigError> {
    match (section.secret("key"), section.secret("key_file")) {
        (Some(key), None) => Ok(key.to_owned()),
        (None, Some(file)) => {
            let read = read_bounded(Path::new(file));
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

fn read_places(section: &Section) -> Result<Places, ConfigError> {
    let is_place = |word: &str| matches!(word, "header" | "protocol" | "query");
    let words = section.texts("from", r#""header", "protocol" or "query""#, is_place)?;
    let Some(words) = words else {
        return Ok(Places { header: true, protocol: true, query: false });
    };
    if words.is_empty() {
        return Err(section.fault(&["from"], "an empty list lets nobody in"));
    }
    let has = |place: &str| words.iter().any(|word| word == place);
    Ok(Places { header: has("header"), protocol: has("protocol"), query: has("query") })
}
