//! Users of the API. No message shows what is written for a secret.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::document::{ConfigError, Section};
use super::limit;
use crate::protocol::credentials::{Roles, Scheme, Secret, SecretHash, User, is_token};

const USER_KEYS: [&str; 6] = ["name", "password", "token", "roles", "from", "requests_per_s"];

const NAME: &str = "a name of 1 to 255 bytes without control characters and colons";
const RANGE: &str = "an IP address or a range that begins with its first, such as \"10.0.0.0/8\"";
const PASSWORD: &str = "expected a string of 1 to 1024 bytes without control characters";
const TOKEN: &str =
    "expected a string of 1 to 1024 letters, digits and -._~+/ (RFC 6750, section 2.1)";
const HASH: &str = "expected an argon2id hash, $argon2id$v=19$m=…,t=…,p=…$…$…, with m up to 262144 \
                    (KiB) and t up to 16";

const SECRET_BYTES_MAX: usize = 1024;

/// A token names no user, so each that is presented is compared with all hashes of tokens.
const HASHED_TOKENS_MAX: usize = 8;

/// Reads the tables in `api.user`.
pub(super) fn read_users(api: &Section) -> Result<Vec<User>, ConfigError> {
    let mut users: Vec<User> = Vec::new();
    for section in api.tables("user")? {
        let section = section.only(&USER_KEYS)?;
        let user = read_user(&section)?;
        check_beside(&section, &user, &users)?;
        users.push(user);
    }
    Ok(users)
}

fn read_user(section: &Section) -> Result<User, ConfigError> {
    let name = section.text("name", NAME, is_name)?;
    let name = name.ok_or_else(|| section.fault(&["name"], "missing; a user needs one"))?;
    let password = read_secret(section, "password", PASSWORD, is_password)?;
    let token = read_secret(section, "token", TOKEN, is_token)?;
    let (scheme, secret) = match (password, token) {
        (Some(password), None) => (Scheme::Basic, password),
        (None, Some(token)) => (Scheme::Bearer, token),
        (None, None) => {
            return Err(section.fault(&["password"], "missing; a user has a password or a token"));
        }
        (Some(_), Some(_)) => {
            return Err(section.fault(&["token"], "a user has a password or a token, not both"));
        }
    };
    Ok(User {
        name,
        scheme,
        secret,
        roles: read_roles(section)?,
        from: read_ranges(section)?,
        requests_per_s: limit(section, "requests_per_s", 0)?,
    })
}

/// A secret, plain or hashed. The message does not say what was found.
fn read_secret(
    section: &Section,
    key: &str,
    expected: &str,
    is_valid: fn(&str) -> bool,
) -> Result<Option<Secret>, ConfigError> {
    let Some(text) = section.secret(key) else { return Ok(None) };
    if text.starts_with("$argon2") {
        let hash = SecretHash::parse(text).ok_or_else(|| section.fault(&[key], HASH))?;
        return Ok(Some(Secret::Hashed(hash)));
    }
    if !(1..=SECRET_BYTES_MAX).contains(&text.len()) || !is_valid(text) {
        return Err(section.fault(&[key], expected));
    }
    Ok(Some(Secret::Plain(text.into())))
}

fn read_roles(section: &Section) -> Result<Roles, ConfigError> {
    let is_role = |word: &str| matches!(word, "read" | "write");
    let Some(words) = section.texts("roles", "\"read\" or \"write\"", is_role)? else {
        return Ok(Roles::ALL);
    };
    let has = |role: &str| words.iter().any(|word| word == role);
    Ok(Roles { read: has("read"), write: has("write") })
}

fn read_ranges(section: &Section) -> Result<Vec<IpNet>, ConfigError> {
    let ranges = section.texts_as("from", RANGE, range)?.unwrap_or_default();
    if ranges.is_empty() && section.has("from") {
        return Err(section.fault(&["from"], "an empty list lets nobody in: leave it out for any"));
    }
    Ok(ranges)
}

fn range(text: &str) -> Result<IpNet, String> {
    let alone = text.parse::<IpAddr>().ok().map(IpNet::from);
    let range = alone.or_else(|| text.parse().ok());
    // A range that begins elsewhere is a slip: which was meant, the address or the range?
    let range = range.filter(|range| range.network() == range.addr());
    let range = range.ok_or_else(|| RANGE.to_owned())?;
    match mapped(range) {
        // An address is compared in its own form: this would match nobody.
        Some(own) => Err(format!("{own}: IPv4 addresses in their own form")),
        None => Ok(range),
    }
}

/// The IPv4 range that is written as one of IPv6 (RFC 4291, section 2.5.5.2).
fn mapped(range: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(range) = range else { return None };
    let bits = range.prefix_len().checked_sub(96)?;
    Ipv4Net::new(range.addr().to_ipv4_mapped()?, bits).ok()
}

/// What users must not have in common, and what they must.
fn check_beside(section: &Section, user: &User, earlier: &[User]) -> Result<(), ConfigError> {
    if earlier.iter().any(|other| other.name == user.name) {
        let reason = format!("{:?} is the name of an earlier user", user.name);
        return Err(section.fault(&["name"], reason));
    }
    let tokens = || earlier.iter().filter(|other| other.scheme == Scheme::Bearer);
    if user.scheme == Scheme::Bearer && tokens().any(|other| other.secret == user.secret) {
        return Err(section.fault(&["token"], "is the token of an earlier user"));
    }
    let Secret::Hashed(hash) = &user.secret else { return Ok(()) };
    let hashed = |other: &User| matches!(other.secret, Secret::Hashed(_));
    if user.scheme == Scheme::Bearer
        && tokens().filter(|other| hashed(other)).count() == HASHED_TOKENS_MAX
    {
        let reason = format!("expected at most {HASHED_TOKENS_MAX} hashed tokens: each takes time");
        return Err(section.fault(&["token"], reason));
    }
    let cost = earlier.iter().find_map(|other| match &other.secret {
        Secret::Hashed(hash) => Some(hash.cost()),
        Secret::Plain(_) => None,
    });
    match cost {
        // Otherwise the time that a check takes would tell whose name was tried.
        Some(cost) if cost != hash.cost() => {
            let reason = format!("expected the parameters of the hashes before it, {cost}");
            Err(section.fault(&["password", "token"], reason))
        }
        _ => Ok(()),
    }
}

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.contains(|c: char| c.is_control() || c == ':')
}

fn is_password(text: &str) -> bool {
    !text.contains(char::is_control)
}
