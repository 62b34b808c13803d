//! Messages of lists of administration ⇄ bytes.

use super::WireError;
use super::fields::{
    Fields, put_list, put_long_text, put_remote, put_short_text, put_u16, put_u32, put_u64,
};
use crate::address::networks::Network;
use crate::message::{
    BackendsQuestion, ClientsPart, ClientsQuestion, ListAnswer, ListMessage, ListQuestion,
    NamesPart, NamesQuestion, ProcessFacts, ShardFigures, SlottedClient, UsersQuestion,
};
use crate::protocol::api::{
    BackendRow, ChannelRow, ClientFilter, ClientRow, GroupRow, NodeStanding, PAGE_MAX, PerSecond,
    SinkRow, TOPICS_SHOWN_MAX, TopicRow, USER_CONNECTIONS_MAX, USERS_PER_CALL_MAX, UserConnection,
    UserRow,
};

// Kinds of messages.
const ASK: u8 = 1;
const ANSWER: u8 = 2;

// Kinds of questions, and of their answers.
const FIGURES: u8 = 1;
const CLIENTS: u8 = 2;
const CHANNELS: u8 = 3;
const TOPICS: u8 = 4;
const BACKENDS: u8 = 7;
const USER_INFO: u8 = 8;
const CHANNEL_INFO: u8 = 9;

// The most groups of a topic that an answer may have. A configuration has fewer.
const GROUPS_MAX: usize = 64;

// The most sinks of a topic that an answer may have. A configuration has fewer.
const SINKS_MAX: usize = 256;

// Answers to any question.
const BUSY: u8 = 5;
const UNFINISHED: u8 = 6;

// States of a node by its own account.
const UP: u8 = 1;
const LAME_DUCK: u8 = 2;
const DRAINING: u8 = 3;

pub(super) fn put_list_message(out: &mut Vec<u8>, message: &ListMessage) {
    match message {
        ListMessage::Ask(question) => {
            out.push(ASK);
            put_question(out, question);
        }
        ListMessage::Answer(answer) => {
            out.push(ANSWER);
            put_answer(out, answer);
        }
    }
}

pub(super) fn read_list_message(fields: &mut Fields<'_>) -> Result<ListMessage, WireError> {
    match fields.u8()? {
        ASK => read_question(fields).map(ListMessage::Ask),
        ANSWER => read_answer(fields).map(ListMessage::Answer),
        kind => Err(WireError::Unknown(kind)),
    }
}

fn put_question(out: &mut Vec<u8>, question: &ListQuestion) {
    match question {
        ListQuestion::Figures => out.push(FIGURES),
        ListQuestion::Client(question) => {
            out.push(CLIENTS);
            put_clients_question(out, question);
        }
        ListQuestion::Channel(question) => {
            out.push(CHANNELS);
            put_names_question(out, question);
        }
        ListQuestion::Topic(question) => {
            out.push(TOPICS);
            put_names_question(out, question);
        }
        ListQuestion::Backend(question) => {
            out.push(BACKENDS);
            put_optional(out, question.topic.as_deref(), put_short_text);
            put_names_question(out, &question.page);
        }
        ListQuestion::UserInfo(question) => {
            out.push(USER_INFO);
            put_list(out, &question.users, |out, user| put_short_text(out, user));
            put_u32(out, question.within_ms);
        }
        ListQuestion::ChannelInfo(channels) => {
            out.push(CHANNEL_INFO);
            put_list(out, channels, |out, channel| put_short_text(out, channel));
        }
    }
}

fn read_question(fields: &mut Fields<'_>) -> Result<ListQuestion, WireError> {
    Ok(match fields.u8()? {
        FIGURES => ListQuestion::Figures,
        CLIENTS => ListQuestion::Client(Box::new(read_clients_question(fields)?)),
        CHANNELS => ListQuestion::Channel(Box::new(read_names_question(fields)?)),
        TOPICS => ListQuestion::Topic(Box::new(read_names_question(fields)?)),
        BACKENDS => ListQuestion::Backend(Box::new(BackendsQuestion {
            topic: read_optional(fields, read_name)?,
            page: read_names_question(fields)?,
        })),
        USER_INFO => ListQuestion::UserInfo(Box::new(UsersQuestion {
            users: fields.list(USERS_PER_CALL_MAX, read_name)?,
            within_ms: fields.u32()?,
        })),
        CHANNEL_INFO => ListQuestion::ChannelInfo(fields.list(PAGE_MAX, read_name)?),
        kind => return Err(WireError::Unknown(kind)),
    })
}

fn put_answer(out: &mut Vec<u8>, answer: &ListAnswer) {
    match answer {
        ListAnswer::Figures(figures) => {
            out.push(FIGURES);
            put_figures(out, figures);
        }
        ListAnswer::Client(part) => {
            out.push(CLIENTS);
            put_list(out, &part.rows, put_client);
            put_optional(out, part.next.as_ref(), |out, next| put_u32(out, *next));
        }
        ListAnswer::Channel(part) => {
            out.push(CHANNELS);
            put_list(out, &part.rows, put_channel);
            out.push(part.is_cut.into());
        }
        ListAnswer::Topic(part) => {
            out.push(TOPICS);
            put_list(out, &part.rows, put_topic);
            out.push(part.is_cut.into());
        }
        ListAnswer::Backend(part) => {
            out.push(BACKENDS);
            put_list(out, &part.rows, put_backend);
            out.push(part.is_cut.into());
        }
        ListAnswer::User(part) => {
            out.push(USER_INFO);
            put_list(out, &part.rows, put_user);
            out.push(part.is_cut.into());
        }
        ListAnswer::Busy => out.push(BUSY),
        ListAnswer::Unfinished => out.push(UNFINISHED),
    }
}

fn read_answer(fields: &mut Fields<'_>) -> Result<ListAnswer, WireError> {
    Ok(match fields.u8()? {
        FIGURES => ListAnswer::Figures(Box::new(read_figures(fields)?)),
        CLIENTS => ListAnswer::Client(Box::new(ClientsPart {
            rows: fields.list(PAGE_MAX, read_client)?,
            next: read_optional(fields, Fields::u32)?,
        })),
        CHANNELS => ListAnswer::Channel(Box::new(NamesPart {
            rows: fields.list(PAGE_MAX, read_channel)?,
            is_cut: fields.flag()?,
        })),
        TOPICS => ListAnswer::Topic(Box::new(NamesPart {
            rows: fields.list(PAGE_MAX, read_topic)?,
            is_cut: fields.flag()?,
        })),
        BACKENDS => ListAnswer::Backend(Box::new(NamesPart {
            rows: fields.list(PAGE_MAX, read_backend)?,
            is_cut: fields.flag()?,
        })),
        USER_INFO => ListAnswer::User(Box::new(NamesPart {
            rows: fields.list(USERS_PER_CALL_MAX, read_user)?,
            is_cut: fields.flag()?,
        })),
        BUSY => ListAnswer::Busy,
        UNFINISHED => ListAnswer::Unfinished,
        kind => return Err(WireError::Unknown(kind)),
    })
}

fn put_optional<T: ?Sized>(out: &mut Vec<u8>, value: Option<&T>, put: impl Fn(&mut Vec<u8>, &T)) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        put(out, value);
    }
}

fn read_optional<'a, T>(
    fields: &mut Fields<'a>,
    read: impl Fn(&mut Fields<'a>) -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    match fields.flag()? {
        true => read(fields).map(Some),
        false => Ok(None),
    }
}

fn put_clients_question(out: &mut Vec<u8>, question: &ClientsQuestion) {
    let ClientsQuestion { filter, from, max, within_ms } = question;
    put_optional(out, filter.clients.as_ref(), |out, clients| {
        put_list(out, clients, |out, client| put_u64(out, client.value()));
    });
    put_optional(out, filter.user.as_deref(), put_short_text);
    put_optional(out, filter.channel.as_deref(), put_short_text);
    put_optional(out, filter.address.as_ref(), |out, network| {
        put_short_text(out, &network.to_string());
    });
    put_optional(out, filter.route.as_deref(), put_long_text);
    for number in [from, max, within_ms] {
        put_u32(out, *number);
    }
}

fn read_clients_question(fields: &mut Fields<'_>) -> Result<ClientsQuestion, WireError> {
    let filter = ClientFilter {
        clients: read_optional(fields, |fields| fields.list(PAGE_MAX, Fields::client))?,
        user: read_optional(fields, read_name)?,
        channel: read_optional(fields, read_name)?,
        address: read_optional(fields, read_network)?,
        route: read_optional(fields, |fields| fields.long_text().map(Box::from))?,
    };
    let (from, max, within_ms) = (fields.u32()?, read_max(fields)?, fields.u32()?);
    Ok(ClientsQuestion { filter, from, max, within_ms })
}

fn read_name(fields: &mut Fields<'_>) -> Result<Box<str>, WireError> {
    fields.name().map(Box::from)
}

fn read_network(fields: &mut Fields<'_>) -> Result<Network, WireError> {
    let text = fields.short_text()?;
    let network: Option<Network> = text.parse().ok();
    network.filter(|network| network.to_string() == text).ok_or(WireError::OutOfBounds)
}

fn read_max(fields: &mut Fields<'_>) -> Result<u32, WireError> {
    match fields.u32()? {
        max if (1..=PAGE_MAX).contains(&(max as usize)) => Ok(max),
        _ => Err(WireError::OutOfBounds),
    }
}

fn put_names_question(out: &mut Vec<u8>, question: &NamesQuestion) {
    put_short_text(out, &question.prefix);
    put_optional(out, question.after.as_deref(), put_short_text);
    put_u32(out, question.max);
    put_u32(out, question.within_ms);
}

fn read_names_question(fields: &mut Fields<'_>) -> Result<NamesQuestion, WireError> {
    Ok(NamesQuestion {
        prefix: fields.short_text()?.into(),
        after: read_optional(fields, read_name)?,
        max: read_max(fields)?,
        within_ms: fields.u32()?,
    })
}

fn put_client(out: &mut Vec<u8>, SlottedClient { slot, row }: &SlottedClient) {
    put_u32(out, *slot);
    put_u64(out, row.client.value());
    put_optional(out, row.user.as_deref(), put_short_text);
    put_remote(out, row.remote);
    put_long_text(out, &row.path);
    for number in [row.since_ms, row.channels, row.buffered] {
        put_u64(out, number);
    }
}

fn read_client(fields: &mut Fields<'_>) -> Result<SlottedClient, WireError> {
    let slot = fields.u32()?;
    let row = ClientRow {
        client: fields.client()?,
        user: read_optional(fields, |fields| fields.short_text().map(Box::from))?,
        remote: fields.remote()?,
        path: fields.long_text()?.into(),
        since_ms: fields.u64()?,
        channels: fields.u64()?,
        buffered: fields.u64()?,
    };
    Ok(SlottedClient { slot, row })
}

fn put_channel(out: &mut Vec<u8>, row: &ChannelRow) {
    put_short_text(out, &row.name);
    put_u64(out, row.clients);
}

fn read_channel(fields: &mut Fields<'_>) -> Result<ChannelRow, WireError> {
    Ok(ChannelRow { name: read_name(fields)?, clients: fields.u64()? })
}

fn put_user(out: &mut Vec<u8>, row: &UserRow) {
    put_short_text(out, &row.user);
    put_list(out, &row.connections, |out, connection| {
        put_u64(out, connection.client.value());
        put_u64(out, connection.since_ms);
        put_remote(out, connection.remote);
    });
}

fn read_user(fields: &mut Fields<'_>) -> Result<UserRow, WireError> {
    let connection = |fields: &mut Fields<'_>| {
        Ok(UserConnection {
            client: fields.client()?,
            since_ms: fields.u64()?,
            remote: fields.remote()?,
        })
    };
    let user = read_name(fields)?;
    Ok(UserRow { user, connections: fields.list(USER_CONNECTIONS_MAX, connection)? })
}

fn put_topic(out: &mut Vec<u8>, row: &TopicRow) {
    put_short_text(out, &row.name);
    for number in [row.messages, row.bytes, row.oldest_ms, row.consumers, row.in_flight] {
        put_u64(out, number);
    }
    out.push(row.is_on_disk.into());
    put_list(out, &row.groups, put_group);
    put_list(out, &row.sinks, put_sink);
}

fn read_topic(fields: &mut Fields<'_>) -> Result<TopicRow, WireError> {
    Ok(TopicRow {
        name: read_name(fields)?,
        messages: fields.u64()?,
        bytes: fields.u64()?,
        oldest_ms: fields.u64()?,
        consumers: fields.u64()?,
        in_flight: fields.u64()?,
        is_on_disk: fields.flag()?,
        groups: fields.list(GROUPS_MAX, read_group)?,
        sinks: fields.list(SINKS_MAX, read_sink)?,
    })
}

fn put_group(out: &mut Vec<u8>, row: &GroupRow) {
    put_optional(out, row.name.as_deref(), put_short_text);
    let GroupRow { name: _, backlog, in_flight, stalled_ms, consumers, redelivered, dead } = row;
    for number in [backlog, in_flight, stalled_ms, consumers, redelivered, dead] {
        put_u64(out, *number);
    }
}

fn read_group(fields: &mut Fields<'_>) -> Result<GroupRow, WireError> {
    Ok(GroupRow {
        name: read_optional(fields, read_name)?,
        backlog: fields.u64()?,
        in_flight: fields.u64()?,
        stalled_ms: fields.u64()?,
        consumers: fields.u64()?,
        redelivered: fields.u64()?,
        dead: fields.u64()?,
    })
}

fn put_sink(out: &mut Vec<u8>, row: &SinkRow) {
    put_short_text(out, &row.name);
    let numbers = [row.backlog, row.oldest_ms, row.in_flight, row.delivered, row.retries];
    for number in numbers {
        put_u64(out, number);
    }
    out.push(row.is_up.into());
    put_optional(out, row.failure.as_deref(), put_long_text);
}

fn read_sink(fields: &mut Fields<'_>) -> Result<SinkRow, WireError> {
    Ok(SinkRow {
        name: read_name(fields)?,
        backlog: fields.u64()?,
        oldest_ms: fields.u64()?,
        in_flight: fields.u64()?,
        delivered: fields.u64()?,
        retries: fields.u64()?,
        is_up: fields.flag()?,
        failure: read_optional(fields, |fields| fields.long_text().map(Box::from))?,
    })
}

fn put_backend(out: &mut Vec<u8>, row: &BackendRow) {
    put_short_text(out, &row.id);
    put_u16(out, row.node.number());
    put_optional(out, row.user.as_deref(), put_short_text);
    put_remote(out, row.remote);
    put_list(out, &row.topics, |out, topic| put_short_text(out, topic));
    put_optional(out, row.group.as_deref(), put_short_text);
    let numbers = [row.since_ms, row.topic_count, row.in_flight, row.buffered, row.stalled_ms];
    for number in numbers {
        put_u64(out, number);
    }
}

fn read_backend(fields: &mut Fields<'_>) -> Result<BackendRow, WireError> {
    let (id, node) = (read_name(fields)?, fields.node()?);
    let user = read_optional(fields, |fields| fields.short_text().map(Box::from))?;
    Ok(BackendRow {
        id,
        node,
        user,
        remote: fields.remote()?,
        topics: fields.list(TOPICS_SHOWN_MAX, read_name)?,
        group: read_optional(fields, read_name)?,
        since_ms: fields.u64()?,
        topic_count: fields.u64()?,
        in_flight: fields.u64()?,
        buffered: fields.u64()?,
        stalled_ms: fields.u64()?,
    })
}

fn put_figures(out: &mut Vec<u8>, figures: &ShardFigures) {
    put_u64(out, figures.clients);
    put_u64(out, figures.backends);
    put_u64(out, figures.received.0);
    put_u64(out, figures.delivered.0);
    out.push(figures.process.is_some().into());
    if let Some(process) = &figures.process {
        out.push(match process.state {
            NodeStanding::Draining => DRAINING,
            NodeStanding::LameDuck => LAME_DUCK,
            // A node that answers is at least up.
            _ => UP,
        });
        put_u64(out, process.uptime_ms);
        put_short_text(out, &process.driver);
        put_u64(out, process.memory_bytes);
        put_u64(out, process.memory_limit_bytes);
    }
}

fn read_figures(fields: &mut Fields<'_>) -> Result<ShardFigures, WireError> {
    Ok(ShardFigures {
        clients: fields.u64()?,
        backends: fields.u64()?,
        received: PerSecond(fields.u64()?),
        delivered: PerSecond(fields.u64()?),
        process: match fields.flag()? {
            true => Some(read_process(fields)?),
            false => None,
        },
    })
}

fn read_process(fields: &mut Fields<'_>) -> Result<ProcessFacts, WireError> {
    Ok(ProcessFacts {
        state: match fields.u8()? {
            UP => NodeStanding::Up,
            LAME_DUCK => NodeStanding::LameDuck,
            DRAINING => NodeStanding::Draining,
            state => return Err(WireError::Unknown(state)),
        },
        uptime_ms: fields.u64()?,
        driver: fields.short_text()?.into(),
        memory_bytes: fields.u64()?,
        memory_limit_bytes: fields.u64()?,
    })
}
