//! `token`: makes a token with which a device can connect, to try a route.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::Args;
use serde_json::{Map, Value, json};

use super::failure::Failure;
use super::terminal::{Output, unix_ms};
use crate::config::Config;
use crate::protocol::token::{RuleKeys, SigningKey, TokenAlgorithm, TokenRule};

/// The largest file of a key.
const KEY_BYTES_MAX: u64 = 1 << 20;

/// The arguments of `token`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct TokenArguments {
    /// Configuration file whose route has an HS256 key. Its aud and iss are taken from there, too
    #[arg(long, value_name = "FILE", required_unless_present = "key_file")]
    config: Option<PathBuf>,

    /// Path of the route. Without it: the first route with such a key
    #[arg(long, value_name = "PATH", conflicts_with = "key_file")]
    route: Option<String>,

    /// File with the key that signs: the secret of HS256, or a private key in PEM
    #[arg(long, value_name = "FILE", conflicts_with = "config", requires = "algorithm")]
    key_file: Option<PathBuf>,

    /// Algorithm of --key-file: HS256, RS256, ES256 or EdDSA
    #[arg(long, value_parser = algorithm, requires = "key_file")]
    algorithm: Option<TokenAlgorithm>,

    /// Name of the key, for a route with several
    #[arg(long, value_name = "ID")]
    kid: Option<String>,

    /// The user: becomes user_id in the context of the client
    #[arg(long, value_name = "USER")]
    sub: Option<String>,

    /// Channel that the client is subscribed to. May be repeated
    #[arg(long = "channel", value_name = "NAME")]
    channels: Vec<String>,

    /// How long the token is valid, such as 90s, 15m, 12h or 30d
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = seconds)]
    expires: u64,

    /// Another claim, or another value of one: NAME=VALUE. A value that is not JSON is a string. May be
    /// repeated
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,
}

fn algorithm(name: &str) -> Result<TokenAlgorithm, String> {
    let known = TokenAlgorithm::ALL.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    known.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
        let names: Vec<&str> = TokenAlgorithm::ALL.iter().map(|(name, _)| *name).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Parses a time with its unit: `90s`, `15m`, `12h`, `30d`.
fn seconds(text: &str) -> Result<u64, String> {
    let expected = || "expected a number with s, m, h or d, such as 15m".to_owned();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3_600,
        Some('d') => 86_400,
        _ => return Err(expected()),
    };
    let number: u32 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    Ok(u64::from(number) * unit)
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| value.into());
    Ok((name.to_owned(), value))
}

impl TokenArguments {
    /// Prints the token. `read` reads and checks a configuration file.
    pub(super) fn run(
        &self,
        read: impl FnOnce(&Path) -> Result<Config, String>,
    ) -> Result<(), Failure> {
        let (key, rule) = match (&self.config, &self.key_file) {
            (Some(file), _) => {
                let config = read(file).map_err(Failure::Usage)?;
                let rule = self.rule(&config).map_err(Failure::Usage)?.clone();
                (self.key_of(&rule).map_err(Failure::Usage)?, Some(rule))
            }
            (None, Some(file)) => (self.key_in(file)?, None),
            (None, None) => return Err(Failure::Usage("--config or --key-file is needed".into())),
        };
        let claims = self.claims(rule.as_ref(), unix_ms() / 1000);
        let cannot = || Failure::Failed("the key cannot sign".into());
        let token = key.sign(&claims).ok_or_else(cannot)?;
        let mut output = Output::new();
        output.write(&format!("{token}\n"))?;
        output.flush()
    }

    /// The tokens of the route.
    fn rule<'a>(&self, config: &'a Config) -> Result<&'a TokenRule, String> {
        let mut routes = config.edges.iter().flat_map(|edge| &edge.routes);
        match &self.route {
            Some(path) => {
                let route = routes.find(|route| route.path == *path);
                let route = route.ok_or_else(|| format!("no route has the path {path:?}"))?;
                route.token.as_deref().ok_or_else(|| format!("{path}: the route takes no token"))
            }
            None => routes
                .filter_map(|route| route.token.as_deref())
                .find(|rule| self.key_of(rule).is_ok())
                .ok_or_else(|| "no route has an HS256 key (see --key-file for others)".into()),
        }
    }

    fn key_of(&self, rule: &TokenRule) -> Result<SigningKey, String> {
        let key = match &rule.keys {
            RuleKeys::Fixed(keys) => keys.signing_key(self.kid.as_deref()),
            RuleKeys::Fetched(_) => None,
        };
        key.ok_or_else(|| match &self.kid {
            Some(kid) => format!("the route has no HS256 key with the kid {kid:?}"),
            None => "the route has public keys only: name the private one with --key-file".into(),
        })
    }

    fn key_in(&self, file: &Path) -> Result<SigningKey, Failure> {
        let name = file.display();
        let unreadable =
            |error: io::Error| Failure::Failed(format!("{name}: cannot be read: {error}"));
        let size = fs::metadata(file).map_err(unreadable)?.len();
        if size > KEY_BYTES_MAX {
            return Err(Failure::Failed(format!("{name}: larger than {KEY_BYTES_MAX} bytes")));
        }
        let text = fs::read_to_string(file).map_err(unreadable)?;
        let algorithm = self.algorithm.unwrap_or(TokenAlgorithm::Hs256);
        // The line end that editors add is not part of a secret. The key file of a route is read in the same way.
        let key = text.trim_end_matches(['\r', '\n']);
        SigningKey::new(self.kid.as_deref(), algorithm, key).ok_or_else(|| {
            let expected = match algorithm {
                TokenAlgorithm::Hs256 => "a secret of at least 32 bytes".to_owned(),
                other => format!("a private key for {} in PEM", other.name()),
            };
            Failure::Usage(format!("{name}: expected {expected}"))
        })
    }

    fn claims(&self, rule: Option<&TokenRule>, unix_s: u64) -> Value {
        let mut claims = Map::new();
        claims.insert("exp".into(), json!(unix_s + self.expires));
        if let Some(sub) = &self.sub {
            claims.insert("sub".into(), json!(sub));
        }
        if !self.channels.is_empty() {
            claims.insert("channels".into(), json!(self.channels));
        }
        if let Some(audience) = rule.and_then(|rule| rule.audience.first()) {
            claims.insert("aud".into(), json!(audience));
        }
        if let Some(issuer) = rule.and_then(|rule| rule.issuer.as_ref()) {
            claims.insert("iss".into(), json!(issuer));
        }
        claims.extend(self.claims.iter().cloned());
        Value::Object(claims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit() {
        for (text, expected) in [("90s", 90), ("15m", 900), ("12h", 43_200), ("30d", 2_592_000)] {
            assert_eq!(seconds(text), Ok(expected));
        }
        for text in ["", "15", "m", "-1m", "1.5h", "15 m", "15µ"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_claim_is_json_or_a_string() {
        assert_eq!(claim("sub=10000"), Ok(("sub".into(), json!(10000))));
        assert_eq!(claim("aud=a=b"), Ok(("aud".into(), json!("a=b"))));
        assert!(claim("sub").is_err());
    }
}
