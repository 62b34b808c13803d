//! Clients with right credentials while others guess, perhaps from the same address. A shard is a value here: no
//! socket, and the test sets the clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gridcast::message::{ConnectionKey, FromNode, ToShard};
use gridcast::protocol::credentials::{FingerprintKey, Roles, Scheme, Secret, SecretHash, User};
use gridcast::shard::settings::Settings;
use gridcast::shard::{Action, Listener, Now, Priority, Shard, ShardRequest};

/// The hash of `open sesame`, at the lowest cost.
const HASH: &str =
    "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs";

/// The time that the verifier takes for a hash at the recommended cost.
const HASH_MS: u64 = 30;

/// The length of a step of the clock: 200 guesses a second.
const STEP_MS: u64 = 5;

fn user(name: &str, scheme: Scheme, secret: Secret) -> User {
    let name = name.into();
    User { name, scheme, secret, roles: Roles::ALL, from: Default::default(), requests_per_s: 0 }
}

fn settings() -> Settings {
    let hashed = || Secret::Hashed(SecretHash::parse(HASH).expect("a hash"));
    let users = [
        user("plain", Scheme::Bearer, Secret::Plain("plain-token".into())),
        user("app", Scheme::Basic, hashed()),
        user("ops", Scheme::Basic, hashed()),
    ];
    let mut settings = shard_value::settings();
    settings.api.users = users.into_iter().collect();
    settings
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// A shard, and the verifier beside it.
struct Node {
    shard: Shard,
    now_ms: u64,
    // The verification in progress, and when it is done.
    result: Option<(FromNode, u64)>,
    verified: usize,
}

impl Node {
    fn new() -> Self {
        Self::with_key(0)
    }

    /// Creates a node with this fingerprint key, which decides the tie-breaks.
    fn with_key(key: u8) -> Self {
        let mut settings = settings();
        settings.api.fingerprint_key = FingerprintKey::new([key; 32]);
        let shard = shard_value::shard(&settings, Self::at(0));
        Self { shard, now_ms: 0, result: None, verified: 0 }
    }

    fn at(ms: u64) -> Now {
        Now { ms, us: ms * 1000, unix_ms: 1_790_000_000_000 + ms }
    }

    fn now(&self) -> Now {
        Self::at(self.now_ms)
    }

    fn step(&mut self) {
        self.now_ms += STEP_MS;
        let now = self.now();
        if let Some((_, done_ms)) = self.result
            && done_ms <= self.now_ms
            && let Some((result, _)) = self.result.take()
        {
            self.shard.handle_message(now, ToShard::Node(result));
        }
        self.shard.handle_turn(now);
        if self.result.is_none()
            && let Some(ShardRequest::Verify(verification)) = self.shard.poll_request()
        {
            self.verified += 1;
            self.result = Some((verification.run(), self.now_ms + HASH_MS));
        }
    }

    fn connect(&mut self, host: [u8; 4]) -> ConnectionKey {
        self.shard.handle_accepted(self.now(), Listener::Api, (host, 5000).into()).expect("up")
    }

    fn request(&mut self, key: ConnectionKey, authorization: &str, times: usize) {
        let request = format!(
            "GET /version HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n"
        );
        self.shard.handle_bytes(self.now(), key, &mut request.repeat(times).into_bytes());
    }

    /// Writes all output; returns what was written to `of`.
    fn written(&mut self, of: ConnectionKey) -> String {
        let mut all = Vec::new();
        let now = self.now();
        while let Some((key, batch)) = self.shard.poll_write(Priority::Urgent) {
            let bytes: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes().to_vec()).collect();
            self.shard.handle_written(now, key, bytes.len(), true);
            if key == of {
                all.extend(bytes);
            }
        }
        while let Some(action) = self.shard.poll_action() {
            match action {
                Action::Shutdown(key) => self.shard.handle_end(now, key, false),
                Action::Close(key) => self.shard.handle_closed(key),
                _ => {}
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Sends one request on a new connection; returns the status. `each_step` is what others do in each step.
    fn ask(
        &mut self,
        host: [u8; 4],
        authorization: &str,
        each_step: &mut impl FnMut(&mut Self),
    ) -> u16 {
        let key = self.connect(host);
        self.request(key, authorization, 1);
        for _ in 0..1000 {
            let answer = self.written(key);
            if let Some(status) = answer.strip_prefix("HTTP/1.1 ") {
                return status[..3].parse().expect("a status");
            }
            each_step(self);
            self.step();
        }
        panic!("no answer in 5 s");
    }

    /// Returns how many requests a client needs that retries after each `Retry-After`.
    #[track_caller]
    fn asks_until_let_in(
        &mut self,
        host: [u8; 4],
        authorization: &str,
        each_step: &mut impl FnMut(&mut Self),
    ) -> usize {
        for asks in 1..100 {
            match self.ask(host, authorization, each_step) {
                200 => return asks,
                429 | 503 => {}
                status => panic!("right credentials got {status}"),
            }
            // Retry-After: 1
            for _ in 0..1000 / STEP_MS {
                each_step(self);
                self.step();
            }
        }
        panic!("right credentials are never let in");
    }
}

/// An attacker that presents a new wrong password for `app` in each step, `times` times each.
fn guesser(host: impl Fn(u64) -> [u8; 4], times: u64) -> impl FnMut(&mut Node) {
    let mut guesses = 0;
    move |node| {
        let key = node.connect(host(guesses));
        node.request(key, &basic("app", &(guesses / times).to_string()), 1);
        guesses += 1;
    }
}

const COMPANY: [u8; 4] = [10, 0, 0, 1];
const STRANGER: [u8; 4] = [192, 0, 2, 1];

/// Lets others guess for five seconds.
fn settle_in(node: &mut Node, each_step: &mut impl FnMut(&mut Node)) {
    for _ in 0..5000 / STEP_MS {
        each_step(node);
        node.step();
    }
    node.written(ConnectionKey { index: u32::MAX, generation: 0 });
}

#[test]
fn right_credentials_are_accepted_while_others_guess() {
    for name in ["app", "ops"] {
        let right = basic(name, "open sesame");
        let from_one = || guesser(|_| STRANGER, 1);
        let mut node = Node::new();
        let mut flood = from_one();
        settle_in(&mut node, &mut flood);
        let asks = node.asks_until_let_in(COMPANY, &right, &mut flood);
        assert_eq!(asks, 1, "{name}: guesses come from another address");

        let mut node = Node::new();
        let mut flood = guesser(|_| COMPANY, 1);
        settle_in(&mut node, &mut flood);
        let asks = node.asks_until_let_in(COMPANY, &right, &mut flood);
        assert!(asks <= 2, "{name}: {asks} asks where guesses come from the same address");
        assert_eq!(node.ask(COMPANY, &right, &mut flood), 200, "it is known from now on");

        let mut node = Node::new();
        let mut flood = guesser(|guess| [172, 16, (guess >> 8) as u8, guess as u8], 1);
        settle_in(&mut node, &mut flood);
        let asks = node.asks_until_let_in(COMPANY, &right, &mut flood);
        assert!(asks <= 2, "{name}: {asks} asks where guesses come from everywhere");
    }
}

#[test]
fn guesses_that_are_presented_twice_do_not_lock_out_right_credentials() {
    for times in [2, 3] {
        let mut node = Node::new();
        let mut flood = guesser(|_| COMPANY, times);
        settle_in(&mut node, &mut flood);
        let asks = node.asks_until_let_in(COMPANY, &basic("app", "open sesame"), &mut flood);
        assert_eq!(asks, 2);
    }
}

/// An attacker with 40 wrong passwords for `app`, which makes 600 requests a second and replaces eight passwords a
/// second: more than are verified.
fn adaptive_guesser(host: [u8; 4]) -> impl FnMut(&mut Node) {
    let mut steps = 0;
    move |node| {
        for presentation in 0..3 {
            let guess = steps / 25 + (steps * 3 + presentation) % 40;
            let key = node.connect(host);
            node.request(key, &basic("app", &guess.to_string()), 1);
        }
        steps += 1;
    }
}

#[test]
fn repeated_prepared_guesses_do_not_lock_out_right_credentials() {
    let asks = |name: &str, key: u8| {
        let mut node = Node::with_key(key);
        let mut flood = adaptive_guesser(COMPANY);
        (0..3).for_each(|_| settle_in(&mut node, &mut flood));
        node.asks_until_let_in(COMPANY, &basic(name, "open sesame"), &mut flood)
    };
    let same_user: Vec<_> = (0..8).map(|key| asks("app", key)).collect();
    // About 28 guesses at a time are not verified yet: 2 + 28 / 5.
    assert!(same_user.iter().sum::<usize>() <= 10 * same_user.len(), "{same_user:?}");
    assert_eq!(asks("ops", 0), 2, "guesses are at another user");

    let mut node = Node::new();
    let mut flood = adaptive_guesser(STRANGER);
    settle_in(&mut node, &mut flood);
    let asks = node.asks_until_let_in(COMPANY, &basic("app", "open sesame"), &mut flood);
    assert_eq!(asks, 1, "guesses come from another address");
}

#[test]
fn deferred_credentials_are_remembered_through_ten_thousand_guesses_a_second() {
    let mut node = Node::new();
    let mut guess = guesser(|_| COMPANY, 1);
    let mut flood = |node: &mut Node| {
        (0..50).for_each(|_| guess(node));
        node.written(ConnectionKey { index: u32::MAX, generation: 0 });
    };
    for _ in 0..1000 / STEP_MS {
        flood(&mut node);
        node.step();
    }
    let key = node.connect(COMPANY);
    node.request(key, &basic("app", "open sesame"), 1);
    assert!(node.written(key).starts_with("HTTP/1.1 429"));
    for _ in 0..1000 / STEP_MS {
        flood(&mut node);
        node.step();
    }
    assert_eq!(node.ask(COMPANY, &basic("app", "open sesame"), &mut |_| ()), 200);
}

#[test]
fn guesses_from_an_address_without_attempts_left_cost_few_verifications() {
    let mut node = Node::new();
    let mut flood = guesser(|_| STRANGER, 1);
    settle_in(&mut node, &mut flood);
    assert!(node.verified <= 10, "{} hashes for 1,000 guesses", node.verified);
    // Each guess is presented twice. At most five guesses a second are verified.
    let mut node = Node::new();
    let mut flood = guesser(|_| STRANGER, 2);
    settle_in(&mut node, &mut flood);
    assert!(node.verified <= 10 + 25, "{} hashes for 500 guesses", node.verified);
}

#[test]
fn pipelined_guesses_get_ten_attempts_and_their_connection_is_closed() {
    let mut node = Node::new();
    let key = node.connect(STRANGER);
    for guess in 0..100 {
        node.request(key, &format!("Bearer guess{guess}"), 1);
    }
    // Each denied request ends the connection's slice of the turn.
    let mut answers = String::new();
    for _ in 0..50 {
        answers += &node.written(key);
        node.step();
    }
    assert_eq!(answers.matches("HTTP/1.1 401").count(), 10, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 429").count(), 1, "{answers}");
    assert!(answers.contains("Retry-After: 1\r\n") && answers.contains("Connection: close\r\n"));
    assert_eq!(node.shard.inspect().connections(), 0);
}

#[test]
fn pipelined_guesses_at_a_hashed_secret_get_ten_attempts() {
    let mut node = Node::new();
    let keys: Vec<_> = (0..50).map(|_| node.connect(STRANGER)).collect();
    for (guess, &key) in keys.iter().enumerate() {
        node.request(key, &basic("app", &guess.to_string()), 1);
    }
    for _ in 0..2000 / STEP_MS {
        node.step();
    }
    assert!(node.verified <= 10, "{} of 50 were judged", node.verified);
}

#[test]
fn one_wrong_secret_that_is_repeated_uses_up_one_attempt() {
    let mut node = Node::new();
    for _ in 0..100 {
        assert_eq!(node.ask(COMPANY, "Bearer old-token", &mut |_| ()), 401);
        assert_eq!(node.ask(COMPANY, &basic("app", "old"), &mut |_| ()), 401);
    }
    assert_eq!(node.verified, 1, "the hash is taken once");
}

#[test]
fn right_plain_credentials_are_always_accepted() {
    let mut node = Node::new();
    for guess in 0..100 {
        let key = node.connect(COMPANY);
        node.request(key, &format!("Bearer guess{guess}"), 1);
        assert_eq!(node.ask(COMPANY, "Bearer plain-token", &mut |_| ()), 200);
    }
    assert_eq!(node.shard.inspect().counters().limits.wrong_credentials, 90);
}
