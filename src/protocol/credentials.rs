//! Credentials of back ends: parses those that a request presents (RFC 7617, RFC 6750), and describes
//! the configured users.
//!
//! Secrets are never printed: `Debug` of every type here omits them.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordVerifier};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use blake2::Blake2sMac256;
use blake2::digest::{FixedOutput, KeyInit, Update};
use subtle::{Choice, ConstantTimeEq};

use super::http::{Request, list_members};
use super::upgrade;
use crate::address::networks::Networks;

/// The value of `WWW-Authenticate` in a 401 response (RFC 9110, section 11.6.1).
pub const CHALLENGE: &str = "Basic realm=\"gridcast\", Bearer";

/// The subprotocol of the API. Named in the response to a back end that offers it. A browser fails a
/// handshake whose response names none of the subprotocols that the page offers.
pub const SUBPROTOCOL: &str = "gridcast.api";

/// The prefix of credentials in the list of subprotocols.
const SUBPROTOCOL_PREFIX: &[u8] = b"authorization.";

/// The most memory that the verification of one hash may take, in KiB.
pub const HASH_MEMORY_KIB_MAX: u32 = 256 * 1024;

/// The most passes over its memory that the verification of one hash may take.
pub const HASH_PASSES_MAX: u32 = 16;

/// An HTTP authentication scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A user name and a password (RFC 7617).
    Basic,
    /// A token without a user name (RFC 6750).
    Bearer,
}

/// The credentials that a request presents.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The authentication scheme.
    pub scheme: Scheme,
    /// The user's name; empty for [`Scheme::Bearer`].
    pub name: String,
    /// The password or token.
    pub secret: String,
}

impl Credentials {
    /// Parses the credentials of a request: those in `Authorization`, or, for a WebSocket handshake
    /// without that header, those in the list of subprotocols. A browser can set only the latter.
    pub fn of(request: &Request<'_>) -> Option<Self> {
        let mut headers = request.header_values("authorization");
        match (headers.next(), headers.next()) {
            (Some(value), None) => Self::parse(value),
            (None, _) if upgrade::is_upgrade(request) => Self::in_subprotocols(request),
            _ => None,
        }
    }

    /// Parses a subprotocol `authorization.VALUE`. `VALUE` is what `Authorization` would be, in the
    /// URL-safe base64 of RFC 4648, section 5, without padding. Returns `None` if there is none or
    /// more than one.
    fn in_subprotocols(request: &Request<'_>) -> Option<Self> {
        let members = request.header_values("sec-websocket-protocol").flat_map(list_members);
        let mut values = members.filter_map(|member| member.strip_prefix(SUBPROTOCOL_PREFIX));
        let value = values.next().filter(|_| values.next().is_none())?;
        Self::parse(&URL_SAFE_NO_PAD.decode(value).ok()?)
    }

    /// Parses the value of an `Authorization` header. Returns `None` if the scheme is unknown or the
    /// value is malformed.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (scheme, rest) = str::from_utf8(value).ok()?.split_once(' ')?;
        let rest = rest.trim_matches(' ');
        if scheme.eq_ignore_ascii_case("Bearer") {
            let (name, secret) = (String::new(), rest.to_owned());
            return is_token(rest).then_some(Self { scheme: Scheme::Bearer, name, secret });
        }
        if !scheme.eq_ignore_ascii_case("Basic") {
            return None;
        }
        const BASE64: GeneralPurpose = GeneralPurpose::new(
            &STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let pair = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
        let (name, secret) = pair.split_once(':')?;
        Some(Self { scheme: Scheme::Basic, name: name.to_owned(), secret: secret.to_owned() })
    }

    /// Returns the keyed hash of these credentials.
    pub fn fingerprint(&self, key: &FingerprintKey) -> Fingerprint {
        let mut mac = Blake2sMac256::new(&key.0.into());
        // The length makes the boundary between name and secret unambiguous.
        mac.update(&[self.scheme as u8]);
        mac.update(&(self.name.len() as u64).to_le_bytes());
        mac.update(self.name.as_bytes());
        mac.update(self.secret.as_bytes());
        Fingerprint(mac.finalize_fixed().into())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Credentials({:?}, …)", self.scheme)
    }
}

/// A keyed hash of credentials, used to compare them and look them up. Reveals nothing about them
/// without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint as bytes, for use with [`FingerprintKey::lot`].
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl ConstantTimeEq for Fingerprint {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

/// The key of fingerprints: random bytes of this process.
#[derive(Clone)]
pub struct FingerprintKey([u8; 32]);

impl FingerprintKey {
    /// Creates a key from random bytes.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// Derives a pseudo-random number from `parts`. Nobody can predict it without the key, so it serves
    /// to draw lots fairly.
    pub fn lot(&self, parts: &[&[u8]]) -> u64 {
        let mut mac = Blake2sMac256::new(&self.0.into());
        // The first byte separates lots from fingerprints, which begin with a scheme.
        mac.update(&[u8::MAX]);
        for part in parts {
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        let bytes: [u8; 32] = mac.finalize_fixed().into();
        u64::from_le_bytes(*bytes.first_chunk().expect("32 bytes contain 8"))
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FingerprintKey(…)")
    }
}

/// A configured user of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name, as in logs and in Basic authentication.
    pub name: String,
    /// The scheme that the user must use.
    pub scheme: Scheme,
    /// The configured password or token.
    pub secret: Secret,
    /// The user's rights.
    pub roles: Roles,
    /// The networks that the user may connect from. Empty: any.
    pub from: Networks,
    /// The most calls per second on the whole node. 0: unlimited.
    pub requests_per_s: u32,
}

impl User {
    /// Whether the user may connect from this address.
    pub fn may_come_from(&self, address: IpAddr) -> bool {
        self.from.is_empty() || self.from.contains(address)
    }
}

/// The rights of a user. Every user may also read the state of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// May consume the messages of clients.
    pub read: bool,
    /// May send, publish and call functions.
    pub write: bool,
    /// May administer the nodes. Whoever may also has the other roles.
    pub admin: bool,
}

impl Roles {
    /// All rights.
    pub const ALL: Self = Self { read: true, write: true, admin: true };

    /// The rights of a user for whom nothing else is configured.
    pub const READ_WRITE: Self = Self { read: true, write: true, admin: false };

    /// Whether all rights of `other` are among these.
    pub fn include(self, other: Self) -> bool {
        self.read >= other.read && self.write >= other.write && self.admin >= other.admin
    }
}

/// A configured password or token.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The secret in plain text.
    Plain(Box<str>),
    /// A hash of the secret.
    Hashed(SecretHash),
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Plain(_) => "Plain(…)",
            Self::Hashed(_) => "Hashed(…)",
        })
    }
}

/// An argon2id hash (RFC 9106), parsed from the PHC string format: `$argon2id$v=19$m=…,t=…,p=…$…$…`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretHash(Arc<PasswordHash>);

impl SecretHash {
    /// Parses a PHC string. Returns `None` if it is malformed, if it is not argon2id version 19 with
    /// salt and hash, or if it exceeds [`HASH_MEMORY_KIB_MAX`] or [`HASH_PASSES_MAX`].
    pub fn parse(text: &str) -> Option<Self> {
        let hash = PasswordHash::new(text).ok()?;
        let params = Params::try_from(&hash).ok()?;
        let is_right = hash.algorithm == Algorithm::Argon2id.ident()
            && hash.version == Some(argon2::Version::V0x13.into())
            && hash.salt.is_some()
            && hash.hash.is_some()
            && params.m_cost() <= HASH_MEMORY_KIB_MAX
            && params.t_cost() <= HASH_PASSES_MAX;
        is_right.then(|| Self(Arc::new(hash)))
    }

    /// Returns the cost parameters, such as `m=65536,t=3,p=4`. They decide how long a verification
    /// takes.
    pub fn cost(&self) -> &str {
        self.0.params.as_str()
    }

    /// Whether this is the hash of `secret`. Takes tens of milliseconds, whatever the result.
    pub fn matches(&self, secret: &str) -> bool {
        Argon2::default().verify_password(secret.as_bytes(), &*self.0).is_ok()
    }
}

/// Whether the text is a `b64token`, which may follow `Bearer` in a header (RFC 6750, section 2.1).
pub fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of `open sesame`, with the lowest possible cost.
    const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ\
                        $hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs";

    fn parsed(value: &str) -> Option<(Scheme, String, String)> {
        let Credentials { scheme, name, secret } = Credentials::parse(value.as_bytes())?;
        Some((scheme, name, secret))
    }

    #[test]
    fn basic_carries_a_name_and_a_password_that_may_hold_colons() {
        let expected = Some((Scheme::Basic, "app".to_owned(), "a:b".to_owned()));
        for value in ["Basic YXBwOmE6Yg==", "bASIC  YXBwOmE6Yg", "basic YXBwOmE6Yg== "] {
            assert_eq!(parsed(value), expected, "{value}");
        }
    }

    #[test]
    fn bearer_carries_a_token_alone() {
        let expected = Some((Scheme::Bearer, String::new(), "a-._~+/9==".to_owned()));
        assert_eq!(parsed("Bearer a-._~+/9=="), expected);
    }

    #[test]
    fn what_is_written_otherwise_is_no_credentials() {
        for value in [
            "",
            "Basic",
            "Basic ",
            "Basic YXBw",
            "Basic %%%",
            "Basic /w==",
            "Bearer ",
            "Bearer =",
            "Bearer a b",
            "Bearer a,b",
            "Digest username=\"app\"",
            "YXBwOmE6Yg==",
        ] {
            assert_eq!(parsed(value), None, "{value}");
        }
    }

    #[test]
    fn a_fingerprint_tells_credentials_and_keys_apart() {
        let key = FingerprintKey::new([1; 32]);
        let of = |scheme, name: &str, secret: &str| Credentials {
            scheme,
            name: name.into(),
            secret: secret.into(),
        };
        let all = [
            of(Scheme::Basic, "ab", "c").fingerprint(&key),
            of(Scheme::Basic, "a", "bc").fingerprint(&key),
            of(Scheme::Bearer, "", "abc").fingerprint(&key),
            of(Scheme::Basic, "", "abc").fingerprint(&key),
            of(Scheme::Basic, "ab", "c").fingerprint(&FingerprintKey::new([2; 32])),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one), "{at}");
        }
        assert_eq!(all[0], of(Scheme::Basic, "ab", "c").fingerprint(&key));
    }

    #[test]
    fn a_hash_matches_its_secret_alone() {
        let hash = SecretHash::parse(HASH).expect("it is as the reference tool prints it");
        assert!(hash.matches("open sesame"));
        assert!(!hash.matches("open sesam") && !hash.matches(""));
    }

    #[test]
    fn a_hash_of_another_kind_or_cost_is_refused() {
        for (good, bad) in [
            ("argon2id", "argon2i"),
            ("argon2id", "argon2d"),
            ("argon2id", "scrypt"),
            ("v=19", "v=16"),
            ("v=19$", ""),
            ("m=8", "m=7"),
            ("m=8", "m=262145"),
            ("t=1", "t=17"),
            ("p=1", "p=0"),
            ("$c29tZXNhbHQ", ""),
            ("$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs", ""),
        ] {
            let text = HASH.replacen(good, bad, 1);
            assert!(SecretHash::parse(&text).is_none(), "{text}");
        }
    }

    #[test]
    fn nothing_that_holds_a_secret_shows_it() {
        let credentials = Credentials::parse(b"Bearer open-sesame").expect("a token");
        let shown = format!("{credentials:?} {:?}", Secret::Plain("open-sesame".into()));
        assert!(!shown.contains("sesame"), "{shown}");
    }

    #[test]
    fn a_user_comes_from_its_addresses_alone() {
        let from = ["10.0.0.0/8", "fd00::/8"].map(|range| range.parse().expect("a range"));
        let secret = Secret::Plain("x".into());
        let (scheme, roles) = (Scheme::Basic, Roles::ALL);
        let mut user = User {
            name: "app".into(),
            scheme,
            secret,
            roles,
            from: Networks::from_iter(from),
            requests_per_s: 0,
        };
        let may = |user: &User, text: &str| user.may_come_from(text.parse().expect("an address"));
        assert!(["10.255.0.1", "::ffff:10.0.0.1", "fd12::1"].iter().all(|a| may(&user, a)));
        assert!(!["11.0.0.1", "::1", "::ffff:11.0.0.1"].iter().any(|a| may(&user, a)));
        user.from = Networks::default();
        assert!(may(&user, "11.0.0.1"));
    }
}
