use super::CredentialCheck::{Decided, Pending};
use super::*;
use crate::address::networks::Networks;

/// The hash of `open sesame`, at the least cost there is.
const HASH: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ\
                    $hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs";

fn user(name: &str, scheme: Scheme, secret: &str) -> User {
    let secret = match SecretHash::parse(secret) {
        Some(hash) => Secret::Hashed(hash),
        None => Secret::Plain(secret.into()),
    };
    let roles = Roles { read: name == "reader", write: name == "writer", admin: false };
    User { name: name.into(), scheme, secret, roles, from: Default::default(), requests_per_s: 0 }
}

fn access(users: Vec<User>) -> Authenticator {
    Authenticator::of(users.into(), FingerprintKey::new([7; 32]), 2)
}

fn remote() -> IpAddr {
    [10, 0, 0, 1].into()
}

fn basic(name: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = format!("{name}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn check(access: &mut Authenticator, now_ms: u64, authorization: &str) -> CredentialCheck {
    access.check(now_ms, remote(), || Credentials::parse(authorization.as_bytes()))
}

/// Runs the next verification and records its result; returns the user.
fn verify_next(access: &mut Authenticator, now_ms: u64) -> Option<usize> {
    let verification = access.queue.begin(now_ms).expect("one was asked for");
    let FromNode::VerificationDone { credentials, user } = verification.run() else {
        panic!("a result")
    };
    access.settle(now_ms, credentials, user, true);
    user
}

const READER: Grant =
    Grant { user: Some(0), roles: Roles { read: true, write: false, admin: false } };
const WRITER: Grant =
    Grant { user: Some(1), roles: Roles { read: false, write: true, admin: false } };

#[test]
fn without_users_every_request_is_granted() {
    let mut access = access(Vec::new());
    let all = Grant { user: None, roles: Roles::ALL };
    assert_eq!(access.check(0, remote(), || None), Decided(Ok(all)));
    assert_eq!(check(&mut access, 0, "Bearer x"), Decided(Ok(all)));
}

#[test]
fn plain_secrets_are_checked_at_once() {
    let mut access = access(vec![
        user("reader", Scheme::Basic, "open sesame"),
        user("writer", Scheme::Bearer, "open-sesame"),
    ]);
    assert_eq!(check(&mut access, 0, &basic("reader", "open sesame")), Decided(Ok(READER)));
    assert_eq!(check(&mut access, 0, "Bearer open-sesame"), Decided(Ok(WRITER)));
    for wrong in ["Bearer open-sesam", &basic("writer", "open-sesame"), &basic("reader", "")] {
        assert_eq!(check(&mut access, 0, wrong), Decided(Err(Denial::Wrong)), "{wrong}");
    }
    assert_eq!(access.check(0, remote(), || None), Decided(Err(Denial::Missing)));
    assert!(access.queue.begin(0).is_none());
}

#[test]
fn a_verified_hash_is_not_verified_again_for_a_while() {
    let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
    let right = basic("reader", "open sesame");
    assert!(matches!(check(&mut access, 0, &right), Pending(_)));
    assert!(matches!(check(&mut access, 0, &right), Pending(_)), "it is in the queue already");
    assert_eq!(verify_next(&mut access, 10), Some(0));
    assert!(access.queue.begin(10).is_none());
    assert_eq!(check(&mut access, 10 + PROVEN_MS - 1, &right), Decided(Ok(READER)));
    // Each use extends the time.
    assert_eq!(check(&mut access, 8 + 2 * PROVEN_MS, &right), Decided(Ok(READER)));
    assert!(matches!(check(&mut access, 8 + 3 * PROVEN_MS, &right), Pending(_)));
}

#[test]
fn wrong_credentials_are_denied_without_a_hash_when_repeated() {
    let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
    let wrong = basic("reader", "sesame");
    assert!(matches!(check(&mut access, 0, &wrong), Pending(_)));
    assert_eq!(verify_next(&mut access, 0), None);
    let again = Decided(Err(Denial::WrongAgain));
    assert_eq!(check(&mut access, REMEMBERED_MS - 1, &wrong), again);
    assert!(access.proven.is_empty() && access.queue.begin(0).is_none());
    assert!(matches!(check(&mut access, REMEMBERED_MS, &wrong), Pending(_)));
}

#[test]
fn an_unknown_user_name_costs_a_hash_and_is_denied() {
    let plain = user("writer", Scheme::Basic, "plain");
    let mut access = access(vec![user("reader", Scheme::Basic, HASH), plain]);
    for name in ["nobody", "writer"] {
        assert!(matches!(check(&mut access, 0, &basic(name, "open sesame")), Pending(_)));
        assert_eq!(verify_next(&mut access, 0), None, "the right password of another");
    }
    assert_eq!(check(&mut access, 0, &basic("writer", "plain")), Decided(Ok(WRITER)));
}

#[test]
fn a_token_is_compared_with_every_hash_of_a_token() {
    let mut access = access(vec![
        user("a", Scheme::Bearer, &HASH.replace("c29tZXNhbHQ", "c29tZXNhbHU")),
        user("writer", Scheme::Bearer, HASH),
    ]);
    let credentials =
        Credentials { scheme: Scheme::Bearer, name: String::new(), secret: "open sesame".into() };
    let fingerprint = credentials.fingerprint(&access.key);
    let check = access.check_unknown(0, remote(), fingerprint, credentials);
    assert_eq!(check, Pending(fingerprint));
    assert_eq!(verify_next(&mut access, 0), Some(1));
}

#[test]
fn retried_credentials_go_before_new_ones() {
    let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
    for guess in ["1", "2"] {
        assert!(matches!(check(&mut access, 0, &basic("reader", guess)), Pending(_)));
    }
    let right = basic("reader", "open sesame");
    let credentials = Credentials::parse(right.as_bytes()).expect("they are written so");
    let fingerprint = credentials.fingerprint(&access.key);
    access.defer(0, fingerprint);
    assert!(matches!(check(&mut access, 1000, &right), Pending(_)));
    assert_eq!(access.displaced.len(), 1, "a guess lost its place");
    assert_eq!(verify_next(&mut access, 1000), Some(0));
    assert_eq!(check(&mut access, 1000, &right), Decided(Ok(READER)));
}

/// Presents wrong credentials until the source has no attempt left.
fn use_up_attempts(access: &mut Authenticator) {
    (0..10).for_each(|_| _ = access.failed_attempts.note(0, remote()));
}

#[test]
fn after_too_many_attempts_known_right_credentials_are_accepted() {
    let plain = user("reader", Scheme::Basic, "plain");
    let mut access = access(vec![plain, user("writer", Scheme::Basic, HASH)]);
    let right = basic("writer", "open sesame");
    assert!(matches!(check(&mut access, 0, &right), Pending(_)));
    verify_next(&mut access, 0);
    use_up_attempts(&mut access);
    assert_eq!(check(&mut access, 0, &basic("reader", "plain")), Decided(Ok(READER)));
    assert_eq!(check(&mut access, 0, &right), Decided(Ok(WRITER)));
    let wrong = basic("nobody", "plain");
    assert_eq!(check(&mut access, 0, &wrong), Decided(Err(Denial::TooManyAttempts)));
}

#[test]
fn after_too_many_attempts_only_retried_credentials_are_verified() {
    let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
    use_up_attempts(&mut access);
    let too_many = Decided(Err(Denial::TooManyAttempts));
    for guess in 0..100 {
        assert_eq!(check(&mut access, 0, &basic("reader", &guess.to_string())), too_many);
    }
    assert!(access.queue.begin(0).is_none(), "no guess has cost a hash");
    let right = basic("reader", "open sesame");
    assert_eq!(check(&mut access, 0, &right), too_many);
    assert!(matches!(check(&mut access, 1000, &right), Pending(_)));
    assert_eq!(verify_next(&mut access, 1000), Some(0));
    assert_eq!(check(&mut access, 1000, &right), Decided(Ok(READER)));
}

/// An attack with prepared guesses, among which right credentials are presented.
#[derive(Clone, Copy)]
struct Guessing {
    stock: usize,
    source: fn(usize) -> [u8; 4],
    // Whether the right credentials come from an address without attempts left.
    is_suspect: bool,
    // Verifications per 200 ms.
    hashes: usize,
}

/// Returns how often right credentials are presented, once a second, until they are verified.
/// The attacker keeps a stock of guesses that were deferred hundreds of times. It presents each
/// of them every 200 ms, just before the next verification begins, and replaces each that is
/// verified.
fn presentations(seed: u8, guessing: Guessing) -> usize {
    let Guessing { stock, source, is_suspect, hashes } = guessing;
    let users = vec![user("reader", Scheme::Basic, HASH)];
    let key = FingerprintKey::new([seed; 32]);
    let mut access = Authenticator::of(users.into(), key.clone(), VERIFICATIONS_MAX);
    if is_suspect {
        use_up_attempts(&mut access);
    }
    let credentials = |secret: String| {
        let credentials = Credentials { scheme: Scheme::Basic, name: "reader".into(), secret };
        (credentials.fingerprint(&key), credentials)
    };
    let prepared: Vec<_> = (0..900).map(|n| credentials(format!("guess {n}"))).collect();
    let guess = |number: usize| prepared[number].clone();
    let (right, _) = credentials("open sesame".into());
    for (fingerprint, _) in &prepared {
        (0..255).for_each(|_| access.defer(1, *fingerprint));
    }
    let mut guesses: Vec<usize> = (0..stock).collect();
    let mut fresh = stock..900;
    for step in 0..290 {
        let now_ms = 1000 + 200 * step as u64;
        if step % 5 == 2 {
            let (fingerprint, credentials) = credentials("open sesame".into());
            access.check_unknown(now_ms, remote(), fingerprint, credentials);
        }
        for &number in &guesses {
            let (fingerprint, credentials) = guess(number);
            access.check_unknown(now_ms, source(number).into(), fingerprint, credentials);
        }
        access.take_displaced(now_ms);
        for _ in 0..hashes {
            let Some(verification) = access.begin_verification(now_ms) else { break };
            let verified = verification.fingerprint;
            if verified == right {
                return step / 5 + 1;
            }
            access.settle(now_ms, verified, None, true);
            for number in &mut guesses {
                if prepared[*number].0 == verified {
                    *number = fresh.next().expect("there are enough");
                }
            }
        }
    }
    panic!("right credentials are not verified in {} presentations", 290 / 5);
}

#[test]
fn repeated_prepared_guesses_have_no_better_odds_than_right_credentials() {
    let here: fn(usize) -> [u8; 4] = |_| [10, 0, 0, 1];
    let everywhere: fn(usize) -> [u8; 4] = |n| [172, 16, (n >> 8) as u8, n as u8];
    let few = Guessing { stock: 3, source: here, is_suspect: true, hashes: 1 };
    let elsewhere = Guessing { stock: 20, source: everywhere, is_suspect: true, hashes: 4 };
    // 2 + n / 5, where n includes the five a second that are replaced. With attempts left 2 + n
    // / 20, since this test makes 20 verifications a second.
    for (guessing, average_max) in [
        (few, 4),
        (Guessing { stock: 20, ..few }, 8),
        (elsewhere, 3),
        (Guessing { stock: 100, is_suspect: false, ..elsewhere }, 9),
    ] {
        let all = (0..15).map(|seed| presentations(seed, guessing)).sum::<usize>();
        let stock = guessing.stock;
        assert!(all <= 15 * average_max, "{all} presentations of 15 with {stock} guesses");
    }
}

#[test]
fn attempts_count_when_they_are_made_not_when_they_are_verified() {
    let mut access = access(vec![user("reader", Scheme::Basic, HASH)]);
    (0..9).for_each(|_| _ = access.failed_attempts.note(0, remote()));
    assert!(matches!(check(&mut access, 0, &basic("reader", "1")), Pending(_)));
    let too_many = Decided(Err(Denial::TooManyAttempts));
    assert_eq!(check(&mut access, 0, &basic("reader", "2")), too_many);
}

#[test]
fn a_wrong_address_is_reported_only_with_the_right_secret() {
    let mut elsewhere = user("reader", Scheme::Basic, "plain");
    elsewhere.from = Networks::from_iter(["192.168.0.0/16".parse().expect("a range")]);
    let mut access = access(vec![elsewhere]);
    let (right, wrong) = (basic("reader", "plain"), basic("reader", "plan"));
    assert_eq!(check(&mut access, 0, &right), Decided(Err(Denial::Address)));
    assert_eq!(check(&mut access, 0, &wrong), Decided(Err(Denial::Wrong)));
}
