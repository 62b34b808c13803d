//! A message of each kind, with each of its forms.

use std::sync::Arc;

use super::super::*;
use crate::address::{ClientId, ShardAddress};
use crate::message::{
    BackendId, BackendsQuestion, Beginning, ClientCommand, ClientReply, ClientsPart,
    ClientsQuestion, ConnectionKey, Delivery, FromConsumer, FromTapper, GridMessage,
    LastWillsMessage, ListAnswer, ListMessage, ListQuestion, MessageNumber, NamesPart,
    NamesQuestion, PopId, PresenceMessage, PresenceNews, ProcessFacts, Publish, Requester,
    SettleTaken, ShardFigures, SlottedClient, StaleTaken, Terms, Ticket, ToConsumer, ToTapper,
    UserAction, UserCommand, UsersQuestion, WatcherEpoch,
};
use crate::protocol::api::{
    BackendRow, ChannelRow, ClientFilter, ClientRow, Code, Fault, Function, GroupRow, Info,
    NAME_BYTES_MAX, NodeStanding, PerSecond, SinkRow, Tally, Tap, TapTarget, TopicRow,
    UserConnection, UserRow,
};
use crate::protocol::frame::{Frame, Kind};

pub(super) fn hello() -> Hello {
    Hello {
        versions: Versions { first: 1, last: 3 },
        node: NodeId::new(1023).unwrap(),
        incarnation: Incarnation(1_700_000_000_123),
        shards: 256,
        mesh: "10.0.0.5:6788".parse().unwrap(),
        api: "[fe80::1%7]:6789".parse().unwrap(),
        software: "0.1.0".into(),
        held: Some(SessionId(u64::MAX)),
        offered: SessionId(5),
        received: vec![
            receipt(Lane::Control, 1),
            receipt(Lane::Mesh, 2),
            receipt(Lane::Shard(ShardId(255)), 3),
        ],
    }
}

pub(super) fn receipt(lane: Lane, last: u64) -> Receipt {
    Receipt { lane, last: BatchNumber(last) }
}

pub(super) fn controls() -> Vec<Control> {
    let (one, two) = (AnnouncementNumber(1), AnnouncementNumber(2));
    let (on, off) = (vec![ChannelHash(7), ChannelHash(u64::MAX)], vec![ChannelHash(7)]);
    vec![
        Control::Hello(hello()),
        Control::Refused("wrong version".into()),
        Control::Hello(Hello { held: None, received: vec![], ..hello() }),
        Control::Interest { number: Some(one), is_whole: true, on, off: vec![] },
        Control::Interest { number: Some(two), is_whole: false, on: vec![], off: off.clone() },
        Control::Interest { number: None, is_whole: true, on: off, off: vec![] },
        Control::InterestKnown(two),
        Control::Ping { sent_ms: 3 },
        Control::Pong { sent_ms: 3, clients: 4 },
        Control::Received(receipt(Lane::Mesh, 4)),
    ]
}

pub(super) fn backend() -> BackendId {
    BackendId {
        at: ShardAddress { node: NodeId::new(1000).unwrap(), shard: ShardId(200) },
        connection: ConnectionKey { index: u32::MAX, generation: ConnectionKey::GENERATION_MAX },
    }
}

pub(super) fn frame() -> Frame {
    Frame::message(Kind::Text, "grüße".as_bytes())
}

/// A message for shard 3.
pub(super) fn for_shard(message: GridMessage) -> AddressedMessage {
    AddressedMessage::Shard(ShardId(3), message)
}

pub(super) fn ask(ticket: u64, command: ClientCommand) -> AddressedMessage {
    for_shard(GridMessage::Ask { ticket: Ticket(ticket), backend: backend(), command })
}

pub(super) fn for_users(action: UserAction) -> AddressedMessage {
    let requester = Requester { ticket: Ticket(5), backend: backend() };
    let users = vec!["10000".into(), "ü".into()];
    AddressedMessage::Mesh(MeshMessage::ForUsers(
        requester,
        Arc::new(UserCommand { users, action }),
    ))
}

pub(super) fn answer(ticket: u64, answer: Result<ClientReply, Fault>) -> AddressedMessage {
    for_shard(GridMessage::Answer(Ticket(ticket), answer))
}

pub(super) fn from_consumer(topic: &str, message: FromConsumer) -> AddressedMessage {
    for_shard(GridMessage::FromConsumer { topic: topic.into(), consumer: backend(), message })
}

pub(super) fn to_consumer(topic: &str, message: ToConsumer) -> AddressedMessage {
    for_shard(GridMessage::ToConsumer { topic: topic.into(), consumer: backend(), message })
}

pub(super) fn all_messages() -> Vec<AddressedMessage> {
    let client = ClientId::from_value(1_463_786_910_324_359_168);
    let functions = [
        Function::SetContextValue("key".into(), r#"{"a":[1,"ü"]}"#.into()),
        Function::SetContext(vec![("a".into(), "1".into()), ("".into(), "\"b\"".into())]),
        Function::SetContext(vec![]),
        Function::Subscribe(vec!["room 1".into(), "x".repeat(NAME_BYTES_MAX).into()]),
        Function::Unsubscribe(vec!["ü".into()]),
        Function::Close(4999, "good bye".into()),
        Function::GetContext,
        Function::Info,
    ];
    let info = Info {
        node: NodeId::new(0).unwrap(),
        remote: ([127, 0, 0, 1], 1).into(),
        since_ms: 1,
        channels: vec!["a".into(), "b".into()],
        buffered: 1 << 20,
    };
    let answers = [
        Ok(ClientReply::Done),
        Ok(ClientReply::Context("{\"a\":1}".into())),
        Ok(ClientReply::Info(Box::new(info))),
        Err(Fault::new(Code::ExecutionFailed, "no such client")),
    ];
    let delivery = |is_acknowledged, is_redelivered| {
        ToConsumer::Deliver(Delivery {
            number: MessageNumber(6),
            pop: PopId(7),
            is_acknowledged,
            is_redelivered,
            frame: frame(),
        })
    };
    let terms = |unsettled_max| {
        Box::new(Terms {
            pop: PopId(1),
            group: Some("billing".into()),
            window_bytes: 1 << 40,
            unsettled_max,
        })
    };
    let to_consumers = [
        delivery(true, false),
        delivery(false, true),
        ToConsumer::Expired(vec![MessageNumber(3)]),
        ToConsumer::Evict,
    ];
    let from_consumers = [
        FromConsumer::Written(u32::MAX),
        FromConsumer::Settled([1, 2, u64::MAX].map(MessageNumber).into()),
        FromConsumer::Refused { numbers: vec![MessageNumber(4)], after_ms: 1000 },
        FromConsumer::Returned { number: MessageNumber(8), pop: PopId(9) },
        FromConsumer::Consume(terms(None)),
        FromConsumer::Consume(terms(Some(1024))),
        FromConsumer::StopConsuming,
        FromConsumer::EndTake { kept: vec![MessageNumber(5)] },
        FromConsumer::GiveBack { pop: PopId(1 << 63), numbers: vec![MessageNumber(5)] },
        FromConsumer::Gone,
    ];
    let requester = Requester { ticket: Ticket(u64::MAX - 1), backend: backend() };
    let publish = Publish { channel: "channel".into(), frame: frame(), excluded: None };
    let excluded = Some(Arc::new(vec![ClientId::from_value(1), client]));
    let publish_except = Publish { excluded, ..publish.clone() };
    let tally = Tally { delivered: 9, failed: u64::MAX };
    let mut messages = vec![
        AddressedMessage::Mesh(MeshMessage::Publish(requester, publish)),
        AddressedMessage::Mesh(MeshMessage::Publish(requester, publish_except)),
        AddressedMessage::Mesh(MeshMessage::Published(Ticket(3), tally)),
        for_users(UserAction::Send(frame())),
        for_users(UserAction::Call(Function::Subscribe(vec!["room 1".into()]))),
        ask(u64::MAX - 1, ClientCommand::Send(client, frame())),
    ];
    let calls = functions.map(|function| ClientCommand::Call(client, function));
    messages.extend(calls.map(|command| ask(u64::MAX - 1, command)));
    messages.extend(answers.map(|reply| answer(3, reply)));
    messages.extend(to_consumers.map(|message| to_consumer("topic", message)));
    messages.extend(from_consumers.map(|message| from_consumer("topic", message)));
    let last_wills = [
        LastWillsMessage::Begin(WatcherEpoch(1)),
        LastWillsMessage::Register("topic".into(), vec![client, client]),
        LastWillsMessage::Unregister("topic".into(), client),
        LastWillsMessage::Claim {
            incarnation: Incarnation(1_700_000_000_000),
            epoch: WatcherEpoch(2),
        },
    ];
    messages
        .extend(last_wills.map(|message| for_shard(GridMessage::LastWills(backend().at, message))));
    messages.extend(
        list_messages()
            .into_iter()
            .map(|message| for_shard(GridMessage::List(Ticket(u64::MAX - 1), message))),
    );
    messages.extend(tap_messages().map(for_shard));
    messages.extend(taken_messages().map(for_shard));
    messages.extend(presence_messages().map(for_shard));
    messages
}

fn presence_messages() -> [GridMessage; 12] {
    let users = || vec![Arc::from("10000"), Arc::from("ü")];
    let news = [
        PresenceNews::Begin(Beginning::New),
        PresenceNews::Begin(Beginning::Moved),
        PresenceNews::Begin(Beginning::Lost),
        PresenceNews::Known(users()),
        PresenceNews::Present(vec![Some("10000".into()), None]),
        PresenceNews::Absent(None),
        PresenceNews::End,
        PresenceNews::WereThere(vec![]),
        PresenceNews::Joined(users()),
        PresenceNews::Left("10000".into()),
        PresenceNews::Guard,
        PresenceNews::Unguard,
    ];
    let message = |news| Box::new(PresenceMessage { channel: "room 1".into(), news });
    news.map(|news| GridMessage::Presence(message(news)))
}

fn taken_messages() -> [GridMessage; 3] {
    let events = vec![(PopId(1 << 63), MessageNumber(5)), (PopId(1), MessageNumber(u64::MAX))];
    let settle = |after_ms| {
        let settle = SettleTaken { topic: "topic".into(), events: events.clone(), after_ms };
        GridMessage::Settle(Ticket(3), Box::new(settle))
    };
    let stale = StaleTaken { topic: "topic".into(), events: events.clone() };
    [settle(None), settle(Some(1000)), GridMessage::Settled(Ticket(3), Box::new(stale))]
}

pub(super) fn list_messages() -> Vec<ListMessage> {
    let filter = ClientFilter {
        clients: Some([1, 2].map(ClientId::from_value).to_vec()),
        user: Some("10000".into()),
        channel: Some("news".into()),
        address: "10.0.0.0/8".parse().ok(),
        route: Some("/ws".into()),
    };
    let clients = |filter| {
        let question = ClientsQuestion { filter, from: 5, max: 1000, within_ms: 750 };
        ListMessage::Ask(ListQuestion::Client(Box::new(question)))
    };
    let names = |prefix: &str, after: Option<&str>| {
        let (prefix, after) = (prefix.into(), after.map(Box::from));
        Box::new(NamesQuestion { prefix, after, max: 1, within_ms: 750 })
    };
    let row = |user: Option<&str>| ClientRow {
        client: ClientId::from_value(3),
        user: user.map(Box::from),
        remote: ([127, 0, 0, 1], 1).into(),
        path: "/ws".into(),
        since_ms: 4,
        channels: 5,
        buffered: 6,
    };
    let rows = [(7, row(Some("10000"))), (9, row(None))];
    let rows = rows.map(|(slot, row)| SlottedClient { slot, row }).into();
    let channel = ChannelRow { name: "news".into(), clients: 8 };
    let group = |name: Option<&str>| GroupRow {
        name: name.map(Box::from),
        backlog: 11,
        in_flight: 12,
        stalled_ms: 16,
        consumers: 13,
        redelivered: 14,
        dead: 15,
    };
    let topic = TopicRow {
        name: "messages".into(),
        messages: 1,
        bytes: 2,
        oldest_ms: 3,
        consumers: 4,
        in_flight: 5,
        is_on_disk: true,
        groups: vec![group(None), group(Some("billing"))],
        sinks: vec![SinkRow {
            name: "s".into(),
            backlog: 6,
            oldest_ms: 7,
            in_flight: 8,
            delivered: 9,
            retries: 10,
            is_up: false,
            failure: Some("refused".into()),
        }],
    };
    let backend = |user: Option<&str>, topics: &[&str]| BackendRow {
        id: "0010000000001000001".into(),
        node: NodeId::new(1).expect("a small number"),
        user: user.map(Box::from),
        remote: ([127, 0, 0, 1], 1).into(),
        since_ms: 4,
        topic_count: 9,
        topics: topics.iter().map(|&topic| topic.into()).collect(),
        group: user.map(Box::from),
        in_flight: 5,
        buffered: 6,
        stalled_ms: 7,
    };
    let connection = UserConnection {
        client: ClientId::from_value(3),
        since_ms: 4,
        remote: ([127, 0, 0, 1], 1).into(),
    };
    let users = vec![UserRow { user: "10000".into(), connections: vec![connection] }];
    let backends = vec![backend(Some("app"), &["messages", "b"]), backend(None, &[])];
    let answers = [
        ListAnswer::Backend(Box::new(NamesPart { rows: backends, is_cut: true })),
        ListAnswer::Client(Box::new(ClientsPart { rows, next: Some(10) })),
        ListAnswer::Client(Box::default()),
        ListAnswer::Channel(Box::new(NamesPart { rows: vec![channel], is_cut: true })),
        ListAnswer::Topic(Box::new(NamesPart { rows: vec![topic], is_cut: false })),
        ListAnswer::Busy,
        ListAnswer::Unfinished,
        ListAnswer::User(Box::new(NamesPart { rows: users, is_cut: false })),
    ];
    let users = UsersQuestion { users: ["10000", "ada"].map(Box::from).into(), within_ms: 750 };
    let mut messages: Vec<_> = figures_messages().into();
    messages.extend([
        clients(filter),
        clients(ClientFilter::default()),
        ListMessage::Ask(ListQuestion::Channel(names("ne", Some("news")))),
        ListMessage::Ask(ListQuestion::Topic(names("", None))),
        ListMessage::Ask(ListQuestion::Backend(Box::new(BackendsQuestion {
            topic: Some("messages".into()),
            page: *names("", Some("001")),
        }))),
        ListMessage::Ask(ListQuestion::UserInfo(Box::new(users))),
        ListMessage::Ask(ListQuestion::ChannelInfo(vec!["news".into()])),
    ]);
    messages.extend(answers.map(ListMessage::Answer));
    messages
}

pub(super) fn figures_messages() -> [ListMessage; 3] {
    let process = ProcessFacts {
        state: NodeStanding::LameDuck,
        uptime_ms: 1,
        driver: "epoll".into(),
        memory_bytes: 1 << 30,
        memory_limit_bytes: 1 << 31,
    };
    let figures = |process| ShardFigures {
        clients: 2,
        backends: 3,
        received: PerSecond(4),
        delivered: PerSecond(u64::MAX),
        process,
    };
    let answer = |figures| ListMessage::Answer(ListAnswer::Figures(Box::new(figures)));
    [ListMessage::Ask(ListQuestion::Figures), answer(figures(None)), answer(figures(Some(process)))]
}

pub(super) fn tap_messages() -> impl Iterator<Item = GridMessage> {
    let address = |text: &str| TapTarget::Address(text.parse().expect("a network"));
    let targets = [
        TapTarget::Client(ClientId::from_value(7)),
        TapTarget::User("10000".into()),
        TapTarget::Channel("room 1".into()),
        TapTarget::Topic("topic".into()),
        address("10.0.0.0/8"),
        address("fd00::/8"),
    ];
    let start = |target| FromTapper::Start(Ticket(3), Box::new(Tap { target, max_per_s: 1000 }));
    let from = targets.into_iter().map(start).chain([FromTapper::Stop, FromTapper::Taken(32)]);
    let to = [
        ToTapper::Started { ticket: Ticket(3), is_watching: true },
        ToTapper::Event(frame()),
        ToTapper::Lost(9),
    ];
    let from = from.map(|message| GridMessage::FromTapper(backend(), message));
    let to = to.into_iter().map(|message| GridMessage::ToTapper(backend(), message));
    let requester = Requester { ticket: Ticket(3), backend: backend() };
    from.chain(to).chain([GridMessage::Caller(requester, "app".into())])
}
