//! The tokens that a route accepts. No message shows the value of a key.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::file::{PemFile, SecretFile};
use super::read_bounded;
use super::service::{Url, service};
use super::shape::{Choice, List, SecretText, Text, Words, whole_of};
use crate::protocol::token::{
    KEYS_MAX, KeySet, KeySource, RuleKeys, TokenAlgorithm, TokenRule, TokenSources, VerifyingKey,
};

/// The time within which an issuer must send its key set, in milliseconds.
const KEYS_TIMEOUT_MS: u64 = 5000;

section! {
    pub(super) struct TokenKeys(section) {
        /// The algorithm that tokens are signed with. Required beside `key` and `key_file`. Beside `jwks`,
        /// only keys of this algorithm are used.
        algorithm: Option<TokenAlgorithm> = ALGORITHMS, none("that of each key", "\"HS256\"");

        /// The secret of at least 32 bytes for HS256, or the public key in PEM for the others.
        key: Option<String> = KEY,
            none("none", "\"change-me: a secret of at least 32 bytes\"");

        /// A file that holds the key, instead of `key`.
        key_file: Option<String> = SecretFile, none("none", "\"/etc/gridcast/token.pem\"");

        /// The URL of the issuer's JSON Web Key Set, instead of a key: `https://`, or `http://` to a
        /// loopback address. The keys are fetched at the start, every `refresh_s`, and for an unknown
        /// `kid`, at most once a minute. While the issuer is down, the last keys stay in use.
        jwks: Option<String> = Url,
            none("none", "\"https://login.example.org/.well-known/jwks.json\"");

        /// The time between two fetches of `jwks`.
        refresh_s: u64 = whole_of(" of seconds", 1..=86_400), value(300);

        /// A PEM file: the authorities that the certificate of `jwks` must come from.
        ca: Option<PathBuf> = PemFile,
            none("those that the system trusts", "\"/etc/gridcast/ca.pem\"");

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
    tables {
        /// One of several keys, instead of `key`. The `kid` of a token names its key. A token without a
        /// `kid` is verified with up to four keys of its algorithm.
        keys as "keys": Vec<VerifyingKey> = read_entries(section)?, Many(KeyEntry::definition);
    }
}

section! {
    struct KeyEntry(section) {
        /// The name of the key, as tokens write it in `kid`.
        kid: String = KEY_ID, required("each of several keys has one", "\"2026-12\"");

        /// The algorithm that tokens are signed with.
        algorithm: TokenAlgorithm = ALGORITHMS,
            required("each key has one algorithm", "\"HS256\"");

        /// The secret of at least 32 bytes for HS256, or the public key in PEM for the others.
        key: Option<String> = KEY,
            none("none: `key_file` has to be there", "\"change-me: a secret of at least 32 bytes\"");

        /// A file that holds the key, instead of `key`.
        key_file: Option<String> = SecretFile,
            none("none: `key` has to be there", "\"/etc/gridcast/token.pem\"");
    }
}

/// Reads the table `token` of a route.
pub(super) fn read_token(route: &Section<'_>) -> Result<Option<Arc<TokenRule>>, ConfigError> {
    let section = route.table("token")?;
    if !section.is_written() {
        return Ok(None);
    }
    let mut keys = TokenKeys::read_keys(&section)?;
    if keys.jwks.is_none() {
        section.without("refresh_s", "has no effect without jwks")?;
        section.without("ca", "has no effect without jwks")?;
    }
    let verifying = read_verifying_keys(&section, &mut keys)?;
    let mut rule = TokenRule::new(verifying, keys.from);
    rule.audience = keys.audience;
    rule.issuer = keys.issuer;
    Ok(Some(Arc::new(rule)))
}

/// Reads the keys from the one place where they are written.
fn read_verifying_keys(
    section: &Section<'_>,
    keys: &mut TokenKeys,
) -> Result<RuleKeys, ConfigError> {
    let places = ["jwks", "keys", "key_file", "key"];
    let mut written = places.into_iter().filter(|place| section.has(place));
    let place = written.next();
    if let Some(place) = place.filter(|_| written.next().is_some()) {
        let reason = "a token has a key, a key_file, keys or jwks, not several of them";
        return Err(section.fault(&[place], reason));
    }
    match place {
        Some("jwks") => {
            let url = keys.jwks.take().expect("it is written");
            let service = service(section, &url, KEYS_TIMEOUT_MS, keys.ca.take())?;
            let (algorithm, refresh_s) = (keys.algorithm, keys.refresh_s);
            if algorithm == Some(TokenAlgorithm::Hs256) {
                let reason = "HS256 has no public keys that an issuer could publish";
                return Err(section.fault(&["algorithm"], reason));
            }
            Ok(RuleKeys::Fetched(Arc::new(KeySource { service, algorithm, refresh_s })))
        }
        Some("keys") => {
            section.without("algorithm", "each of the keys has its own")?;
            let set = KeySet::new(std::mem::take(&mut keys.keys)).ok_or_else(|| {
                section.fault(&["keys"], format!("expected 1 to {KEYS_MAX} keys"))
            })?;
            Ok(RuleKeys::Fixed(set))
        }
        Some(_) => {
            let missing = || section.fault(&["algorithm"], "missing; a token is of one algorithm");
            let algorithm = keys.algorithm.ok_or_else(missing)?;
            let text = read_key(section, keys.key.take(), keys.key_file.take())?;
            let key = verifying_key(section, None, algorithm, &text)?;
            Ok(RuleKeys::Fixed(KeySet::new(vec![key]).expect("one key is a set")))
        }
        None => {
            let reason = "missing; a token has a key, a key_file, keys or jwks";
            Err(section.fault(&["key"], reason))
        }
    }
}

/// Reads the list `keys` of a token.
fn read_entries(token: &Section<'_>) -> Result<Vec<VerifyingKey>, ConfigError> {
    let mut keys: Vec<VerifyingKey> = Vec::new();
    for section in token.tables("keys")? {
        let KeyEntry { kid, algorithm, key, key_file } = KeyEntry::read_keys(&section)?;
        if keys.iter().any(|other| other.id() == Some(&kid)) {
            return Err(section.fault(&["kid"], format!("{kid:?} is the kid of an earlier key")));
        }
        let text = read_key(&section, key, key_file)?;
        keys.push(verifying_key(&section, Some(&kid), algorithm, &text)?);
    }
    Ok(keys)
}

fn verifying_key(
    section: &Section<'_>,
    id: Option<&str>,
    algorithm: TokenAlgorithm,
    text: &str,
) -> Result<VerifyingKey, ConfigError> {
    VerifyingKey::configured(id, algorithm, text).ok_or_else(|| {
        let reason = match algorithm {
            TokenAlgorithm::Hs256 => {
                "expected a secret of at least 32 bytes (RFC 7518, section 3.2)".to_owned()
            }
            TokenAlgorithm::Rs256 => {
                "expected a public key for RS256 in PEM, of 2048 to 4096 bits".to_owned()
            }
            _ => format!("expected a public key for {} in PEM", algorithm.name()),
        };
        section.fault(&["key", "key_file"], reason)
    })
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
        (None, None) => Err(section.fault(&["key"], "missing; a key has a key or a key_file")),
        (Some(_), Some(_)) => {
            Err(section.fault(&["key_file"], "a key has a key or a key_file, not both"))
        }
    }
}

const ALGORITHMS: Choice<TokenAlgorithm> = Choice(&TokenAlgorithm::ALL);

const KEY_ID: Text<String> = Text {
    expected: "a name of 1 to 255 bytes",
    parse: |text| (1..=255).contains(&text.len()).then(|| text.to_owned()),
};

/// A key, whose form depends on the algorithm.
const KEY: SecretText<String> =
    SecretText { expected: "a string", parse: |text| Ok(text.to_owned()) };

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
    use super::*;
    use crate::config::tests::{parse, refused, route};

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
            ".key: missing; a token has a key, a key_file, keys or jwks",
        );
        refused(
            &format!("token = {{ algorithm = \"HS256\", {key}, key_file = \"k\" }}"),
            ".key_file: a token has a key, a key_file, keys or jwks, not several of them",
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
    const KEYS: &str = "[[edge]]\nbind = \"127.0.0.1:6790\"\n[[edge.route]]\npath = \"/ws\"\n\
        [[edge.route.token.keys]]\nkid = \"a\"\nalgorithm = \"HS256\"\n\
        key = \"0123456789abcdef0123456789abcdef\"";

    fn keys_of(text: &str) -> RuleKeys {
        let config = parse(text);
        config.edges[0].routes[0].token.as_ref().expect("a token").keys.clone()
    }

    #[test]
    fn a_token_has_several_keys_each_with_its_kid() {
        let second =
            KEYS.replace("\"a\"", "\"b\"").split_once("[[edge.route.t").expect("keys").1.to_owned();
        let two = format!("{KEYS}\n[[edge.route.t{second}");
        let key = |id| {
            let secret = "0123456789abcdef0123456789abcdef";
            VerifyingKey::configured(Some(id), TokenAlgorithm::Hs256, secret).expect("a key")
        };
        let expected = KeySet::new(vec![key("a"), key("b")]).expect("two keys");
        assert_eq!(keys_of(&two), RuleKeys::Fixed(expected));
        let twice = two.replace("\"b\"", "\"a\"");
        refused(
            &twice,
            "gridcast.toml:10: edge.route.token.keys.kid: \"a\" is the kid of an earlier key",
        );
    }

    #[test]
    fn each_of_several_keys_is_complete() {
        let place = |line: usize, key: &str| format!("gridcast.toml:{line}: edge.route.token{key}");
        let without = |line: &str| KEYS.replace(line, "");
        for (text, expected) in [
            (
                without("kid = \"a\"\n"),
                place(5, ".keys.kid: missing; each of several keys has one"),
            ),
            (
                without("algorithm = \"HS256\"\n"),
                place(5, ".keys.algorithm: missing; each key has one algorithm"),
            ),
            (
                without("\nkey = \"0123456789abcdef0123456789abcdef\""),
                place(5, ".keys.key: missing; a key has a key or a key_file"),
            ),
            (
                format!("{KEYS}\nkey_file = \"k\""),
                place(9, ".keys.key_file: a key has a key or a key_file, not both"),
            ),
            (
                KEYS.replace("0123456789abcdef\"", "\""),
                place(
                    8,
                    ".keys.key: expected a secret of at least 32 bytes (RFC 7518, section 3.2)",
                ),
            ),
            (
                KEYS.replace("\"a\"", "\"\""),
                place(6, ".keys.kid: expected a name of 1 to 255 bytes, found \"\""),
            ),
        ] {
            refused(&text, &expected);
        }
        let token = |line: &str| route(&format!("token = {{ {line} }}"));
        refused(
            &token("keys = []"),
            "gridcast.toml:4: edge.route.token.keys: expected 1 to 64 keys",
        );
        let key = "kid = \"a\", algorithm = \"HS256\", key = \"0123456789abcdef0123456789abcdef\"";
        refused(
            &token(&format!("algorithm = \"HS256\", keys = [{{ {key} }}]")),
            "gridcast.toml:4: edge.route.token.algorithm: each of the keys has its own",
        );
        refused(
            &token(&format!("key = \"k\", keys = [{{ {key} }}]")),
            "gridcast.toml:4: edge.route.token.keys: a token has a key, a key_file, keys or jwks, not several \
             of them",
        );
    }
    #[test]
    fn the_keys_of_an_issuer_have_a_url_that_is_safe() {
        let token = |line: &str| route(&format!("token = {{ {line} }}"));
        let config = parse(&token("jwks = \"https://example.org/keys\", algorithm = \"ES256\""));
        let rule = config.edges[0].routes[0].token.clone().expect("a token");
        let source = rule.key_source().expect("the keys are fetched");
        assert_eq!(source.service.to_string(), "https://example.org/keys");
        assert_eq!((source.algorithm, source.refresh_s), (Some(TokenAlgorithm::Es256), 300));
        let key = "key = \"0123456789abcdef0123456789abcdef\"";
        for (line, reason) in [
            (
                "jwks = \"http://example.org/keys\"".to_owned(),
                ".jwks: http:// is allowed to loopback addresses only; anywhere else use https://",
            ),
            (
                "jwks = \"example.org\"".to_owned(),
                ".jwks: expected a URL such as \"https://login.example.org/keys\", of at most 2048 bytes",
            ),
            (
                "jwks = \"https://user:password@example.org/\"".to_owned(),
                ".jwks: a URL with a user name or password is not supported",
            ),
            (
                format!("jwks = \"https://example.org/\", algorithm = \"HS256\", {key}"),
                ".jwks: a token has a key, a key_file, keys or jwks, not several of them",
            ),
            (
                "jwks = \"https://example.org/\", algorithm = \"HS256\"".to_owned(),
                ".algorithm: HS256 has no public keys that an issuer could publish",
            ),
            (
                "jwks = \"https://example.org/\", refresh_s = 0".to_owned(),
                ".refresh_s: expected a whole number of seconds from 1 to 86400, found 0",
            ),
            (
                "jwks = \"http://127.0.0.1/\", ca = \"ca.pem\"".to_owned(),
                ".ca: has no effect with http://",
            ),
            (
                "jwks = \"https://example.org/\", ca = \"no/such\"".to_owned(),
                ".ca: no/such: cannot be read: No such file or directory (os error 2)",
            ),
            (
                format!("algorithm = \"HS256\", {key}, refresh_s = 60"),
                ".refresh_s: has no effect without jwks",
            ),
        ] {
            refused(&token(&line), &format!("gridcast.toml:4: edge.route.token{reason}"));
        }
    }
}
