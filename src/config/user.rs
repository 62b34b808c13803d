//! Users of the API. No message shows what is written for a secret.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::definition::section;
use super::document::{ConfigError, Section};
use super::shape::{List, SecretText, Text, Words, limit};
use crate::protocol::credentials::{
    HASH_MEMORY_KIB_MAX, HASH_PASSES_MAX, Roles, Scheme, Secret, SecretHash, User, is_token,
};

/// A token names no user, so each that is presented is compared with all hashes of tokens.
const HASHED_TOKENS_MAX: usize = 8;

section! {
    pub(super) struct UserKeys(section) {
        /// The name of the user, unique among the users.
        name: String = NAME, required("a user needs one", "\"app\"");

        /// The password, sent as `Authorization: Basic`. Written in plain text or as an argon2id hash. All
        /// hashes must have the same parameters.
        password: Option<Secret> = PASSWORD, none(
            "none; then `token` is required",
            "\"change-me\""
        );

        /// The token, sent as `Authorization: Bearer`, instead of a password. Written in plain text or as an
        /// argon2id hash. At most 8 tokens can be hashed.
        token: Option<Secret> = TOKEN,
            none("none; then `password` is required", "\"change-me\"");

        /// What the user may do. `read`: consume topics. `write`: send, publish and call. `admin`: both, and
        /// administer the nodes.
        roles: Roles = ROLES, derived(
            Roles::READ_WRITE, "`[\"read\", \"write\"]`", "[\"admin\"]"
        );

        /// Addresses and address ranges that the user may connect from.
        from: Vec<IpNet> = RANGES, derived(Vec::new(), "any", "[\"10.0.0.0/8\", \"::1\"]");

        /// Calls per second, over all connections of the user. Bursts of as many are allowed. Further calls
        /// are answered with 103. 0: unlimited.
        requests_per_s: u32 = limit(), value(0);
    }
}

/// Reads the tables `api.user`.
pub(super) fn read_users(api: &Section<'_>) -> Result<Vec<User>, ConfigError> {
    let mut users: Vec<User> = Vec::new();
    for section in api.tables("user")? {
        let user = read_user(&section)?;
        check_beside(&section, &user, &users)?;
        users.push(user);
    }
    Ok(users)
}

fn read_user(section: &Section<'_>) -> Result<User, ConfigError> {
    let keys = UserKeys::read_keys(section)?;
    let (scheme, secret) = match (keys.password, keys.token) {
        (Some(password), None) => (Scheme::Basic, password),
        (None, Some(token)) => (Scheme::Bearer, token),
        (None, None) => {
            return Err(section.fault(&["password"], "missing; a user has a password or a token"));
        }
        (Some(_), Some(_)) => {
            return Err(section.fault(&["token"], "a user has a password or a token, not both"));
        }
    };
    let UserKeys { name, roles, from, requests_per_s, .. } = keys;
    let from = from.into_iter().collect();
    Ok(User { name, scheme, secret, roles, from, requests_per_s })
}

const NAME: Text<String> = Text {
    expected: "a name of 1 to 255 bytes without control characters and colons",
    parse: |text| is_name(text).then(|| text.to_owned()),
};

fn is_name(text: &str) -> bool {
    (1..=255).contains(&text.len()) && !text.contains(|c: char| c.is_control() || c == ':')
}

const PASSWORD_TEXT: &str = "a string of 1 to 1024 bytes without control characters";

const PASSWORD: SecretText<Secret> = SecretText {
    expected: PASSWORD_TEXT,
    parse: |text| {
        secret(text, |text| !text.contains(char::is_control))
            .unwrap_or_else(|| Err(PASSWORD_TEXT.to_owned()))
    },
};

const TOKEN_TEXT: &str = "a string of 1 to 1024 letters, digits and -._~+/ (RFC 6750, section 2.1)";

const TOKEN: SecretText<Secret> = SecretText {
    expected: TOKEN_TEXT,
    parse: |text| secret(text, is_token).unwrap_or_else(|| Err(TOKEN_TEXT.to_owned())),
};

const SECRET_BYTES_MAX: usize = 1024;

/// A secret, plain or hashed, or why the hash is refused. `None` if a plain one is not valid.
fn secret(text: &str, is_valid: fn(&str) -> bool) -> Option<Result<Secret, String>> {
    if text.starts_with("$argon2") {
        return Some(SecretHash::parse(text).map(Secret::Hashed).ok_or_else(expected_hash));
    }
    let is_plain = (1..=SECRET_BYTES_MAX).contains(&text.len()) && is_valid(text);
    is_plain.then(|| Ok(Secret::Plain(text.into())))
}

fn expected_hash() -> String {
    format!(
        "an argon2id hash, $argon2id$v=19$m=…,t=…,p=…$…$…, with m up to {HASH_MEMORY_KIB_MAX} (KiB) \
         and t up to {HASH_PASSES_MAX}"
    )
}

const ROLES: Words<Roles> = Words {
    words: &["read", "write", "admin"],
    collect: |has| {
        let admin = has("admin");
        Ok(Roles { read: admin || has("read"), write: admin || has("write"), admin })
    },
};

pub(super) const RANGE: &str =
    "an IP address or a range that begins with its first, such as \"10.0.0.0/8\"";

const RANGES: List<IpNet> = List {
    expected: RANGE,
    parse: range,
    empty: Some("an empty list lets nobody in: leave it out for any"),
};

pub(super) fn range(text: &str) -> Result<IpNet, String> {
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

/// Checks that no two users share a name, and that their secrets can be told apart.
fn check_beside(section: &Section<'_>, user: &User, earlier: &[User]) -> Result<(), ConfigError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{parse, refused, user};

    #[test]
    fn a_user_has_a_name_of_its_own_and_one_secret() {
        refused(
            "[[api.user]]\ntoken = \"t\"",
            "gridcast.toml:1: api.user.name: missing; a user needs one",
        );
        refused(
            "[[api.user]]\nname = \"a:b\"",
            "gridcast.toml:2: api.user.name: expected a name of 1 to 255 bytes without control \
             characters and colons, found \"a:b\"",
        );
        refused(
            &user("token = \"t\"\n[[api.user]]\nname = \"app\"\ntoken = \"u\""),
            "gridcast.toml:5: api.user.name: \"app\" is the name of an earlier user",
        );
        refused(
            &user("token = \"t\"\n[[api.user]]\nname = \"b\"\ntoken = \"t\""),
            "gridcast.toml:6: api.user.token: is the token of an earlier user",
        );
        refused(
            &user(""),
            "gridcast.toml:1: api.user.password: missing; a user has a password or a token",
        );
        refused(
            &user("password = \"p\"\ntoken = \"t\""),
            "gridcast.toml:4: api.user.token: a user has a password or a token, not both",
        );
        refused(
            &user("pasword = \"p\""),
            "gridcast.toml:3: api.user.pasword: unknown key; did you mean \"password\"?",
        );
    }

    #[test]
    fn a_secret_that_is_refused_is_not_shown() {
        let long = "x".repeat(1025);
        for password in ["", "open\\tsesame", &long] {
            refused(
                &user(&format!("password = \"{password}\"")),
                "gridcast.toml:3: api.user.password: expected a string of 1 to 1024 bytes without \
                 control characters",
            );
        }
        for token in ["\"\"", "\"open sesame\"", "12345"] {
            refused(
                &user(&format!("token = {token}")),
                "gridcast.toml:3: api.user.token: expected a string of 1 to 1024 letters, digits and \
                 -._~+/ (RFC 6750, section 2.1)",
            );
        }
        for hash in [
            "$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs",
            "$argon2id$",
            "$argon2id$open",
        ] {
            refused(
                &user(&format!("password = \"{hash}\"")),
                "gridcast.toml:3: api.user.password: expected an argon2id hash, \
                 $argon2id$v=19$m=…,t=…,p=…$…$…, with m up to 262144 (KiB) and t up to 16",
            );
        }
    }

    #[test]
    fn hashes_take_the_same_time_and_hashed_tokens_are_few() {
        let hash = |cost| {
            format!("$argon2id$v=19${cost}$c29tZXNhbHQ$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs")
        };
        let hashed = |key, number, cost| {
            format!("[[api.user]]\nname = \"{number}\"\n{key} = \"{}\"\n", hash(cost))
        };
        let two = hashed("password", 1, "m=8,t=1,p=1") + &hashed("password", 2, "m=8,t=2,p=1");
        refused(
            &two,
            "gridcast.toml:6: api.user.password: expected the parameters of the hashes before it, \
             m=8,t=1,p=1",
        );
        let salts = "abcdefghi".chars().enumerate();
        let tokens: String = salts
            .map(|(number, salt)| {
                hashed("token", number, "m=8,t=1,p=1").replace("c29tZX", &format!("c29tZ{salt}"))
            })
            .collect();
        refused(
            &tokens,
            "gridcast.toml:27: api.user.token: expected at most 8 hashed tokens: each takes time",
        );
    }

    #[test]
    fn roles_and_ranges_are_checked_item_by_item() {
        let with = |line: &str| user(&format!("token = \"t\"\n{line}"));
        refused(
            &with("roles = [\"read\", \"owner\"]"),
            "gridcast.toml:4: api.user.roles: expected \"read\", \"write\" or \"admin\", found \"owner\"",
        );
        assert_eq!(parse(&with("roles = [\"admin\"]")).api.users[0].roles, Roles::ALL);
        assert_eq!(parse(&with("roles = []")).api.users[0].roles, Roles::default());
        for range in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0", "localhost", "", "::1/64"] {
            refused(
                &with(&format!("from = [\"{range}\"]")),
                &format!(
                    "gridcast.toml:4: api.user.from: expected an IP address or a range that begins \
                     with its first, such as \"10.0.0.0/8\", found \"{range}\""
                ),
            );
        }
        for (range, own) in [("::ffff:10.0.0.0/104", "10.0.0.0/8"), ("::ffff:a00:1", "10.0.0.1/32")]
        {
            refused(
                &with(&format!("from = [\"{range}\"]")),
                &format!(
                    "gridcast.toml:4: api.user.from: expected {own}: IPv4 addresses in their own form, \
                     found \"{range}\""
                ),
            );
        }
        assert!(!parse(&with("from = [\"::/0\", \"0.0.0.0/0\"]")).api.users[0].from.is_empty());
        refused(
            &with("from = []"),
            "gridcast.toml:4: api.user.from: an empty list lets nobody in: leave it out for any",
        );
    }
}
