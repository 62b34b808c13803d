//! Users of the API in a configuration, and the headers with which they log in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The sections of users, each with a name and further lines such as `token = "abc"`.
pub fn users(named: &[(&str, &str)]) -> String {
    named
        .iter()
        .map(|(name, lines)| format!("[[api.user]]\nname = \"{name}\"\n{lines}\n"))
        .collect()
}

/// The header with the name and the password of a user.
pub fn basic(name: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{name}:{password}")))
}

/// The header with the token of a user.
pub fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}
