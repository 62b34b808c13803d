//! Topics: delivery to consumers, and what happens when a topic is full.

use super::*;

#[test]
fn ten_thousand_messages_of_a_client_arrive_in_order() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    let client = server.device("/plain");
    let sent = write_aside(&client, numbers(0..10_000));
    for number in 0..10_000 {
        assert_eq!(consumer.data(), number.to_string());
    }
    sent.join().expect("all was sent");
}

#[test]
fn competing_consumers_share_the_messages_and_keep_each_client_s_order() {
    const CLIENTS: usize = 20;
    const EACH: usize = 200;
    let server = Server::new();
    let (sender, events) = mpsc::channel();
    for number in 0..2 {
        let (mut consumer, sender) = (server.consumer("plain"), sender.clone());
        thread::spawn(move || {
            while let Ok(Message::Text(text)) = consumer.try_read() {
                sender.send((number, text)).expect("the test waits");
            }
        });
    }
    let clients: Vec<_> = (0..CLIENTS).map(|_| server.device("/plain")).collect();
    clients.iter().for_each(|client| drop(write_aside(client, numbers(0..EACH as u32))));
    let mut next = HashMap::new();
    for _ in 0..CLIENTS * EACH {
        let (consumer, text) = events.recv_timeout(DEADLINE).expect("no message is lost");
        let event: Value = serde_json::from_str(&text).expect("an event is JSON");
        let (first_consumer, number) =
            next.entry(event["p"]["c"].to_string()).or_insert((consumer, 0));
        assert_eq!(event["p"]["d"]["frame"]["data"], number.to_string());
        assert_eq!(*first_consumer, consumer, "a client stays at its consumer");
        *number += 1;
    }
    assert_eq!(next.len(), CLIENTS);
}

#[test]
fn what_a_dead_consumer_was_not_written_goes_to_another_in_order() {
    const MESSAGES: u32 = 300;
    let server = Server::with("[limits]\noutbound_bytes = 262144\nedge_message_bytes = 65536");
    let mut dying = Socket::connect_with_small_buffer(server.api, "/ws/v1");
    let pop = r#"{"m":"queue.pop","p":{"t":["plain"]},"i":12345}"#;
    assert_eq!(dying.call(pop), SUCCESS);
    let mut client = server.device("/plain");
    for number in 0..MESSAGES {
        client.send_text(&format!("{number:060000}"));
    }
    client.synchronise();
    dying.reset();
    let mut other = server.consumer("plain");
    let number = |data: String| data.parse::<u32>().expect("a number");
    // What the kernel had taken for the dead consumer is gone with it; nothing after that is.
    let first = number(other.data());
    assert!(first < MESSAGES - 1, "all went to a consumer that did not read");
    for expected in first + 1..MESSAGES {
        assert_eq!(number(other.data()), expected);
    }
}

#[test]
fn messages_wait_for_a_consumer() {
    let server = Server::new();
    let mut client = server.device("/plain");
    client.send(&numbers(0..100));
    client.synchronise();
    let mut consumer = server.consumer("plain");
    for number in 0..100 {
        assert_eq!(consumer.data(), number.to_string());
    }
}

#[test]
fn messages_outlive_the_client_that_sent_them() {
    let server = Server::new();
    let mut client = server.device("/plain");
    client.send_text("last words");
    client.send_close(1000, "");
    client.ended();
    assert_eq!(server.consumer("plain").data(), "last words");
}

#[test]
fn a_full_topic_holds_its_clients_and_loses_nothing() {
    let server = Server::with("[queue]\ntopic_messages = 4");
    let clients = [(); 3].map(|()| server.device("/plain"));
    let sent = clients.each_ref().map(|client| write_aside(client, numbers(0..2_000)));
    let mut consumer = server.consumer("plain");
    let mut next = HashMap::new();
    for _ in 0..6_000 {
        let event = consumer.event();
        let number = next.entry(event["c"].to_string()).or_insert(0);
        assert_eq!(event["d"]["frame"]["data"], number.to_string());
        *number += 1;
    }
    for thread in sent {
        thread.join().expect("all was sent");
    }
}

#[test]
fn a_full_topic_stops_reading_from_its_clients() {
    let server = Server::with("[queue]\ntopic_messages = 4");
    let mut client = server.device("/plain");
    // Far more than the kernel keeps for one connection: held back, this cannot end by itself.
    let big = frame(0x81, "x".repeat(65_000).as_bytes());
    let sent = write_aside(&client, big.repeat(1_000));
    let mut consumer = server.consumer("plain");
    for _ in 0..1_000 {
        assert_eq!(consumer.data().len(), 65_000);
    }
    sent.join().expect("all was sent");
    client.synchronise();
}

#[test]
fn big_messages_pass_a_small_topic_behind_many_small_ones() {
    let limits = "[limits]\nedge_message_bytes = 250000";
    let queue = "[queue]\ntopic_messages = 8\ntopic_bytes = 1000000";
    let server = Server::with(&format!("{limits}\n{queue}"));
    let mut consumer = server.consumer("plain");
    let small = server.device("/plain");
    write_aside(&small, numbers(0..100));
    (0..100).for_each(|number| assert_eq!(consumer.data(), number.to_string()));
    // Enough clients for one on another shard than the first: room was lent to that one's shard.
    let clients = [(); 8].map(|()| server.device("/plain"));
    for client in &clients {
        write_aside(client, frame(0x81, &[b'x'; 240_000]));
        assert_eq!(consumer.data().len(), 240_000);
    }
}

#[test]
fn a_full_topic_may_drop_its_oldest() {
    let server = Server::with("[queue]\ntopic_messages = 8\nwhen_full = \"drop_oldest\"");
    let mut client = server.device("/plain");
    client.send(&numbers(0..100));
    // A pong would not tell: a client that waits for room is answered its pings all the same.
    until(|| {
        let text = server.get("/metrics").body;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map_or(0, |value| value.parse::<u64>().expect("a number"))
        };
        let kept = value("gridcast_topic_messages{topic=\"plain\"}");
        value("gridcast_dropped_total") + kept == 100
    });
    let mut consumer = server.consumer("plain");
    let first = consumer.data().parse().expect("a number");
    // Room that is lent to a shard without messages may take a quarter of the topic.
    assert!((92..=94).contains(&first), "{first} is the oldest of those kept");
    for number in first + 1..100 {
        assert_eq!(consumer.data(), number.to_string());
    }
}

#[test]
fn a_full_topic_may_close_the_client_with_1013() {
    let server = Server::with("[queue]\ntopic_messages = 4\nwhen_full = \"close\"");
    let mut client = server.device("/plain");
    client.send(&numbers(0..100));
    assert_eq!(client.closed().0, 1013);
    let mut consumer = server.consumer("plain");
    assert_eq!([(); 3].map(|()| consumer.data()), ["0", "1", "2"]);
}

#[test]
fn a_route_without_a_topic_discards_what_clients_send() {
    let server = server_with_route("subscribe = [\"*\"]", "");
    let mut client = server.device("/ws?channels=a");
    client.send(&numbers(0..1000));
    client.synchronise();
    assert_eq!(server.publish("a", "x"), (1, 0));
    assert_eq!(client.text(), "x");
}

#[test]
fn a_held_client_s_messages_wait_for_the_key_in_its_context() {
    let server = server_with_route("topic = \"held\"\nhold_until = \"user_id\"", "");
    let mut consumer = server.consumer("held");
    let mut client = server.device("/ws");
    client.send(&numbers(0..3));
    let first = consumer.event();
    assert_eq!(first["d"], json!({"frame": {"type": "text", "data": "0", "finish": true}}));
    let id = first["c"].as_str().expect("an id");
    conn_call(&server, id, "set_context_value", json!(["other", 1]));
    conn_call(&server, id, "set_context_value", json!(["user_id", 10000]));
    for number in 1..3 {
        // The context proves that the message was let through after the key was set.
        let event = consumer.event();
        assert_eq!(event["d"]["frame"]["data"], number.to_string());
        assert_eq!(event["d"]["context"], json!({"other": 1, "user_id": 10000}));
    }
    client.send_text("3");
    assert_eq!(consumer.data(), "3");
}
