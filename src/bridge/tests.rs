use std::sync::Weak;

use super::*;
use crate::message::{AdmissionVerdict, KeysReport};
use hooks::{IN_FLIGHT_MAX, WAITING_MAX};
use keys::{PAUSE_MS_MAX, UNKNOWN_KEY_PAUSE_MS};

/// The key of RFC 8037, section A.2.
const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

const SHARDS: [ShardId; 2] = [ShardId(0), ShardId(1)];

fn service() -> HttpService {
    HttpService::new("https://example.org/", 3000).expect("a URL")
}

fn source() -> Arc<KeySource> {
    Arc::new(KeySource { service: service(), algorithm: None, refresh_s: 300 })
}

/// The question of a shard that has these keys.
fn question(known: &Option<Arc<KeySet>>) -> ToBridge {
    ToBridge::FetchKeys { source: source(), known: known.clone() }
}

fn bridge() -> Bridge {
    Bridge::new(BridgeSettings { key_sources: vec![source()], ..Default::default() }, 7)
}

fn ok(status: u16, body: &str) -> Result<ServiceAnswer, ServiceFailure> {
    Ok(ServiceAnswer { status, retry_after_s: None, body: body.into() })
}

fn down() -> Result<ServiceAnswer, ServiceFailure> {
    Err(ServiceFailure::Unanswered("connection refused".into()))
}

/// Begins the fetch that is due at this time.
fn fetch(bridge: &mut Bridge, now_ms: u64) -> Purpose {
    bridge.handle_timeout(now_ms);
    let request = bridge.poll_request().expect("a fetch is due");
    assert!(request.exchange.body.is_none() && bridge.poll_request().is_none());
    request.purpose
}

/// Takes the one report that was made.
fn report(bridge: &mut Bridge) -> (Receivers, KeysReport) {
    let (to, message) = bridge.poll_message().expect("a report");
    let FromBridge::Keys(report) = message else { panic!("{message:?}") };
    assert!(bridge.poll_message().is_none());
    (to, report)
}

#[test]
fn keys_are_fetched_at_the_start_and_again_and_all_shards_hear_of_them() {
    let mut bridge = bridge();
    assert_eq!(bridge.poll_timeout(), Some(0));
    let purpose = fetch(&mut bridge, 0);
    assert_eq!(bridge.poll_timeout(), None, "one fetch at a time");
    bridge.handle_timeout(10_000);
    assert!(bridge.poll_request().is_none());
    bridge.handle_answer(1000, purpose, ok(200, KEYS));
    let (to, KeysReport { keys, quiet_ms, fetched, .. }) = report(&mut bridge);
    assert_eq!((to, fetched, quiet_ms), (Receivers::All, Some(true), 0));
    assert_eq!(keys.expect("keys").len(), 1);
    let next_ms = bridge.poll_timeout().expect("it is fetched again");
    assert!((1000 + 225_000..=1000 + 300_000).contains(&next_ms), "{next_ms}");
    bridge.handle_timeout(next_ms - 1);
    assert!(bridge.poll_request().is_none());
    fetch(&mut bridge, next_ms);
}

#[test]
fn the_pauses_between_failed_fetches_grow_and_the_last_keys_stay() {
    let mut bridge = bridge();
    let purpose = fetch(&mut bridge, 0);
    bridge.handle_answer(0, purpose, ok(200, KEYS));
    report(&mut bridge);
    let mut now_ms = bridge.poll_timeout().expect("it is fetched again");
    let failures = [
        down(),
        ok(500, KEYS),
        ok(302, ""),
        ok(204, ""),
        ok(200, "<html>"),
        ok(200, r#"{"keys":[]}"#),
        ok(200, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#),
        down(),
        down(),
    ];
    let mut longest_ms = 1000;
    for failure in failures {
        let purpose = fetch(&mut bridge, now_ms);
        bridge.handle_answer(now_ms, purpose, failure);
        let (to, KeysReport { keys, fetched, .. }) = report(&mut bridge);
        assert_eq!((to, fetched, keys.is_some()), (Receivers::All, Some(false), true));
        let pause_ms = bridge.poll_timeout().expect("it is fetched again") - now_ms;
        assert!((longest_ms * 3 / 4..=longest_ms).contains(&pause_ms), "{pause_ms} {longest_ms}");
        longest_ms = (longest_ms * 2).min(PAUSE_MS_MAX);
        now_ms += pause_ms;
    }
    let purpose = fetch(&mut bridge, now_ms);
    bridge.handle_answer(now_ms, purpose, ok(200, KEYS));
    assert_eq!(report(&mut bridge).1.fetched, Some(true));
    assert!(bridge.poll_timeout().expect("later") >= now_ms + 225_000);
}

#[test]
fn an_unknown_key_causes_one_fetch_a_minute_for_all_shards() {
    let mut bridge = bridge();
    let purpose = fetch(&mut bridge, 0);
    bridge.handle_answer(0, purpose, ok(200, KEYS));
    let known = report(&mut bridge).1.keys;
    bridge.handle_message(5000, SHARDS[0], question(&known));
    let purpose = bridge.poll_request().expect("a fetch").purpose;
    bridge.handle_message(5001, SHARDS[1], question(&known));
    assert!(bridge.poll_request().is_none() && bridge.poll_message().is_none());
    bridge.handle_answer(6000, purpose, down());
    let (to, KeysReport { quiet_ms, .. }) = report(&mut bridge);
    assert_eq!((to, quiet_ms), (Receivers::All, UNKNOWN_KEY_PAUSE_MS - 1000));
    bridge.handle_message(7000, SHARDS[1], question(&known));
    assert!(bridge.poll_request().is_none());
    let (to, KeysReport { keys, quiet_ms, fetched, .. }) = report(&mut bridge);
    assert_eq!((to, fetched), (Receivers::One(SHARDS[1]), None));
    assert_eq!((keys.is_some(), quiet_ms), (true, UNKNOWN_KEY_PAUSE_MS - 2000));
    bridge.handle_message(5000 + UNKNOWN_KEY_PAUSE_MS, SHARDS[0], question(&known));
    assert!(bridge.poll_request().is_some());
}

#[test]
fn a_shard_that_asks_while_there_are_no_keys_hears_when_they_are_tried_again() {
    let mut bridge = bridge();
    let purpose = fetch(&mut bridge, 0);
    bridge.handle_message(1, SHARDS[0], question(&None));
    assert!(bridge.poll_message().is_none(), "the fetch in progress is the answer");
    bridge.handle_answer(10, purpose, down());
    let (_, KeysReport { keys, quiet_ms, .. }) = report(&mut bridge);
    let next_ms = bridge.poll_timeout().expect("it is tried again");
    assert_eq!((keys, 10 + quiet_ms), (None, next_ms));
    bridge.handle_message(20, SHARDS[1], question(&None));
    let (to, KeysReport { quiet_ms, fetched, .. }) = report(&mut bridge);
    assert_eq!((to, fetched, 20 + quiet_ms), (Receivers::One(SHARDS[1]), None, next_ms));
    bridge.handle_message(next_ms, SHARDS[1], question(&None));
    assert!(bridge.poll_request().is_some());
}

#[test]
fn a_shard_that_has_not_heard_of_the_last_keys_gets_them_without_another_fetch() {
    let mut bridge = bridge();
    let purpose = fetch(&mut bridge, 0);
    bridge.handle_answer(0, purpose, ok(200, KEYS));
    let first = report(&mut bridge).1.keys;
    let refetch_ms = bridge.poll_timeout().expect("it is fetched again");
    let purpose = fetch(&mut bridge, refetch_ms);
    bridge.handle_answer(refetch_ms, purpose, ok(200, KEYS));
    let second = report(&mut bridge).1.keys;
    for stale in [&None, &first] {
        bridge.handle_message(refetch_ms, SHARDS[1], question(stale));
        assert!(bridge.poll_request().is_none());
        let (to, KeysReport { keys, quiet_ms, .. }) = report(&mut bridge);
        assert_eq!((to, quiet_ms), (Receivers::One(SHARDS[1]), 0));
        assert!(Arc::ptr_eq(&keys.expect("keys"), second.as_ref().expect("keys")));
    }
    bridge.handle_message(refetch_ms, SHARDS[1], question(&second));
    assert!(bridge.poll_request().is_some());
}

fn hook() -> Arc<AdmissionHook> {
    Arc::new(AdmissionHook { service: service(), secret: None })
}

fn key(index: u32) -> ConnectionKey {
    ConnectionKey { index, generation: 0 }
}

/// Asks about the device with this number.
fn ask(bridge: &mut Bridge, now_ms: u64, number: u32, device: Weak<()>) {
    let (connection, ticket) = (key(number), Ticket(number.into()));
    let body = number.to_string().into_bytes();
    let request = AdmissionRequest { hook: hook(), connection, ticket, body, device };
    bridge.handle_message(now_ms, SHARDS[0], ToBridge::Admit(request));
}

/// Takes the requests, by the numbers of their devices.
fn requests(bridge: &mut Bridge) -> Vec<(u32, Purpose)> {
    let requests = std::iter::from_fn(|| bridge.poll_request());
    let number = |request: ServiceRequest| {
        let body = String::from_utf8(request.exchange.body.expect("a question")).expect("digits");
        (body.parse().expect("a number"), request.purpose)
    };
    requests.map(number).collect()
}

fn verdict(bridge: &mut Bridge) -> (u32, AdmissionVerdict) {
    match bridge.poll_message().expect("a verdict") {
        (
            Receivers::One(ShardId(0)),
            FromBridge::Admission { connection, ticket: Ticket(ticket), verdict },
        ) if ticket == u64::from(connection.index) => (connection.index, verdict),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hook_has_a_bounded_number_of_questions_at_a_time_and_the_others_follow_in_order() {
    let mut bridge = bridge();
    let device = Arc::new(());
    let max = IN_FLIGHT_MAX as u32;
    for number in 0..max + 2 {
        ask(&mut bridge, 0, number, Arc::downgrade(&device));
    }
    let mut asked = requests(&mut bridge);
    assert_eq!(asked.iter().map(|(number, _)| *number).collect::<Vec<_>>(), Vec::from_iter(0..max));
    for number in [0, 1] {
        let (_, purpose) = asked.remove(0);
        bridge.handle_answer(10, purpose, ok(200, "{}"));
        assert_eq!(verdict(&mut bridge), (number, AdmissionVerdict::Granted(Box::default())));
        let next = requests(&mut bridge);
        assert_eq!(next.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [max + number]);
        asked.extend(next);
    }
    for (_, purpose) in asked {
        bridge.handle_answer(20, purpose, down());
        assert_eq!(verdict(&mut bridge).1, AdmissionVerdict::Failed);
    }
    assert!(requests(&mut bridge).is_empty());
}

#[test]
fn a_question_whose_device_has_gone_or_waited_too_long_is_not_asked() {
    let mut bridge = bridge();
    let (first, second) = (Arc::new(()), Arc::new(()));
    let max = IN_FLIGHT_MAX as u32;
    for number in 0..max {
        ask(&mut bridge, 0, number, Arc::downgrade(&first));
    }
    let mut asked = requests(&mut bridge);
    ask(&mut bridge, 0, max, Arc::downgrade(&second));
    ask(&mut bridge, 0, max + 1, Arc::downgrade(&first));
    ask(&mut bridge, 10, max + 2, Arc::downgrade(&first));
    ask(&mut bridge, 2000, max + 3, Arc::downgrade(&first));
    drop(second);
    bridge.handle_answer(100, asked.remove(0).1, ok(401, ""));
    assert_eq!(verdict(&mut bridge).1, AdmissionVerdict::Refused(401));
    assert_eq!(requests(&mut bridge)[0].0, max + 1, "the second device has gone");
    bridge.handle_answer(3010, asked.remove(0).1, down());
    assert_eq!(requests(&mut bridge)[0].0, max + 3, "another one has waited for 3 seconds");
}

#[test]
fn a_question_that_finds_no_room_is_answered_at_once_unless_devices_have_gone() {
    let mut bridge = bridge();
    let (first, second) = (Arc::new(()), Arc::new(()));
    let max = (IN_FLIGHT_MAX + WAITING_MAX) as u32;
    for number in 0..max {
        let device = if number % 2 == 0 { &first } else { &second };
        ask(&mut bridge, 0, number, Arc::downgrade(device));
    }
    assert_eq!(requests(&mut bridge).len(), IN_FLIGHT_MAX);
    ask(&mut bridge, 0, max, Arc::downgrade(&first));
    assert_eq!(verdict(&mut bridge), (max, AdmissionVerdict::Full));
    drop(second);
    ask(&mut bridge, 0, max + 1, Arc::downgrade(&first));
    assert!(bridge.poll_message().is_none());
}

#[test]
fn only_a_proper_answer_lets_a_device_in_or_keeps_it_out() {
    let granted = AdmissionVerdict::Granted(Box::default());
    for (answer, expected, is_failure) in [
        (ok(200, "{}"), granted, false),
        (ok(401, "<html>"), AdmissionVerdict::Refused(401), false),
        (ok(403, ""), AdmissionVerdict::Refused(403), false),
        (ok(200, ""), AdmissionVerdict::Failed, true),
        (ok(200, "[]"), AdmissionVerdict::Failed, true),
        (ok(200, r#"{"channels":1}"#), AdmissionVerdict::Failed, true),
        (ok(201, "{}"), AdmissionVerdict::Failed, true),
        (ok(204, ""), AdmissionVerdict::Failed, true),
        (ok(302, "{}"), AdmissionVerdict::Failed, true),
        (ok(404, "{}"), AdmissionVerdict::Failed, true),
        (ok(500, "{}"), AdmissionVerdict::Failed, true),
        (down(), AdmissionVerdict::Failed, true),
    ] {
        let text = format!("{answer:?}");
        let (verdict, result) = hooks::judge(answer);
        assert_eq!((verdict, result.is_err()), (expected, is_failure), "{text}");
    }
}
