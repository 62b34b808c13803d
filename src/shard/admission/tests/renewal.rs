//! New tokens on the open connections of devices.

use super::*;
use crate::protocol::frame::{Kind, Opcode, put_frame};

/// The time of a new world, in Unix seconds.
const START: u64 = 1_700_000_000;

/// How long a token counts after its `exp`, in milliseconds.
const LEEWAY_MS: u64 = 60_000;

const DEVICE: &str = "Sec-WebSocket-Protocol: gridcast.v1\r\n";

fn token_until(id: &str, sub: &str, seconds: u64) -> String {
    signed(id, &json!({ "exp": START + seconds, "sub": sub }))
}

impl World {
    /// A world whose issuer has the key "a".
    fn with_key() -> Self {
        let mut world = Self::new();
        world.report(keys(&["a"]), 0, Some(true));
        world
    }

    fn device(&mut self, path: &str, token: &str) -> ConnectionKey {
        let key = self.open(path, &format!("{DEVICE}Authorization: Bearer {token}\r\n"));
        if self.waiting() > 0 {
            let question = self.question();
            let admission = Admission { expires_ms: Some(50_000), ..Admission::default() };
            self.decide(&question, AdmissionVerdict::Granted(Box::new(admission)));
        }
        assert_eq!(self.status(), 101);
        key
    }

    fn call(&mut self, key: ConnectionKey, text: &str) {
        let mut frame = Vec::new();
        put_frame(&mut frame, Opcode::Data(Kind::Text), text.as_bytes());
        // The mask of a client's frame, of zeros, follows the length.
        let head = frame.len() - text.len();
        frame[1] |= 0x80;
        frame.splice(head..head, [0; 4]);
        self.shard.handle_bytes(self.now, key, &mut frame);
        // The slice of this turn may be spent on a token.
        self.pass_ms(0);
    }

    fn offer(&mut self, key: ConnectionKey, token: &str, id: u32) {
        self.call(key, &json!({ "m": "token", "p": { "token": token }, "i": id }).to_string());
    }

    /// Takes the code of the fault with which the call was answered.
    #[track_caller]
    fn refused(&mut self, id: u32) -> u64 {
        let written = self.written();
        let json = written.find('{').map(|at| &written[at..]).expect("an answer");
        let answer: Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(answer["i"], id);
        answer["E"]["c"].as_u64().expect("a fault")
    }

    #[track_caller]
    fn assert_renewed(&mut self, id: u32) {
        let answer = format!(r#"{{"E":null,"r":{{"s":true}},"i":{id}}}"#);
        let written = self.written();
        assert!(written.ends_with(&answer), "{written}");
    }

    /// Passes time until the token has expired, and not before.
    #[track_caller]
    fn expires_in(&mut self, ms: u64) {
        self.pass_ms(ms - 100);
        assert!(!self.written().contains("token expired"));
        self.pass_ms(200);
        assert!(self.written().contains("token expired"));
    }
}

#[test]
fn the_expiry_of_a_new_token_counts_whether_it_is_later_or_earlier() {
    for seconds in [100, 1] {
        let mut world = World::with_key();
        let key = world.device("/token", &token_until("a", "7", 10));
        world.offer(key, &token_until("a", "7", seconds), 1);
        world.assert_renewed(1);
        world.expires_in(seconds * 1000 + LEEWAY_MS);
    }
}

#[test]
fn a_refused_token_leaves_the_one_before_in_force() {
    let mut world = World::with_key();
    let key = world.device("/token", &token_until("a", "7", 10));
    let without_subject = signed("a", &json!({ "exp": START + 100 }));
    let forged = token_until("a", "7", 100).replace('.', ".A");
    for (id, token) in [
        token_until("a", "8", 100),
        without_subject,
        token_until("a", "7", 100).to_uppercase(),
        forged,
        signed("a", &json!({ "exp": START - 61, "sub": "7" })),
        signed("a", &json!({ "exp": START + 100, "sub": "7", "aud": "other" })),
        String::new(),
    ]
    .iter()
    .enumerate()
    {
        world.offer(key, token, id as u32);
        assert_eq!(world.refused(id as u32), 102, "{token}");
    }
    assert!(world.poll().is_none(), "no key is missing");
    world.expires_in(10_000 + LEEWAY_MS);
}

#[test]
fn a_subject_is_the_same_as_a_number_and_as_text() {
    let mut world = World::with_key();
    let key = world.device("/token", &token_until("a", "7", 10));
    world.offer(key, &signed("a", &json!({ "exp": START + 20, "sub": 7 })), 1);
    world.assert_renewed(1);
}

#[test]
fn where_there_was_no_token_none_can_be_renewed() {
    let mut world = World::with_key();
    let key = world.open("/hook", DEVICE);
    let question = world.question();
    world.decide(&question, AdmissionVerdict::Granted(Box::default()));
    assert_eq!(world.status(), 101);
    world.offer(key, &token("a"), 1);
    assert_eq!(world.refused(1), 101);
}

#[test]
fn a_new_token_does_not_prolong_what_the_admission_hook_has_granted() {
    let mut world = World::with_key();
    let key = world.device("/both", &token_until("a", "7", 10));
    world.offer(key, &token_until("a", "7", 1000), 1);
    world.assert_renewed(1);
    world.expires_in(50_000);
}

#[test]
fn while_keys_are_fetched_the_device_is_read_from_and_is_answered_in_order() {
    let mut world = World::with_key();
    let key = world.device("/token", &token_until("a", "7", 10));
    world.offer(key, &token_until("b", "7", 100), 1);
    assert!(matches!(world.asked(), ToBridge::FetchKeys { .. }));
    assert_eq!((world.written(), world.waiting()), (String::new(), 1));
    // Refused at once, so that one token waits at most.
    world.offer(key, &token_until("b", "7", 200), 2);
    let events = |world: &World| -> u64 {
        let topics = world.shard.inspect().report().topics;
        topics.iter().map(|topic| topic.messages).sum()
    };
    let before = events(&world);
    world.call(key, r#"{"m":"push","p":{"d":"x"},"i":3}"#);
    assert_eq!(events(&world), before + 1);
    assert_eq!(world.written(), "");
    world.report(keys(&["a", "b"]), 60_000, Some(true));
    let written = world.written();
    let places = [r#"{"s":true},"i":1}"#, r#"{"E":{"c":103,"#, r#"{"s":true},"i":3}"#]
        .map(|part| written.find(part).unwrap_or_else(|| panic!("{part} is not in {written}")));
    assert!(places.is_sorted(), "{written}");
    assert_eq!(world.waiting(), 0);
    world.expires_in(100_000 + LEEWAY_MS);
}

#[test]
fn keys_that_stay_unknown_or_do_not_come_fail_the_call_and_nothing_else() {
    let mut world = World::with_key();
    let key = world.device("/token", &token_until("a", "7", 100));
    world.offer(key, &token_until("b", "7", 100), 1);
    world.asked();
    world.report(keys(&["a"]), 0, Some(false));
    assert_eq!(world.refused(1), 102);
    world.offer(key, &token_until("b", "7", 100), 2);
    world.asked();
    world.pass_ms(KEYS_WAIT_MS - 50);
    assert_eq!(world.written(), "");
    world.pass_ms(100);
    assert_eq!((world.refused(2), world.waiting()), (301, 0));
    world.offer(key, &token_until("a", "7", 100), 3);
    world.assert_renewed(3);
}

#[test]
fn a_token_that_waits_is_answered_before_the_node_shuts_down_and_forgotten_with_its_device() {
    let mut world = World::with_key();
    let key = world.device("/token", &token_until("a", "7", 100));
    world.offer(key, &token_until("b", "7", 100), 1);
    world.asked();
    world.shard.handle_end(world.now, key, true);
    world.shard.handle_closed(key);
    assert_eq!(world.waiting(), 0);
    world.report(keys(&["a"]), 0, Some(false));
    assert_eq!(world.written(), "");

    let key = world.device("/token", &token_until("a", "7", 100));
    world.offer(key, &token_until("b", "7", 100), 1);
    world.asked();
    world.shard.handle_message(world.now, ToShard::Node(FromNode::Drain { over_ms: 10 }));
    assert_eq!((world.refused(1), world.waiting()), (301, 0));
}
