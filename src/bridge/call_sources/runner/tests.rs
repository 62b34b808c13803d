use super::*;
use crate::protocol::call_source::{CallEngine, RedisGroup};
use crate::protocol::sink::RedisUrl;

const PUBLISH: &str = r#"{"m":"mesh.publish","p":{"c":"a","d":"x"}}"#;

fn runner() -> SourceRunner {
    let url = RedisUrl::new("redis://a").expect("a URL");
    let group = RedisGroup { url, stream: "s".into(), group: "g".into() };
    let source = CallSource { name: "source".into(), engine: CallEngine::Redis(group) };
    SourceRunner::new(Arc::new(source), SourceRun(1), 7)
}

fn push(key: &str) -> String {
    format!(r#"{{"m":"queue.push","p":{{"t":"orders","d":"x","k":"{key}"}}}}"#)
}

fn message(id: u64, text: &str) -> CallMessage {
    let receipt = format!("r{id}").into();
    CallMessage { id: id.to_string().into(), receipt, text: Some(text.as_bytes().to_vec()) }
}

fn full() -> Result<(), Fault> {
    Err(Fault::new(Code::ConsumptionFailed, "the topic is full"))
}

impl SourceRunner {
    /// Takes these calls as messages 0, 1, 2, ….
    #[track_caller]
    fn give(&mut self, now_ms: u64, texts: &[&str]) {
        let Some(SourceWork::Take(most)) = self.poll_work(now_ms) else { panic!("it takes none") };
        assert!(texts.len() <= most);
        let messages = texts.iter().enumerate().map(|(id, text)| message(id as u64, text));
        self.handle_taken(now_ms, Ok(messages.collect()));
    }

    /// Begins all calls that may begin; returns the numbers of their messages.
    fn begin(&mut self, now_ms: u64) -> Vec<u64> {
        std::iter::from_fn(|| self.poll_call(now_ms)).map(|(HeldId(id), _)| id).collect()
    }

    /// Begins everything that the engine has to do now; returns when there is something to do again.
    fn next_ms(&mut self, now_ms: u64) -> u64 {
        while self.poll_work(now_ms).is_some() {}
        self.poll_timeout().expect("something is due")
    }

    /// Acknowledges what is done; returns the receipts.
    fn acknowledge(&mut self, now_ms: u64) -> Vec<String> {
        match self.poll_work(now_ms) {
            Some(SourceWork::Acknowledge(receipts)) => {
                self.handle_acknowledged(now_ms, Ok(()));
                assert!(receipts.held.is_empty());
                receipts.done.iter().map(|receipt| receipt.to_string()).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[test]
fn calls_begin_in_order_and_a_message_is_acknowledged_after_its_call() {
    let mut runner = runner();
    runner.give(0, &[PUBLISH, PUBLISH, "no call"]);
    assert_eq!(runner.begin(0), [0, 1, 2]);
    assert!(runner.acknowledge(0).is_empty(), "nothing is carried out");
    runner.handle_called(1, HeldId(1), Ok(()));
    assert_eq!(runner.acknowledge(1), ["r1"]);
    runner.handle_called(2, HeldId(0), Err(Fault::new(Code::SendFailed, "the client is gone")));
    runner.handle_called(2, HeldId(2), Err(Fault::new(Code::InvalidArgument, "not JSON")));
    assert_eq!(runner.acknowledge(2), ["r0", "r2"]);
    let figures = runner.poll_figures().expect("they have changed");
    let CallSourceReport { messages, calls, failed_calls, wrong_messages, in_flight, .. } =
        *figures;
    assert_eq!((messages, calls, failed_calls, wrong_messages, in_flight), (3, 1, 1, 1, 0));
    assert!(runner.poll_figures().is_none());
}

#[test]
fn events_of_a_key_wait_for_each_other_and_are_repeated_until_there_is_room() {
    let mut runner = runner();
    let (a, b) = (push("a"), push("b"));
    runner.give(0, &[&a, &a, &b, PUBLISH, &push("")]);
    assert_eq!(runner.begin(0), [0, 2, 3, 4]);
    runner.handle_called(1, HeldId(0), full());
    runner.handle_called(1, HeldId(2), Ok(()));
    assert!(runner.begin(1).is_empty(), "the first one of the key is repeated first");
    let due_ms = runner.next_ms(1);
    assert!((1 + 100..=1 + 200).contains(&due_ms), "{due_ms}");
    assert_eq!(runner.begin(due_ms), [0]);
    runner.handle_called(due_ms, HeldId(0), Ok(()));
    assert_eq!(runner.begin(due_ms), [1]);
    let figures = runner.poll_figures().expect("they have changed");
    assert_eq!((figures.calls, figures.repeated_calls), (2, 1));
}

#[test]
fn a_call_that_is_repeated_delays_those_behind_it() {
    let mut runner = runner();
    runner.give(0, &[PUBLISH]);
    assert_eq!(runner.begin(0), [0]);
    runner.handle_called(0, HeldId(0), Err(Fault::new(Code::TooManyRequests, "too many")));
    let Some(SourceWork::Take(_)) = runner.poll_work(0) else { panic!("it takes none") };
    runner.handle_taken(0, Ok(vec![message(7, PUBLISH)]));
    assert!(runner.begin(0).is_empty());
    let due_ms = runner.next_ms(0);
    assert!(due_ms > 0, "it does not wake for the call that waits");
    assert_eq!(runner.begin(due_ms), [0, 1]);
}

#[test]
fn a_bounded_number_of_messages_is_held() {
    let mut runner = runner();
    runner.give(0, &[PUBLISH; HELD_MAX / 2 + 1]);
    assert_eq!(runner.poll_work(0), None, "it is more than half full");
    runner.begin(0);
    assert_eq!(runner.poll_timeout(), Some(HOLD_MS), "nothing to do until the engine is told");
    runner.handle_called(0, HeldId(0), Ok(()));
    assert_eq!(runner.poll_timeout(), Some(0));
    assert_eq!(runner.acknowledge(0).len(), 1);
    assert_eq!(runner.poll_work(0), Some(SourceWork::Take(HELD_MAX / 2)));
}

#[test]
fn an_engine_that_gives_a_message_again_hears_its_newer_receipt() {
    let mut runner = runner();
    runner.give(0, &[PUBLISH]);
    runner.begin(0);
    let Some(SourceWork::Take(_)) = runner.poll_work(0) else { panic!("it takes none") };
    let again = CallMessage { receipt: "again".into(), ..message(0, PUBLISH) };
    runner.handle_taken(0, Ok(vec![again]));
    assert!(runner.begin(0).is_empty(), "it is carried out once");
    runner.handle_called(0, HeldId(0), Ok(()));
    assert_eq!(runner.acknowledge(0), ["again"]);
}

#[test]
fn an_engine_hears_from_time_to_time_what_is_held() {
    let mut runner = runner();
    runner.give(5, &[PUBLISH, PUBLISH]);
    runner.begin(5);
    let Some(SourceWork::Take(_)) = runner.poll_work(5) else { panic!("it takes none") };
    runner.handle_called(5, HeldId(1), Ok(()));
    let Some(SourceWork::Acknowledge(_)) = runner.poll_work(5) else { panic!("one is done") };
    runner.handle_acknowledged(5, Ok(()));
    assert_eq!(runner.poll_timeout(), Some(5 + HOLD_MS));
    let Some(SourceWork::Acknowledge(receipts)) = runner.poll_work(5 + HOLD_MS) else {
        panic!("one is held")
    };
    assert_eq!((receipts.done.len(), &receipts.held[..]), (0, &[Box::from("r0")][..]));
}

#[test]
fn what_has_failed_is_repeated_after_a_pause() {
    let mut runner = runner();
    runner.give(0, &[PUBLISH]);
    runner.begin(0);
    runner.handle_called(0, HeldId(0), Ok(()));
    assert!(matches!(runner.poll_work(0), Some(SourceWork::Acknowledge(_))));
    assert!(matches!(runner.poll_work(0), Some(SourceWork::Take(_))));
    runner.handle_acknowledged(0, Err("down".into()));
    runner.handle_taken(0, Err("down".into()));
    assert_eq!(runner.poll_work(0), None);
    let figures = runner.poll_figures().expect("they have changed");
    assert_eq!((figures.retries, figures.in_flight, figures.is_failing), (2, 1, true));
    assert!(runner.poll_timeout().is_some_and(|due_ms| (100..=200).contains(&due_ms)));
    let work: Vec<_> = std::iter::from_fn(|| runner.poll_work(200)).collect();
    let receipts = Receipts { done: vec!["r0".into()], held: Vec::new() };
    let acknowledge = SourceWork::Acknowledge(Arc::new(receipts));
    assert_eq!(work, [acknowledge, SourceWork::Take(HELD_MAX - 1)]);
    runner.handle_acknowledged(200, Ok(()));
    runner.handle_taken(200, Ok(Vec::new()));
    let figures = runner.poll_figures().expect("they have changed");
    assert_eq!((figures.in_flight, figures.is_failing), (0, false));
    assert!(matches!(runner.poll_work(200), Some(SourceWork::Take(HELD_MAX))), "at once");
}

#[test]
fn a_message_without_a_call_or_with_a_huge_one_is_dropped_and_counted() {
    let mut runner = runner();
    runner.poll_work(0);
    let empty = CallMessage { text: None, ..message(0, "") };
    runner.handle_taken(0, Ok(vec![empty, message(1, &" ".repeat(CALL_BYTES_MAX + 1))]));
    assert!(runner.begin(0).is_empty());
    assert_eq!(runner.acknowledge(0).len(), 2);
    assert_eq!(runner.poll_figures().expect("they have changed").wrong_messages, 2);
}
