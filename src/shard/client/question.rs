//! Needs of a handshake from outside the shard, and the question for an admission hook.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::Context;
use crate::address::remote::Remote;
use crate::protocol::admission::{Admission, AdmissionHook, AdmissionQuestion};
use crate::protocol::http::{Request, query_pairs};
use crate::protocol::token::{
    KeySet, KeySource, Pass, QUERY_NAME, TokenError, TokenRule, TokenSources,
};
use crate::shard::connection::HeldToken;
use crate::shard::settings::RouteSettings;

/// The channels, the context and the expiry that an accepted client is granted.
#[derive(Debug)]
pub struct Granted {
    /// The channels to subscribe the client to.
    pub channels: Vec<Box<str>>,
    /// The client's context.
    pub context: Context,
    /// When the client is closed, in Unix milliseconds. `None`: never.
    pub expires_unix_ms: Option<NonZeroU64>,
    /// What the renewal of the token depends on. `None`: the client has none.
    pub token: Option<Box<HeldToken>>,
}

/// The answer from outside the shard that a handshake needs.
#[derive(Debug)]
pub enum Need {
    /// A key that verifies the client's token.
    Keys(Arc<KeySource>),
    /// The decision of an admission hook.
    Hook {
        /// The hook.
        hook: Arc<AdmissionHook>,
        /// The grant if the hook adds nothing.
        granted: Box<Granted>,
        /// The question, as JSON.
        question: Vec<u8>,
    },
}

impl Need {
    /// Returns the memory held, in bytes.
    pub fn held_bytes(&self) -> usize {
        match self {
            Self::Keys(_) => 0,
            Self::Hook { granted, question, .. } => {
                let channels = granted.channels.iter().map(|name| name.len() + 32);
                let token = granted.token.as_ref().map_or(0, |token| token.held_bytes());
                let named = channels.sum::<usize>() + token;
                granted.context.held_bytes() + named + question.capacity()
            }
        }
    }
}

/// How far a handshake has got.
#[derive(Debug)]
pub enum Progress {
    /// The request has just arrived.
    New,
    /// The fetch of the missing keys has ended. The token does not wait for keys again.
    KeysKnown,
    /// The admission hook lets the client in, who is granted this, and what the hook adds.
    Admitted(Box<Granted>, Box<Admission>),
}

/// The fetched keys of a source.
#[derive(Clone, Copy, Debug)]
pub struct KeyLookup<'k> {
    /// The keys, once they are known.
    pub keys: Option<&'k KeySet>,
    /// Whether a missing key may arrive soon.
    pub may_wait: bool,
}

/// The result of a check that is not refused.
pub(super) enum Checked<T> {
    /// The check is passed.
    Passed(T),
    /// Something from outside the shard is missing.
    Needs(Need),
}

/// Checks a token by a rule with the keys that are known. If a key is missing that may arrive soon, and the token
/// `may_wait`, returns that it needs the key.
///
/// # Errors
/// The token is refused.
pub(super) fn check_with_keys<'k>(
    rule: &TokenRule,
    keys: impl Fn(&Arc<KeySource>) -> KeyLookup<'k>,
    may_wait: bool,
    check: impl FnOnce(Option<&KeySet>) -> Result<Pass, TokenError>,
) -> Result<Checked<Pass>, TokenError> {
    let lookup = rule.key_source().map(|source| (source, keys(source)));
    let error = match check(lookup.and_then(|(_, lookup)| lookup.keys)) {
        Ok(pass) => return Ok(Checked::Passed(pass)),
        Err(error) => error,
    };
    if let TokenError::UnknownKey | TokenError::NoKeys = error
        && let Some((source, lookup)) = lookup
        && may_wait
        && lookup.may_wait
    {
        return Ok(Checked::Needs(Need::Keys(source.clone())));
    }
    Err(error)
}

/// Returns the question about a client's request. Credentials that this node has checked are left out.
pub(super) fn put_question(
    route: &RouteSettings,
    request: &Request<'_>,
    remote: Remote,
    claims: Option<&str>,
) -> Vec<u8> {
    let checked = route.token.as_ref().map_or(TokenSources::default(), |rule| rule.sources);
    let is_checked = |name: &str| {
        checked.header && name.eq_ignore_ascii_case("authorization")
            || checked.protocol && name.eq_ignore_ascii_case("sec-websocket-protocol")
    };
    let query = query_pairs(request.query).map(|pair| (pair.name, pair.value));
    let query = query.filter(|(name, _)| !(checked.query && name == QUERY_NAME));
    let headers = request.headers().filter(|(name, _)| !is_checked(name));
    let headers =
        headers.map(|(name, value)| (name.to_ascii_lowercase(), String::from_utf8_lossy(value)));
    let mut question = Vec::new();
    AdmissionQuestion { path: request.path, query, headers, remote, claims }.put(&mut question);
    question
}
