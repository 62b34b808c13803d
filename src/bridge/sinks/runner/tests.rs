use super::*;
use crate::bridge::pauses::{PAUSE_MS_MAX, PAUSE_MS_MIN};
use crate::protocol::frame::Frame;
use crate::protocol::service::HttpService;
use crate::protocol::sink::{EngineAddress, Nats, Webhook};

fn runner(batch: usize, in_flight: usize) -> Runner {
    let service = HttpService::new("http://127.0.0.1:1/", 1000).expect("a URL");
    let engine = EngineAddress::Webhook(Webhook { service, secret: None, batch, in_flight });
    let sink = Sink { name: "s".into(), topic: "t".into(), engine };
    Runner::new(Arc::new(sink), SinkRun(1), 7)
}

fn nats_runner() -> Runner {
    let nats = Nats { servers: ["nats://127.0.0.1:1".to_owned()].into(), subject: "t".into() };
    let sink = Sink { name: "s".into(), topic: "t".into(), engine: EngineAddress::Nats(nats) };
    Runner::new(Arc::new(sink), SinkRun(1), 7)
}

fn event(client: u64, number: u64) -> SinkEvent {
    SinkEvent {
        number: MessageNumber(number),
        client: ClientId::from_value(client),
        arrived_unix_ms: 0,
        frame: Frame::from_encoded(b"\x81\x01x"),
    }
}

fn push(runner: &mut Runner, events: &[(u64, u64)]) {
    let events = events.iter().map(|&(client, number)| event(client, number)).collect();
    runner.handle_events(&"1.2.t.".into(), events);
}

fn numbers(batch: &EventBatch) -> Vec<u64> {
    batch.events.iter().map(|event| event.number.0).collect()
}

/// Takes the batches that are due.
fn batches(runner: &mut Runner, now_ms: u64) -> Vec<(BatchId, Vec<u64>)> {
    let polled = std::iter::from_fn(|| runner.poll_batch(now_ms));
    polled.map(|(id, batch)| (id, numbers(&batch))).collect()
}

fn failed(pause_ms: Option<u64>) -> Result<Acknowledgement, EngineFailure> {
    Err(EngineFailure { why: "down".into(), pause_ms })
}

fn stored() -> Result<Acknowledgement, EngineFailure> {
    Ok(Acknowledgement::default())
}

fn settled(runner: &mut Runner) -> Vec<u64> {
    let mut settled = Vec::new();
    while let Some(message) = runner.poll_message() {
        if let FromSink::Report { settled: numbers, .. } = message {
            settled.extend(numbers.iter().map(|number| number.0));
        }
    }
    settled
}

#[test]
fn a_sink_begins_before_it_reports() {
    let mut runner = runner(1, 1);
    assert!(matches!(runner.poll_message(), Some(FromSink::Begin(SinkRun(1)))));
    assert!(runner.poll_message().is_none());
}

#[test]
fn no_two_batches_in_flight_have_events_of_the_same_client() {
    let mut runner = runner(2, 4);
    push(&mut runner, &[(1, 0), (1, 1), (1, 2), (2, 3), (3, 4)]);
    let first = batches(&mut runner, 0);
    let taken: Vec<_> = first.iter().map(|(_, numbers)| numbers.clone()).collect();
    assert_eq!(taken, [vec![0, 1], vec![3, 4]], "event 2 waits for 0 and 1");
    runner.handle_outcome(0, first[1].0, stored());
    assert_eq!(batches(&mut runner, 0), []);
    runner.handle_outcome(0, first[0].0, stored());
    assert_eq!(batches(&mut runner, 0)[0].1, [2]);
    assert_eq!(settled(&mut runner), [3, 4, 0, 1]);
}

#[test]
fn a_failed_batch_is_sent_again_whole_and_later_events_of_its_clients_wait() {
    let mut runner = runner(2, 4);
    push(&mut runner, &[(1, 0), (2, 1)]);
    let (id, _) = batches(&mut runner, 0)[0];
    push(&mut runner, &[(1, 2), (3, 3)]);
    runner.handle_outcome(0, id, failed(None));
    assert_eq!(batches(&mut runner, 0)[0].1, [3], "another client does not wait");
    let due_ms = runner.poll_timeout().expect("the batch is due again");
    assert!((PAUSE_MS_MIN / 2..=PAUSE_MS_MIN).contains(&due_ms), "{due_ms}");
    assert_eq!(batches(&mut runner, due_ms - 1), []);
    assert_eq!(batches(&mut runner, due_ms), [(id, vec![0, 1])]);
    assert_eq!(settled(&mut runner), [0; 0]);
    runner.handle_outcome(due_ms, id, stored());
    assert_eq!(settled(&mut runner), [0, 1]);
    assert_eq!(batches(&mut runner, due_ms)[0].1, [2]);
}

#[test]
fn pauses_grow_to_a_bound_and_an_engine_may_ask_for_a_longer_one() {
    let mut runner = runner(1, 1);
    push(&mut runner, &[(1, 0)]);
    let (id, _) = batches(&mut runner, 0)[0];
    let mut pauses = Vec::new();
    let mut now_ms = 0;
    for _ in 0..40 {
        runner.handle_outcome(now_ms, id, failed(None));
        let due_ms = runner.poll_timeout().expect("the batch is due again");
        pauses.push(due_ms - now_ms);
        now_ms = due_ms;
        assert_eq!(batches(&mut runner, now_ms).len(), 1);
    }
    assert!(pauses[0] <= PAUSE_MS_MIN && pauses[3] >= PAUSE_MS_MIN * 4, "{pauses:?}");
    assert!(pauses[10..].iter().all(|ms| (PAUSE_MS_MAX / 2..=PAUSE_MS_MAX).contains(ms)));
    assert!(pauses[10..].windows(2).any(|two| two[0] != two[1]), "jitter");
    for (asked_ms, expected_ms) in [(20_000, 20_000), (u64::MAX, ASKED_PAUSE_MS_MAX)] {
        runner.handle_outcome(now_ms, id, failed(Some(asked_ms)));
        let due_ms = runner.poll_timeout().expect("the batch is due again");
        assert_eq!(due_ms - now_ms, expected_ms);
        now_ms = due_ms;
        assert_eq!(batches(&mut runner, now_ms).len(), 1);
    }
    assert_eq!(runner.figures.retries, 42);
}

#[test]
fn batches_in_flight_and_events_of_a_batch_are_bounded() {
    let mut runner = runner(3, 2);
    let events: Vec<_> = (0..100).map(|number| (number, number)).collect();
    push(&mut runner, &events);
    let taken = batches(&mut runner, 0);
    assert_eq!(taken.iter().map(|(_, numbers)| numbers.len()).collect::<Vec<_>>(), [3, 3]);
    assert_eq!(runner.figures.in_flight, 6);
}

#[test]
fn the_figures_name_the_last_failure_until_a_batch_is_acknowledged() {
    let mut runner = runner(1, 1);
    push(&mut runner, &[(1, 0)]);
    let (id, _) = batches(&mut runner, 0)[0];
    runner.handle_outcome(0, id, failed(None));
    assert_eq!(runner.figures.failure.as_deref(), Some("down"));
    let due_ms = runner.poll_timeout().expect("the batch is due again");
    batches(&mut runner, due_ms);
    runner.handle_outcome(due_ms, id, stored());
    let expected = SinkFigures { delivered: 1, batches: 1, retries: 1, ..Default::default() };
    assert_eq!(runner.figures, expected);
    assert!(runner.lanes.is_empty() && runner.ready.is_empty());
}

#[test]
fn the_calls_of_an_answer_are_carried_out_one_after_another_before_the_batch_ends() {
    let mut runner = runner(1, 2);
    push(&mut runner, &[(1, 0), (1, 1), (2, 2)]);
    let taken = batches(&mut runner, 0);
    let calls = |texts: &[&str]| {
        let calls = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        Ok(Acknowledgement { calls, refused: None })
    };
    runner.handle_outcome(0, taken[0].0, calls(&["a", "b"]));
    runner.handle_outcome(0, taken[1].0, calls(&["c"]));
    let polled = |runner: &mut Runner| {
        let mut polled: Vec<_> = std::iter::from_fn(|| runner.poll_call()).collect();
        polled.sort_by(|one, other| one.1.cmp(&other.1));
        polled
    };
    let expected = [(taken[0].0, b"a".to_vec()), (taken[1].0, b"c".to_vec())];
    assert_eq!(polled(&mut runner), expected, "one of each batch at a time");
    runner.handle_called(taken[1].0, Ok(()));
    assert_eq!(settled(&mut runner), [2]);
    runner.handle_called(taken[0].0, Err(Fault::new(Code::SendFailed, "no such client")));
    assert_eq!(polled(&mut runner), [(taken[0].0, b"b".to_vec())], "a failed call ends nothing");
    assert_eq!(settled(&mut runner), [0; 0]);
    assert_eq!(batches(&mut runner, 0), [], "event 1 waits for the calls after event 0");
    runner.handle_called(taken[0].0, Ok(()));
    assert_eq!(settled(&mut runner), [0]);
    assert_eq!(batches(&mut runner, 0)[0].1, [1]);
    assert_eq!((runner.figures.calls, runner.figures.failed_calls), (3, 1));
}

#[test]
fn random_outcomes_never_break_the_order_of_a_client() {
    for seed in 0..200 {
        let mut runner = runner(3, 3);
        let mut random: u64 = seed * 2 + 1;
        let mut next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            random >> 33
        };
        let mut taken: HashMap<u64, Vec<u64>> = HashMap::new();
        let mut in_flight: Vec<(BatchId, Arc<EventBatch>)> = Vec::new();
        let (mut pushed, mut now_ms) = (0, 0);
        while taken.values().map(Vec::len).sum::<usize>() < 200 {
            if pushed < 200 {
                push(&mut runner, &[(next() % 5, pushed)]);
                pushed += 1;
            }
            now_ms += next() % 5000;
            in_flight.extend(std::iter::from_fn(|| runner.poll_batch(now_ms)));
            if in_flight.is_empty() {
                continue;
            }
            let (id, batch) = in_flight.swap_remove(next() as usize % in_flight.len());
            let is_stored = next() % 3 > 0;
            if is_stored {
                for event in &batch.events {
                    taken.entry(event.client.value()).or_default().push(event.number.0);
                }
            }
            runner.handle_outcome(now_ms, id, if is_stored { stored() } else { failed(None) });
        }
        assert_eq!((settled(&mut runner).len(), runner.lanes.len()), (200, 0), "seed {seed}");
        assert!(taken.values().all(|numbers| numbers.is_sorted()), "seed {seed}: {taken:?}");
    }
}

#[test]
fn batches_for_nats_are_spread_over_all_clients_with_events() {
    let mut runner = nats_runner();
    assert_eq!(runner.batches_max, 4);
    // Six clients with three events each, as in a backlog.
    let events: Vec<_> = (0..18).map(|number| (number / 3, number)).collect();
    push(&mut runner, &events);
    let taken = batches(&mut runner, 0);
    let numbers: Vec<_> = taken.iter().map(|(_, numbers)| &numbers[..]).collect();
    let expected = [&[0, 3, 1, 4, 2, 5][..], &[6, 9, 7, 10, 8, 11], &[12, 13, 14], &[15, 16, 17]];
    assert_eq!(numbers, expected);
    // What does not fit stays in its lane, in order.
    let many: Vec<_> = (0..1000).map(|number| (20 + number / 500, 18 + number)).collect();
    push(&mut runner, &many);
    for (id, _) in &taken {
        runner.handle_outcome(0, *id, stored());
    }
    let next = batches(&mut runner, 0);
    let lengths: Vec<_> = next.iter().map(|(_, numbers)| numbers.len()).collect();
    assert_eq!(lengths, [500, 500]);
    assert!(next.iter().all(|(_, numbers)| numbers.is_sorted()));
}

#[test]
fn a_large_backlog_for_nats_comes_in_full_batches_and_in_order_per_client() {
    let mut runner = nats_runner();
    let events: Vec<_> = (0..6000).map(|number| (number % 600 / 2, number)).collect();
    push(&mut runner, &events);
    let mut got: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut most = 0;
    loop {
        let taken = batches(&mut runner, 0);
        if taken.is_empty() {
            break;
        }
        for (id, numbers) in taken {
            most = most.max(numbers.len());
            numbers.iter().for_each(|n| got.entry(n % 600 / 2).or_default().push(*n));
            runner.handle_outcome(0, id, stored());
        }
    }
    assert_eq!(most, 512, "the bound of a batch");
    assert_eq!(got.values().map(Vec::len).sum::<usize>(), 6000, "each event once");
    assert!(got.values().all(|numbers| numbers.is_sorted()), "in order per client");
}
