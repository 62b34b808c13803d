//! Messages between the shard and others of its node.

use super::peer::{put_frame, upgrade};
use super::plain::Plain;
use super::*;
use crate::address::placement::home_of_topic;
use crate::message::{
    BackendId, ClientReply, Delivery, FromConsumer, FromShard, GridMessage, LocalCommand,
    LocalMessage, MessageNumber, PopId, ToConsumer,
};
use crate::protocol::frame::Frame;

const HOME: ShardId = ShardId(1);

/// What the home of a topic, on another shard, learns of its consumer.
#[derive(Default)]
struct Home {
    consumer: Option<(BackendId, PopId)>,
    written: u32,
}

impl Home {
    /// Takes in what has arrived, and answers it.
    fn turn(&mut self, port: &mut Port) {
        let mut answers = Vec::new();
        port.receive(|message| match message {
            ToShard::Local(from, LocalMessage::Ask { ticket, backend, command }) => {
                let LocalCommand::Join(_, terms) = command else { panic!("{command:?}") };
                self.consumer = Some((backend, terms.pop));
                let answer = GridMessage::Answer(ticket, Ok(ClientReply::Done));
                answers.push(FromShard::Local(from, LocalMessage::Grid(answer)));
            }
            ToShard::Local(
                _,
                LocalMessage::Grid(GridMessage::FromConsumer {
                    message: FromConsumer::Written(count),
                    ..
                }),
            ) => self.written += count,
            _ => {}
        });
        answers.into_iter().for_each(|answer| port.post(answer));
        port.flush();
    }

    /// Delivers an event to the consumer.
    fn deliver(&self, port: &mut Port, topic: &str) {
        let (consumer, pop) = self.consumer.expect("it has joined");
        let delivery = Delivery {
            number: MessageNumber(0),
            pop,
            is_acknowledged: false,
            is_redelivered: false,
            frame: Frame::from_encoded(b"\x82\x01x"),
        };
        let message = ToConsumer::Deliver(delivery);
        let message = GridMessage::ToConsumer { topic: topic.into(), consumer, message };
        port.post(FromShard::Local(ShardId(0), LocalMessage::Grid(message)));
        port.flush();
    }
}

on_both! {
    /// With epoll a send ends in the turn that starts it, after the messages of the turn were posted.
    fn a_shard_does_not_sleep_before_the_home_of_a_topic_knows_that_an_event_was_written<I>() {
        let mut world = World::<I>::without_faults(&Settings { shards: 2, ..settings() }, 1);
        let topic = (0..).map(|n| format!("t{n}")).find(|name| home_of_topic(name, 2) == HOME);
        let (topic, mut home) = (topic.unwrap(), Home::default());
        let mut peer = Plain::connect(world.doors[0].address);
        let pop = format!(r#"{{"m":"queue.pop","p":{{"t":["{topic}"]}},"i":1}}"#);
        let mut call = upgrade("/ws/v1").into_bytes();
        put_frame(&mut call, 0x81, pop.as_bytes(), Some(&mut Random::default()));
        peer.say(&call);
        world.turn_until(|world| {
            home.turn(&mut world.ports[0]);
            peer.read(1000);
            peer.got.ends_with(br#""i":1}"#)
        });
        peer.got.clear();
        home.deliver(&mut world.ports[0], &topic);
        // The event is written, and the home knows, without a turn that slept.
        world.turn_until(|world| {
            peer.read(1000);
            home.turn(&mut world.ports[0]);
            if peer.got.is_empty() || home.written == 1 {
                return home.written == 1;
            }
            let now = world.driver.clock.now();
            let is_written = world.driver.sockets[0].as_ref().is_some_and(|s| !s.is_sending);
            assert!(!is_written || world.driver.sleep_ms(now) == 0, "it sleeps, and nobody knows");
            false
        });
    }
}
