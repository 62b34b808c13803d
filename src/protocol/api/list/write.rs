//! Writes the answers of lists as JSON.

use super::{
    BackendRow, ChannelRow, ClientRow, GroupRow, Listing, NamedRow, NamedRows, NodeEntry, NodeList,
    Page, PerSecond, SinkRow, TopicRow, UserConnection,
};
use crate::address::NodeId;
use crate::protocol::api::write::put_list;
use crate::protocol::json::{put_number, put_string};

/// Appends the result of a list.
pub(in crate::protocol::api) fn put_listing(out: &mut Vec<u8>, listing: &Listing) {
    match listing {
        Listing::Node(NodeList { nodes, missing }) => {
            out.extend_from_slice(b"{\"nodes\":");
            put_list(out, nodes, put_node);
            put_missing(out, missing);
        }
        Listing::Client(page) => put_page(out, "clients", page, put_client),
        Listing::Channel(page) => put_page(out, "channels", page, put_channel),
        Listing::Topic(page) => put_page(out, "topics", page, put_topic),
        Listing::Backend(page) => put_page(out, "backends", page, put_backend),
        Listing::Members(page) => put_page(out, "members", page, put_member),
        Listing::UserInfo(NamedRows { rows, missing }) => {
            out.extend_from_slice(b"{\"users\":");
            put_object(out, rows, |out, row| put_list(out, &row.connections, put_connection));
            put_missing(out, missing);
        }
        Listing::ChannelInfo(NamedRows { rows, missing }) => {
            out.extend_from_slice(b"{\"channels\":");
            put_object(out, rows, |out, row| {
                out.extend_from_slice(b"{\"clients\":");
                put_number(out, row.clients);
                out.push(b'}');
            });
            put_missing(out, missing);
        }
    }
    out.push(b'}');
}

/// Appends a page without its last brace.
fn put_page<R, C: ToString>(
    out: &mut Vec<u8>,
    name: &str,
    page: &Page<R, C>,
    put_row: impl Fn(&mut Vec<u8>, &R),
) {
    out.extend_from_slice(b"{\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    put_list(out, &page.rows, put_row);
    put_text(out, "next", page.next.as_ref().map(C::to_string).as_deref());
    put_missing(out, &page.missing);
}

/// Appends an object with a value for each row, by the row's name.
fn put_object<R: NamedRow>(out: &mut Vec<u8>, rows: &[R], put_value: impl Fn(&mut Vec<u8>, &R)) {
    out.push(b'{');
    for (at, row) in rows.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put_string(out, row.name());
        out.push(b':');
        put_value(out, row);
    }
    out.push(b'}');
}

fn put_connection(out: &mut Vec<u8>, connection: &UserConnection) {
    let UserConnection { client, since_ms, remote } = connection;
    out.extend_from_slice(b"{\"c\":\"");
    put_number(out, client.value());
    out.push(b'"');
    put_figure(out, "n", Some(client.node().number().into()));
    put_figure(out, "since", Some(*since_ms));
    put_text(out, "remote", Some(&remote.to_string()));
    out.push(b'}');
}

fn put_client(out: &mut Vec<u8>, row: &ClientRow) {
    let ClientRow { client, user, remote, path, since_ms, channels, buffered } = row;
    out.extend_from_slice(b"{\"c\":\"");
    put_number(out, client.value());
    out.push(b'"');
    put_figure(out, "n", Some(client.node().number().into()));
    put_text(out, "u", user.as_deref());
    put_text(out, "remote", Some(&remote.to_string()));
    put_text(out, "path", Some(path));
    put_figure(out, "since", Some(*since_ms));
    put_figure(out, "channels", Some(*channels));
    put_figure(out, "buffered", Some(*buffered));
    out.push(b'}');
}

fn put_member(out: &mut Vec<u8>, row: &ClientRow) {
    out.extend_from_slice(b"{\"c\":\"");
    put_number(out, row.client.value());
    out.push(b'"');
    put_text(out, "u", row.user.as_deref());
    out.push(b'}');
}

fn put_channel(out: &mut Vec<u8>, row: &ChannelRow) {
    out.extend_from_slice(b"{\"c\":");
    put_string(out, &row.name);
    put_figure(out, "clients", Some(row.clients));
    out.push(b'}');
}

fn put_topic(out: &mut Vec<u8>, row: &TopicRow) {
    out.extend_from_slice(b"{\"t\":");
    put_string(out, &row.name);
    put_text(out, "store", Some(if row.is_on_disk { "disk" } else { "memory" }));
    put_figure(out, "messages", Some(row.messages));
    put_figure(out, "bytes", Some(row.bytes));
    put_figure(out, "oldest_ms", Some(row.oldest_ms));
    put_figure(out, "in_flight", Some(row.in_flight));
    put_figure(out, "consumers", Some(row.consumers));
    put_key(out, "groups");
    put_list(out, &row.groups, put_group);
    put_key(out, "sinks");
    put_list(out, &row.sinks, put_sink);
    out.push(b'}');
}

fn put_group(out: &mut Vec<u8>, row: &GroupRow) {
    out.extend_from_slice(b"{\"name\":");
    match &row.name {
        Some(name) => put_string(out, name),
        None => out.extend_from_slice(b"null"),
    }
    put_figure(out, "backlog", Some(row.backlog));
    put_figure(out, "in_flight", Some(row.in_flight));
    put_figure(out, "stalled_ms", Some(row.stalled_ms));
    put_figure(out, "consumers", Some(row.consumers));
    put_figure(out, "redelivered", Some(row.redelivered));
    put_figure(out, "dead", Some(row.dead));
    out.push(b'}');
}

fn put_sink(out: &mut Vec<u8>, row: &SinkRow) {
    out.extend_from_slice(b"{\"name\":");
    put_string(out, &row.name);
    put_figure(out, "backlog", Some(row.backlog));
    put_figure(out, "oldest_ms", Some(row.oldest_ms));
    put_figure(out, "in_flight", Some(row.in_flight));
    put_figure(out, "delivered", Some(row.delivered));
    put_figure(out, "retries", Some(row.retries));
    out.extend_from_slice(if row.is_up { b",\"up\":true" } else { b",\"up\":false" });
    put_text(out, "error", row.failure.as_deref());
    out.push(b'}');
}

fn put_backend(out: &mut Vec<u8>, row: &BackendRow) {
    out.extend_from_slice(b"{\"b\":");
    put_string(out, &row.id);
    put_figure(out, "n", Some(row.node.number().into()));
    put_text(out, "u", row.user.as_deref());
    put_text(out, "remote", Some(&row.remote.to_string()));
    put_figure(out, "since", Some(row.since_ms));
    put_key(out, "t");
    put_list(out, &row.topics, |out, topic| put_string(out, topic));
    put_figure(out, "topics", Some(row.topic_count));
    put_text(out, "group", row.group.as_deref());
    put_figure(out, "in_flight", Some(row.in_flight));
    put_figure(out, "buffered", Some(row.buffered));
    put_figure(out, "stalled_ms", Some(row.stalled_ms));
    out.push(b'}');
}

fn put_missing(out: &mut Vec<u8>, missing: &[NodeId]) {
    out.extend_from_slice(b",\"missing\":");
    put_list(out, missing, |out, node| put_number(out, node.number().into()));
}

/// Appends a node. Each node has all fields; those that are unknown are null.
fn put_node(out: &mut Vec<u8>, entry: &NodeEntry) {
    let NodeEntry { node, state, version, lost_ms, figures } = entry;
    let figures = figures.as_ref();
    out.extend_from_slice(b"{\"id\":");
    put_number(out, node.number().into());
    put_text(out, "state", Some(state.name()));
    put_figure(out, "lost_ms", *lost_ms);
    put_text(out, "version", version.as_deref());
    put_figure(out, "uptime", figures.map(|figures| figures.uptime_ms));
    put_figure(out, "clients", figures.map(|figures| figures.clients));
    put_figure(out, "backends", figures.map(|figures| figures.backends));
    put_rate(out, "in_per_s", figures.map(|figures| figures.received));
    put_rate(out, "out_per_s", figures.map(|figures| figures.delivered));
    put_text(out, "driver", figures.map(|figures| &*figures.driver));
    put_figure(out, "cores", figures.map(|figures| figures.cores));
    put_figure(out, "memory", figures.map(|figures| figures.memory_bytes));
    put_figure(out, "memory_max", figures.map(|figures| figures.memory_limit_bytes));
    out.push(b'}');
}

fn put_key(out: &mut Vec<u8>, key: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":");
}

fn put_text(out: &mut Vec<u8>, key: &str, text: Option<&str>) {
    put_key(out, key);
    match text {
        Some(text) => put_string(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

fn put_figure(out: &mut Vec<u8>, key: &str, figure: Option<u64>) {
    put_key(out, key);
    match figure {
        Some(figure) => put_number(out, figure),
        None => out.extend_from_slice(b"null"),
    }
}

fn put_rate(out: &mut Vec<u8>, key: &str, rate: Option<PerSecond>) {
    put_figure(out, key, rate.map(|PerSecond(tenths)| tenths / 10));
    if let Some(tenth @ 1..) = rate.map(|PerSecond(tenths)| tenths % 10) {
        out.extend_from_slice(&[b'.', b'0' + tenth as u8]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{NodeFigures, NodeStanding};
    use super::*;
    use crate::address::ClientId;
    use crate::address::remote::Remote;

    fn written(listing: Listing) -> String {
        let mut out = Vec::new();
        put_listing(&mut out, &listing);
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn a_node_has_all_fields_and_those_that_are_unknown_are_null() {
        let node = |number| NodeId::new(number).expect("a small number");
        let figures = NodeFigures {
            uptime_ms: 1,
            clients: 2,
            backends: 3,
            received: PerSecond(45),
            delivered: PerSecond(60),
            driver: "epoll".into(),
            cores: 7,
            memory_bytes: 8,
            memory_limit_bytes: 9,
        };
        let known = NodeEntry {
            node: node(1),
            state: NodeStanding::Up,
            version: Some("0.1.0".into()),
            lost_ms: None,
            figures: Some(figures),
        };
        let lost = NodeEntry {
            node: node(2),
            state: NodeStanding::Lost,
            version: None,
            lost_ms: Some(10),
            figures: None,
        };
        let list = NodeList { nodes: vec![known, lost], missing: vec![node(3)] };
        assert_eq!(
            written(Listing::Node(list)),
            concat!(
                r#"{"nodes":[{"id":1,"state":"up","lost_ms":null,"version":"0.1.0","uptime":1,"clients":2,"#,
                r#""backends":3,"in_per_s":4.5,"out_per_s":6,"driver":"epoll","cores":7,"#,
                r#""memory":8,"memory_max":9},"#,
                r#"{"id":2,"state":"lost","lost_ms":10,"version":null,"uptime":null,"clients":null,"#,
                r#""backends":null,"in_per_s":null,"out_per_s":null,"driver":null,"cores":null,"#,
                r#""memory":null,"memory_max":null}],"missing":[3]}"#
            )
        );
    }
    #[test]
    fn a_page_has_its_rows_the_next_one_and_the_missing_nodes() {
        let node = |number| NodeId::new(number).expect("a small number");
        let client = ClientId::from_value(1_463_819_408_261_513_216);
        let row = |user: Option<&str>, remote| ClientRow {
            client,
            user: user.map(Box::from),
            remote,
            path: "/ws".into(),
            since_ms: 5,
            channels: 6,
            buffered: 7,
        };
        let rows = vec![row(Some("a\"b"), ([10, 0, 0, 1], 80).into()), row(None, Remote::Unix)];
        let cursor = "3-17".parse().expect("a cursor");
        let page = Page { rows, next: Some(cursor), missing: vec![node(2)] };
        let n = client.node().number();
        assert_eq!(
            written(Listing::Client(page)),
            format!(
                concat!(
                    r#"{{"clients":[{{"c":"1463819408261513216","n":{n},"u":"a\"b","#,
                    r#""remote":"10.0.0.1:80","path":"/ws","since":5,"channels":6,"buffered":7}},"#,
                    r#"{{"c":"1463819408261513216","n":{n},"u":null,"remote":"unix","path":"/ws","#,
                    r#""since":5,"channels":6,"buffered":7}}],"next":"3-17","missing":[2]}}"#
                ),
                n = n
            )
        );
        let rows = vec![ChannelRow { name: "a".into(), clients: 1 }];
        assert_eq!(
            written(Listing::Channel(Page { rows, next: Some("a".into()), missing: vec![] })),
            r#"{"channels":[{"c":"a","clients":1}],"next":"a","missing":[]}"#
        );
        let row = BackendRow {
            id: "1".into(),
            node: node(2),
            user: None,
            remote: ([10, 0, 0, 1], 80).into(),
            since_ms: 3,
            topic_count: 9,
            topics: vec!["a".into(), "b".into()],
            group: Some("g".into()),
            in_flight: 4,
            buffered: 5,
            stalled_ms: 6,
        };
        assert_eq!(
            written(Listing::Backend(Page { rows: vec![row], next: None, missing: vec![] })),
            concat!(
                r#"{"backends":[{"b":"1","n":2,"u":null,"remote":"10.0.0.1:80","since":3,"#,
                r#""t":["a","b"],"topics":9,"group":"g","in_flight":4,"buffered":5,"#,
                r#""stalled_ms":6}],"next":null,"missing":[]}"#
            )
        );
        let group = |name: Option<&str>| GroupRow {
            name: name.map(Box::from),
            backlog: 1,
            in_flight: 2,
            stalled_ms: 6,
            consumers: 3,
            redelivered: 4,
            dead: 5,
        };
        let row = TopicRow {
            name: "t".into(),
            messages: 1,
            bytes: 2,
            oldest_ms: 3,
            consumers: 4,
            in_flight: 5,
            is_on_disk: true,
            groups: [None, Some("g")].map(group).into(),
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
        assert_eq!(
            written(Listing::Topic(Page { rows: vec![row], next: None, missing: vec![] })),
            concat!(
                r#"{"topics":[{"t":"t","store":"disk","messages":1,"bytes":2,"oldest_ms":3,"in_flight":5,"#,
                r#""consumers":4,"groups":[{"name":null,"backlog":1,"in_flight":2,"stalled_ms":6,"consumers":3,"#,
                r#""redelivered":4,"dead":5},{"name":"g","backlog":1,"in_flight":2,"stalled_ms":6,"consumers":3,"#,
                r#""redelivered":4,"dead":5}],"sinks":[{"name":"s","backlog":6,"oldest_ms":7,"#,
                r#""in_flight":8,"delivered":9,"retries":10,"up":false,"error":"refused"}]}],"#,
                r#""next":null,"missing":[]}"#
            )
        );
    }
}
