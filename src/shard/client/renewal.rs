//! The renewal of a device's token on its open connection.
//!
//! The new token is checked as at a handshake. If a key is missing, the token waits in `shard::admission` while the bridge
//! fetches the keys. The device is read from meanwhile, and only the answers to its later calls wait.

use std::num::NonZeroU64;
use std::sync::Arc;

use smol_str::SmolStr;

use super::Clients;
use super::functions::change_context;
use super::question::{Checked, KeyLookup, Need, check_with_keys};
use crate::message::ConnectionKey;
use crate::protocol::api::{Code, DeviceCall, Fault, Parser, Reply};
use crate::protocol::token::{KeySource, Pass, TokenError};
use crate::shard::connection::{
    Connection, Connections, HeldToken, OfferedToken, Phase, TokenProgress,
};
use crate::shard::settings::RouteSettings;
use crate::shard::turn::{Step, Turn};
use crate::shard::work;

/// What a tap shows of a call with a token.
pub(super) const TOKEN_CALL_SHOWN: &[u8] = br#"{"m":"token"}"#;

/// Whether a message of a device is a call with a token, which nobody else may see, or may be a malformed one.
pub(super) fn offers_token(parser: &mut Parser, payload: &[u8]) -> bool {
    match parser.device_request(&mut payload.to_vec()).call {
        Ok(call) => matches!(call, DeviceCall::Token(_)),
        // Malformed. It may have a token all the same, and its name may be escaped.
        Err(_) => contains(payload, b"token") || contains(payload, b"\\u"),
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|part| part == word)
}

impl Clients {
    /// Checks the new token that a device has offered, and answers its call. If a key is missing that may arrive soon,
    /// returns this need, and the memory that the token takes meanwhile, in bytes.
    pub(crate) fn check_offered_token<'k>(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        keys: impl Fn(&Arc<KeySource>) -> KeyLookup<'k>,
        progress: TokenProgress,
    ) -> Option<(Need, usize)> {
        let connection = connections.get(key)?;
        let is_open = connection.phase == Phase::Open;
        let route = connection.route(&turn.settings).cloned()?;
        let held = held_token(connection).filter(|_| is_open)?;
        let OfferedToken { token, receipt } = held.offered.take()?;
        let may_wait = matches!(progress, TokenProgress::New);
        let checked = match progress {
            TokenProgress::New | TokenProgress::KeysKnown => {
                check(turn, &route, held, &token, keys, may_wait)
            }
            TokenProgress::Failed(fault) => Err(fault),
        };
        let renewed = match checked {
            Ok(Checked::Needs(need)) => {
                let bytes = token.len();
                held.offered = Some(OfferedToken { token, receipt });
                return Some((need, bytes));
            }
            Ok(Checked::Passed(pass)) => self.renew(turn, connections, key, pass),
            Err(fault) => Err(fault),
        };
        connections.answer_later(turn, key, receipt, &renewed.map(|()| Reply::Done));
        None
    }

    /// Applies a new token: its expiry, and the context of its claims.
    ///
    /// # Errors
    /// The context would be too large. The old token counts.
    fn renew(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        pass: Pass,
    ) -> Result<(), Fault> {
        // The subject is the same. A back end may have given the client another user than that.
        let entries = pass.context.into_iter().filter(|(name, _)| **name != *"user_id").collect();
        change_context(&mut self.users, turn, connections, key, |context| context.extend(entries))?;
        self.note_changed(turn, key);
        let Some(connection) = connections.get(key) else { return Ok(()) };
        let admitted_until = held_token(connection).and_then(|held| held.admitted_until_ms);
        let Some(client) = connection.client() else { return Ok(()) };
        let before = client.expires_unix_ms;
        let until = NonZeroU64::new(pass.until_unix_ms);
        client.expires_unix_ms = until.into_iter().chain(admitted_until).min();
        if client.expires_unix_ms < before {
            // The timer that is set would fire too late. The next turn sets it anew.
            connections.set_timer(turn, key, turn.now.ms);
        }
        Ok(())
    }
}

/// Takes the new token of a device. It is checked in a step, and answered after that.
///
/// # Errors
/// The route takes no tokens, the device has connected without one, or its last one is still being checked.
pub(super) fn offer_token(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    route: &RouteSettings,
    id: &SmolStr,
    token: &str,
) -> Result<(), Fault> {
    if route.token.is_none() {
        return Err(no_tokens());
    }
    let Some(client) = connections.get(key).and_then(Connection::client) else { return Ok(()) };
    let Some(device) = &client.device else { return Ok(()) };
    match &device.token {
        None => {
            return Err(Fault::new(
                Code::InvalidArgument,
                "m: this device has connected without a token",
            ));
        }
        Some(held) if held.offered.is_some() => {
            let why = "the token that was sent before is still being checked";
            return Err(Fault::new(Code::TooManyRequests, why));
        }
        Some(_) => {}
    }
    let Some(receipt) = client.reserve_receipt(id.clone()) else { return Ok(()) };
    let held = client.device.as_mut().and_then(|device| device.token.as_mut());
    if let Some(held) = held {
        held.offered = Some(OfferedToken { token: token.into(), receipt });
        turn.push_step(Step::TokenOffered(key, TokenProgress::New));
    }
    Ok(())
}

fn held_token(connection: &mut Connection) -> Option<&mut HeldToken> {
    connection.client()?.device.as_mut()?.token.as_deref_mut()
}

/// Checks a new token by the rule of the route, and its subject.
///
/// # Errors
/// The token is refused, or cannot be checked.
fn check<'k>(
    turn: &mut Turn,
    route: &RouteSettings,
    held: &HeldToken,
    token: &str,
    keys: impl Fn(&Arc<KeySource>) -> KeyLookup<'k>,
    may_wait: bool,
) -> Result<Checked<Pass>, Fault> {
    // A reload may have removed the rule.
    let rule = route.token.as_ref();
    let rule = rule.ok_or_else(no_tokens)?;
    turn.work.spend(work::TOKEN);
    let unix_ms = turn.now.unix_ms;
    let check = |keys: Option<&_>| rule.check_token(token, unix_ms, keys);
    let error = match check_with_keys(rule, keys, may_wait, check) {
        Ok(Checked::Passed(pass)) if pass.subject != held.subject => {
            let why = "token: its sub is not that of the token before";
            return Err(Fault::new(Code::NotAuthorised, why));
        }
        Ok(checked) => return Ok(checked),
        Err(error) => error,
    };
    let code = match error {
        TokenError::NoKeys => Code::ExecutionFailed,
        _ => Code::NotAuthorised,
    };
    Err(Fault::new(code, format!("token: {error}")))
}

fn no_tokens() -> Fault {
    Fault::new(Code::InvalidArgument, "m: this route takes no tokens")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_may_have_a_token_is_hidden_from_taps_and_nothing_else() {
        let mut parser = Parser::default();
        for (call, is_hidden) in [
            (r#"{"m":"token","p":{"token":"a.b.c"},"i":1}"#, true),
            (r#"{"m":"token","p":{"token":"a.b.c"},"i":{}}"#, true),
            (r#"{"m":"token","p":{"token":"a.b.c"#, true),
            (r#"{"m":"\u0074oken","p":{"\u0074oken":"a.b.c"},"i":[]}"#, true),
            (r#"{"m":"tokens","p":{"token":"a.b.c"},"i":1}"#, true),
            (r#"{"m":"push","p":{"d":"a token"},"i":1}"#, false),
            (r#"{"m":"push","p":{"d":1},"i":1}"#, false),
            ("ping", false),
        ] {
            assert_eq!(offers_token(&mut parser, call.as_bytes()), is_hidden, "{call}");
        }
    }
}
