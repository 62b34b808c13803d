//! What one connection may make the shard hold, and for how long without credentials.

use gridcast::address::{IdLayout, IdSource, NodeId, ShardId};
use gridcast::message::{
    ClientReply, ConnectionKey, FromShard, GridMessage, LocalMessage, ToShard,
};
use gridcast::shard::{Action, Listener, Now, Priority, Shard};

use crate::shard_value::{self, bytes_of, call, upgraded};
use crate::{NOW, OUTBOUND_BYTES, closed, is_open, publish, settings, write_to};

/// The least memory that an empty message takes in a queue: its entry, an allocation for the frame, and one for the
/// reference counts.
const EMPTY_MESSAGE_BYTES: usize = 24 + 48 + 32;

/// Returns how many publishes of `data` fit the outbound queue of a client that reads nothing.
fn taken_unread(outbound_bytes: usize, data: &str) -> usize {
    let mut shard = shard_value::shard(&settings(1, outbound_bytes), NOW);
    let client = upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=a");
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    // Writes the responses to the handshakes.
    while let Some((key, batch)) = shard.poll_write(Priority::Urgent) {
        let bytes = bytes_of(&batch).len();
        shard.handle_written(NOW, key, bytes, true);
    }
    assert_ne!(client, back_end);
    for _ in 0..1 << 20 {
        shard.handle_bytes(NOW, back_end, &mut publish(data));
        write_to(&mut shard, back_end);
        shard.handle_turn(NOW);
        if shard.inspect().counters().failed > 0 {
            break;
        }
    }
    assert_eq!(shard.inspect().counters().slow_closed, 1);
    shard.inspect().counters().delivered as usize
}

#[test]
fn small_messages_are_charged_their_memory_and_not_only_their_bytes() {
    for data in ["", "12345678901234567890"] {
        let taken = taken_unread(OUTBOUND_BYTES, data);
        let held = taken * (EMPTY_MESSAGE_BYTES + data.len());
        assert!(held <= OUTBOUND_BYTES, "{taken} messages of {} bytes hold {held}", data.len());
        assert!(held >= OUTBOUND_BYTES / 2, "{taken} messages of {} bytes", data.len());
    }
}

#[test]
fn a_message_as_long_as_the_limit_fits_an_empty_queue() {
    // Leaves room for the frame's head of four bytes.
    let longest = "x".repeat(2000 - 4);
    assert_eq!(taken_unread(2000, &longest), 1);
}

/// A client id that belongs to shard 1.
fn client_of_the_other() -> String {
    let node = NodeId::new(1).expect("1 is a node");
    let mut ids = IdSource::new(node, ShardId(1), IdLayout::new(2), NOW.unix_ms);
    ids.next(NOW.unix_ms).expect("the first of this moment").to_string()
}

#[test]
fn request_ids_of_unanswered_calls_are_bounded_in_bytes_and_returned_unchanged() {
    let mut shard = shard_value::shard(&settings(2, OUTBOUND_BYTES), NOW);
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    write_to(&mut shard, back_end);
    let client = client_of_the_other();
    let id = |number: u32| format!("\"{number}{}\"", "x".repeat(200_000));
    for number in 10..40 {
        let json = format!(
            r#"{{"m":"conn.call","p":{{"c":"{client}","f":"info","a":[]}},"i":{}}}"#,
            id(number)
        );
        shard.handle_bytes(NOW, back_end, &mut call(&json));
        shard.handle_turn(NOW);
    }
    // The other shard does not answer.
    let mut tickets = Vec::new();
    let mut text = String::new();
    for round in 0..30 {
        while let Some(message) = shard.poll_message() {
            if let FromShard::Local(_, LocalMessage::Grid(GridMessage::Ask { ticket, .. })) =
                message
            {
                tickets.push(ticket);
            }
        }
        assert!(tickets.len() <= 6, "{} ids of 200 KB are held", tickets.len());
        if round == 0 {
            assert_eq!(tickets.len(), 6, "as many as the outbound limit allows, and one");
            assert!(!shard.inspect().is_receiving(back_end), "what follows stays with the sender");
        }
        for ticket in tickets.drain(..) {
            let answer = LocalMessage::Grid(GridMessage::Answer(ticket, Ok(ClientReply::Done)));
            shard.handle_message(NOW, ToShard::Local(ShardId(1), answer));
        }
        shard.handle_turn(NOW);
        text += &write_to(&mut shard, back_end);
    }
    let places: Vec<_> = (10..40).map(|number| text.find(&id(number))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "each, in order");
    assert!(shard.inspect().is_receiving(back_end));
}

#[test]
fn requests_are_not_read_while_more_answers_are_unread_than_the_limit() {
    const LIMIT: usize = 100_000;
    const CONTEXT: usize = 60_000;
    let mut settings = settings(1, OUTBOUND_BYTES);
    settings.limits.outbound_bytes = LIMIT;
    let node = settings.node;
    for is_http in [false, true] {
        let mut shard = shard_value::shard(&settings, NOW);
        upgraded(&mut shard, NOW, Listener::Edge(0), "/ws");
        let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
        let mut ids = IdSource::new(node, ShardId(0), IdLayout::new(1), NOW.unix_ms);
        let client = ids.next(NOW.ms).expect("the first of this moment");
        let function =
            |name: &str, a: &str| format!(r#"{{"c":"{client}","f":"{name}","a":[{a}]}}"#);
        let set = function("set_context_value", &format!("\"k\",\"{}\"", "x".repeat(CONTEXT)));
        let message = |p: &str| call(&format!(r#"{{"m":"conn.call","p":{p},"i":1}}"#));
        shard.handle_bytes(NOW, back_end, &mut message(&set));
        write_to(&mut shard, back_end);

        let get = function("get_context", "");
        let (reader, mut input) = match is_http {
            false => (back_end, message(&get).repeat(10)),
            true => {
                let remote = ([127, 0, 0, 1], 50_000).into();
                let key =
                    shard.handle_accepted(NOW, Listener::Api, remote).expect("the node is up");
                let length = get.len();
                let head = "POST /v1/conn/call HTTP/1.1\r\nHost: localhost\r\nContent-Length:";
                (key, format!("{head} {length}\r\n\r\n{get}").repeat(10).into_bytes())
            }
        };
        shard.handle_bytes(NOW, reader, &mut input);
        let answers = write_to(&mut shard, reader);
        assert!(answers.len() > LIMIT, "{} bytes of answers", answers.len());
        assert_eq!(answers.matches("xxx\"").count(), 2, "over HTTP: {is_http}");
    }
}

/// A shard whose API has a user.
fn node_with_user() -> Shard {
    let mut settings = settings(1, OUTBOUND_BYTES);
    settings.api.users = vec![shard_value::user("app", "secret")].into();
    shard_value::shard(&settings, NOW)
}

fn ask(shard: &mut Shard, key: ConnectionKey, now: Now, headers: &str) {
    let request = format!("GET /version HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n");
    shard.handle_bytes(now, key, &mut request.into_bytes());
}

const CREDENTIALS: &str = "Authorization: Bearer secret\r\n";

#[test]
fn the_oldest_unauthenticated_api_connection_is_evicted_and_no_other() {
    let mut shard = node_with_user();
    let remote = ([127, 0, 0, 1], 1).into();
    let keys: Vec<_> = (0..4)
        .map(|_| shard.handle_accepted(NOW, Listener::Api, remote).expect("the node is up"))
        .collect();
    ask(&mut shard, keys[0], NOW, CREDENTIALS);
    ask(&mut shard, keys[1], NOW, "Authorization: Bearer wrong\r\n");
    assert!(shard.evict_unauthenticated());
    assert_eq!(closed(&mut shard), [keys[1]]);
    ask(&mut shard, keys[2], NOW, CREDENTIALS);
    assert!(shard.evict_unauthenticated());
    assert_eq!(closed(&mut shard), [keys[3]]);
    assert!(!shard.evict_unauthenticated(), "those who have shown who they are keep their places");
}

#[test]
fn an_unauthenticated_api_connection_is_closed_after_the_time_for_a_handshake() {
    let mut shard = node_with_user();
    let remote = ([127, 0, 0, 1], 1).into();
    let accept = |shard: &mut Shard| shard.handle_accepted(NOW, Listener::Api, remote).expect("up");
    let (unknown, known) = (accept(&mut shard), accept(&mut shard));
    ask(&mut shard, known, NOW, CREDENTIALS);
    for ms in (0..=10_000).step_by(1000) {
        let now = Now { ms, us: ms * 1000, ..NOW };
        ask(&mut shard, unknown, now, "Authorization: Bearer\r\n");
        shard.handle_turn(now);
        while let Some((key, batch)) = shard.poll_write(Priority::Urgent) {
            let bytes = bytes_of(&batch).len();
            shard.handle_written(now, key, bytes, true);
        }
        let is_shut = std::iter::from_fn(|| shard.poll_action())
            .any(|action| action == Action::Shutdown(unknown));
        assert_eq!(is_shut, ms == 10_000, "after {ms} ms");
    }
    assert!(is_open(&mut shard, known));
}
