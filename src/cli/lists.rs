//! `nodes`, `clients`, `channels`, `topics`, `backends`: the lists of administration, page after page.

mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::connection::ApiConnection;
use super::failure::Failure;
use super::options::{Server, ServerOptions};
use super::table::Table;
use super::terminal::{Output, ProgressLine, Style, remark, unix_ms};
use super::units;
use rows::{BACKENDS, CHANNELS, CLIENTS, ListView, NODES, TOPICS};

/// The most rows of a page, which is the most that the API gives.
const PAGE_MAX: u64 = 1000;

/// The arguments of `nodes`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct NodesArguments {
    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The arguments of `clients`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ClientsArguments {
    /// Only clients of this user: the user_id of their context
    #[arg(long, value_name = "USER")]
    by_user: Option<String>,

    /// Only subscribers of this channel
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,

    /// Only clients with this IP address, or in this network, such as 10.0.0.0/8
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,

    /// Only clients of the route with this path
    #[arg(long, value_name = "PATH")]
    route: Option<String>,

    /// Only clients on the node with this id
    #[arg(long, value_name = "ID")]
    node: Option<u16>,

    /// At most this many. Without it: all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The arguments of `channels`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct ChannelsArguments {
    /// Only channels whose names begin with this
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,

    /// At most this many. Without it: all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The arguments of `topics`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(args_conflicts_with_subcommands = true)]
pub struct TopicsArguments {
    #[command(subcommand)]
    pub(super) offline: Option<OfflineTopics>,

    /// At most this many. Without it: all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// The arguments of `backends`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct BackendsArguments {
    /// Only back ends that consume this topic
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,

    /// At most this many. Without it: all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max: Option<u64>,

    #[command(flatten)]
    pub(super) server: ServerOptions,
}

/// What can be done with topics while their node does not run.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub(super) enum OfflineTopics {
    /// Check the files of topics on disk, while no node uses them. Changes nothing
    #[command(after_help = "\
Reads every file. Prints the topics with their groups and backlogs, and what is
damaged, by file and offset. Fails if anything is.

Example:
  gridcast topics verify /var/lib/gridcast")]
    Verify {
        /// The data directory, data.dir
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

impl NodesArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        walk(server, &NODES, Map::new(), None, self.server.json).await
    }
}

impl ClientsArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        walk(server, &CLIENTS, self.filter(), self.max, self.server.json).await
    }

    fn filter(&self) -> Map<String, Value> {
        let texts = [
            ("user", &self.by_user),
            ("channel", &self.channel),
            ("address", &self.address),
            ("route", &self.route),
        ];
        let texts =
            texts.into_iter().filter_map(|(name, text)| Some((name, json!(text.as_ref()?))));
        let node = self.node.map(|node| ("node", json!(node)));
        texts.chain(node).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

impl ChannelsArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        let prefix = self.prefix.iter().map(|prefix| ("prefix".to_owned(), json!(prefix)));
        walk(server, &CHANNELS, prefix.collect(), self.max, self.server.json).await
    }
}

impl TopicsArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        walk(server, &TOPICS, Map::new(), self.max, self.server.json).await
    }
}

impl BackendsArguments {
    pub(super) async fn run(&self, server: &Server) -> Result<(), Failure> {
        let topic = self.topic.iter().map(|topic| ("topic".to_owned(), json!(topic)));
        walk(server, &BACKENDS, topic.collect(), self.max, self.server.json).await
    }
}

/// A page of a list. Rows keep the text that the API wrote.
#[derive(Debug)]
struct ListPage {
    rows: Vec<Box<RawValue>>,
    next: Option<String>,
    /// The nodes that did not answer.
    missing: Vec<u64>,
}

impl ListPage {
    /// Reads the result of a list whose rows are in this field.
    fn read(field: &str, result: &RawValue) -> Option<Self> {
        let mut fields: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(result.get()).ok()?;
        let rows = serde_json::from_str(fields.remove(field)?.get()).ok()?;
        let next = fields.get("next").map_or(Ok(None), |next| serde_json::from_str(next.get()));
        let missing =
            fields.get("missing").map_or(Ok(Vec::new()), |ids| serde_json::from_str(ids.get()));
        Some(Self { rows, next: next.ok()?, missing: missing.ok()? })
    }
}

/// Prints the rows of a list, at most `max`.
async fn walk(
    server: &Server,
    list: &ListView,
    filter: Map<String, Value>,
    max: Option<u64>,
    json: bool,
) -> Result<(), Failure> {
    let mut pages =
        Pages { list, filter, after: None, connection: ApiConnection::open(server).await? };
    let mut output = Output::new();
    let mut table = Table::new(list.columns);
    let mut progress = ProgressLine::new(list.noun, output.is_terminal);
    let (mut count, mut missing) = (0, BTreeSet::new());
    loop {
        let left = max.map_or(PAGE_MAX, |max| max - count);
        let page = pages.next(left.min(PAGE_MAX)).await?;
        missing.extend(page.missing);
        count += page.rows.len() as u64;
        print(&mut output, list, &mut table, &page.rows, json)?;
        progress.show(count);
        let is_enough = max.is_some_and(|max| count >= max);
        if is_enough || pages.after.is_none() {
            break;
        }
    }
    if count == 0 && !json {
        let lost = if list.is_paged { lost_nodes(&mut pages.connection).await } else { None };
        let lost =
            lost.map_or(String::new(), |lost| format!(" ({lost}: what was there is not listed)"));
        remark(&format!("no {}{lost}", list.noun));
    }
    pages.connection.close().await;
    // The rows of `nodes` tell the states of all nodes.
    if list.is_paged && !missing.is_empty() {
        let ids: Vec<String> = missing.iter().map(u64::to_string).collect();
        let ids = ids.join(", ");
        return Err(Failure::Failed(format!(
            "{}: incomplete: without what is on the nodes that did not answer: {ids}",
            server.address
        )));
    }
    Ok(())
}

/// Names the nodes that were lost recently, and says when: nothing that they held is listed or watched. `None`: there
/// is none, or the server does not say.
pub(super) async fn lost_nodes(connection: &mut ApiConnection) -> Option<String> {
    let result = connection.call(NODES.method, &Map::new()).await.ok()?;
    let nodes = ListPage::read(NODES.field, &result)?.rows;
    let lost = nodes.iter().filter_map(|node| {
        let node: Value = serde_json::from_str(node.get()).ok()?;
        let ago = units::ago_ms(node["lost_ms"].as_u64()?);
        Some(format!("node {} was lost {ago}", node["id"]))
    });
    let lost: Vec<String> = lost.collect();
    (!lost.is_empty()).then(|| lost.join(", "))
}

/// Walks the pages of a list.
struct Pages<'a> {
    list: &'a ListView,
    filter: Map<String, Value>,
    // Where the next page begins. `None`: at the beginning, or there is none.
    after: Option<String>,
    connection: ApiConnection,
}

impl Pages<'_> {
    /// Fetches the next page, of at most `max` rows.
    async fn next(&mut self, max: u64) -> Result<ListPage, Failure> {
        let mut params = self.filter.clone();
        if self.list.is_paged {
            params.insert("max".into(), json!(max));
        }
        if let Some(after) = &self.after {
            params.insert("after".into(), json!(after));
        }
        let result = self.call(&params).await?;
        let server = &self.connection.server().address;
        let failed = |why: &str| Failure::Failed(format!("{server}: {}: {why}", self.list.method));
        let page = ListPage::read(self.list.field, &result)
            .ok_or_else(|| failed("the answer is not a list: is the node of another version?"))?;
        if page.next.is_some() && page.next == self.after {
            return Err(failed("the pages do not end"));
        }
        self.after = page.next.clone();
        Ok(page)
    }

    /// Makes a call. If the output was not read for a while, neither were the server's pings, and the
    /// connection is lost: then another one serves.
    async fn call(&mut self, params: &Map<String, Value>) -> Result<Box<RawValue>, Failure> {
        match self.connection.call(self.list.method, params).await {
            Err(Failure::Unreachable(_)) if self.after.is_some() => {
                self.connection = ApiConnection::open(self.connection.server()).await?;
                self.connection.call(self.list.method, params).await
            }
            result => result,
        }
    }
}

fn print(
    output: &mut Output,
    list: &ListView,
    table: &mut Table<'_>,
    rows: &[Box<RawValue>],
    json: bool,
) -> Result<(), Failure> {
    if json {
        rows.iter().try_for_each(|row| output.json(row.get()))?;
    } else {
        let now_ms = unix_ms();
        let values = rows.iter().map(|row| serde_json::from_str(row.get()).unwrap_or_default());
        let rows = values.map(|value: Value| (list.row)(&value, now_ms)).collect();
        output.write(&table.page(rows, Style::of_output()))?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(field: &str, text: &str) -> Option<ListPage> {
        ListPage::read(field, &RawValue::from_string(text.to_owned()).expect("JSON"))
    }

    #[test]
    fn a_page_keeps_the_text_of_its_rows() {
        let text = r#"{"clients":[{"c": "1","x":1.0}],"next":"1-7","missing":[2]}"#;
        let page = page("clients", text).expect("a page");
        assert_eq!(page.rows[0].get(), r#"{"c": "1","x":1.0}"#);
        assert_eq!((page.next.as_deref(), &page.missing[..]), (Some("1-7"), &[2][..]));
    }

    #[test]
    fn a_page_without_the_rows_is_no_page() {
        assert!(page("clients", r#"{"channels":[]}"#).is_none());
        assert!(page("clients", r#"{"clients":{}}"#).is_none());
        let last = page("nodes", r#"{"nodes":[]}"#).expect("a page");
        assert!(last.rows.is_empty() && last.next.is_none() && last.missing.is_empty());
    }
}
