//! The command line: the arguments of every command, and the commands that are clients of the API.
//!
//! - `mod.rs`: the commands, and their help. `failure.rs`: the exit statuses.
//! - `push.rs`, `operate.rs`, `lists.rs`, `consume.rs`, `tap.rs`: commands that speak to a node. `token.rs`, `hash.rs`,
//!   `generate.rs`: commands that do not.
//! - `options.rs`, `address.rs`: which server, with which credentials. `connection.rs`, `message.rs`,
//!   `explain.rs`: the WebSocket to it, and its errors in words. `follow.rs`, `printer.rs`, `signals.rs`:
//!   streams of events.
//! - `terminal.rs`, `table.rs`, `units.rs`: output for people and for programs.
//!
//! A client knows the API as any other client does: nothing here imports the layers of a node but for the
//! configuration and the keys of tokens.

mod address;
mod connection;
mod consume;
mod explain;
mod failure;
mod follow;
mod generate;
mod hash;
mod lists;
mod message;
mod operate;
mod options;
mod printer;
mod push;
mod random;
mod signals;
mod table;
mod tap;
mod terminal;
mod token;
mod units;

use std::path::{Path, PathBuf};
use std::pin::Pin;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;

use crate::config::Config;
use consume::{ConsumeArguments, Consumption};
pub use failure::Failure;
use failure::USAGE_STATUS;
use follow::follow;
use generate::{CompletionsArguments, ManArguments};
use hash::HashArguments;
use lists::{
    BackendsArguments, ChannelsArguments, ClientsArguments, NodesArguments, OfflineTopics,
    TopicsArguments,
};
use operate::{CallArguments, CloseArguments, ReloadArguments};
use options::ServerOptions;
use push::{PublishArguments, SendArguments};
use tap::{TapArguments, TapStream};
use token::TokenArguments;

/// A distributed WebSocket gateway: back ends push to devices and read what they send.
///
/// Runs a node, and speaks to nodes that run.
#[derive(Debug, Parser)]
#[command(name = "gridcast", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  gridcast serve                       Run a node on this machine, to try it out
  gridcast publish news 'hello'        Push to all devices that are subscribed to news
  gridcast consume messages            Print what devices send
  gridcast clients --by-user 10000     Find the devices of a user
  gridcast help publish                Explain a command

Commands that speak to a node find it by --server or GRIDCAST_SERVER, and log
in with GRIDCAST_USER=NAME:PASSWORD or GRIDCAST_TOKEN. Prefer these variables
to --user and --token: others can see the arguments of a process.

Exit status:
  0    success
  1    the node answered with an error, or something failed
  2    wrong arguments, or a wrong configuration
  3    no node can be reached at the address, or the connection was lost
  4    the credentials are wrong, or do not allow it
  130  interrupted by Ctrl-C (143: by SIGTERM)
  141  the reader of the output is gone: gridcast consume messages | head -1";

/// A command of the program with its arguments.
#[derive(Debug, PartialEq, Eq, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "the process has one value")]
pub enum Command {
    /// Run a node until SIGTERM or Ctrl-C
    #[command(after_help = "\
Examples:
  gridcast serve
  gridcast serve --config /etc/gridcast/gridcast.toml
  GRIDCAST_LOG_LEVEL=debug gridcast serve")]
    Serve {
        /// Configuration file (TOML). Without one: listeners on loopback, routes /ws and /echo
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a configuration file and the GRIDCAST_ variables. Starts nothing
    #[command(after_help = "\
Examples:
  gridcast check --config gridcast.toml
  gridcast check --config gridcast.toml --health   Ask the node that runs with this file")]
    Check {
        /// Configuration file (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Ask the node that runs with this configuration on this machine for /healthz, and
        /// succeed only if the answer is 200
        #[arg(long)]
        health: bool,
    },
    /// Check this machine and say what to change. Changes nothing itself
    #[command(after_help = "\
Examples:
  gridcast doctor --config gridcast.toml
  gridcast doctor --json")]
    Doctor {
        /// Configuration file (TOML) to check the machine for. Without one: all CPUs, a mesh, as
        /// many clients as the machine allows
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print the result as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print a sample configuration file with every key
    #[command(after_help = "\
Example:
  gridcast config > gridcast.toml")]
    Config,
    /// A command that does not run a node.
    #[command(flatten)]
    Client(ToolCommand),
}

/// A command that speaks to a node, or prepares something for one.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum ToolCommand {
    /// Push a message to all subscribers of a channel
    #[command(
        after_help = "\
The answer tells how many subscribers took the message, and how many failed to.

Examples:
  gridcast publish news 'hello'
  date | gridcast publish clock -
  gridcast publish pictures --binary --file cat.jpg
  tail -f access.log | gridcast publish log --lines
  gridcast publish news 'hello' --server https://api.example.org",
        override_usage = "gridcast publish [OPTIONS] <CHANNEL> <DATA|-|--file FILE|--lines>"
    )]
    Publish(PublishArguments),

    /// Push a message to one client
    #[command(
        after_help = "\
gridcast clients finds the id of a client.

Examples:
  gridcast send 1463819408261513216 'hello, you'
  gridcast send 1463819408261513216 --file menu.json",
        override_usage = "gridcast send [OPTIONS] <CLIENT> <DATA|-|--file FILE|--lines>"
    )]
    Send(SendArguments),

    /// Call a function of a client's connection, such as info or subscribe
    #[command(after_help = "\
Examples:
  gridcast call 1463819408261513216 info
  gridcast call 1463819408261513216 subscribe news sport
  gridcast call 1463819408261513216 set_context_value user_id 10000
  gridcast call 1463819408261513216 set_context '{\"user_id\":\"10000\"}'

10000 is a number. Write '\"10000\"' for the text.")]
    Call(CallArguments),

    /// Close the connection of a client
    #[command(after_help = "\
gridcast clients finds the id of a client.

Examples:
  gridcast clients --by-user 10000
  gridcast close 1463819408261513216
  gridcast close 1463819408261513216 --code 4001 --reason 'logged in elsewhere'")]
    Close(CloseArguments),

    /// Print what devices send: the events of topics, one JSON object a line
    #[command(after_help = "\
Runs until Ctrl-C, and connects again when the connection is lost. Consumers of
a topic share its events: what this command prints, no other consumer gets.
Without --ack an event is lost if this command fails before it has printed it.
With --ack an event may be printed twice, marked \"redelivered\":true.

Examples:
  gridcast consume messages
  gridcast consume orders payments --ack | ./handle
  gridcast consume messages --count 1
  gridcast consume messages | jq -r .d.frame.data")]
    Consume(ConsumeArguments),

    /// List the nodes of the grid
    #[command(after_help = "\
A node that is not up is red. A dash stands for what a node did not tell. Needs
the role admin.

Examples:
  gridcast nodes
  gridcast nodes --json | jq -r 'select(.state != \"up\") | .id'")]
    Nodes(NodesArguments),

    /// List the clients of the grid, or find some of them
    #[command(after_help = "\
All filters that are given have to match. Needs the role admin.

Examples:
  gridcast clients --by-user 10000
  gridcast clients --channel news --node 2 --max 20
  gridcast clients --address 203.0.113.0/24
  gridcast clients --json | wc -l")]
    Clients(ClientsArguments),

    /// List the channels of the grid, and how many clients are subscribed
    #[command(after_help = "\
Needs the role admin.

Examples:
  gridcast channels --prefix room:
  gridcast channels --json | jq -r .c")]
    Channels(ChannelsArguments),

    /// List the topics of the grid, with their backlog and their consumers
    #[command(after_help = "\
A topic is red if an event has waited for 10 seconds, if none in flight was
finished for that long, if nobody reads a group with events, or if a sink fails.
OLDEST is the age of the oldest event that waits, STALLED how long no event in
flight was finished. Needs the role admin.

Examples:
  gridcast topics
  gridcast topics --json | jq 'select(.oldest_ms > 5000)'
  gridcast topics verify /var/lib/gridcast   Check the files of topics on disk")]
    Topics(TopicsArguments),

    /// List the back ends on the WebSocket API, and find one that does not read
    #[command(after_help = "\
STALLED is how long a back end has neither read nor acknowledged what waits for
it. From 5 seconds on it is red. Needs the role admin.

Examples:
  gridcast backends
  gridcast backends --topic orders
  gridcast backends --json | jq 'select(.stalled_ms > 5000)'")]
    Backends(BackendsArguments),

    /// Watch devices live: connects, refusals, messages both ways, calls, closes
    #[command(after_help = "\
Runs until Ctrl-C, and connects again when the connection is lost. Shows the
first 256 bytes of each message, and no tokens. More than --max-per-s events are
counted, not shown. Needs the role admin.

Examples:
  gridcast tap 1463819408261513216
  gridcast tap --by-user 10000
  gridcast tap --address 203.0.113.7         See why a device is refused
  gridcast tap --channel news --json | jq -c 'select(.what == \"close\")'")]
    Tap(TapArguments),

    /// Tell a node to read its configuration and certificates again
    #[command(after_help = "\
All or nothing: a wrong line leaves the running configuration as it is.
Settings that change only when the node starts again are named. Needs the role
admin. SIGHUP does the same.

Example:
  gridcast reload --server http://10.0.0.5:6789")]
    Reload(ReloadArguments),

    /// Make a token with which a device can connect, to try a route
    #[command(after_help = "\
Never prints a key. The configuration holds the secret of HS256 keys. For
RS256, ES256 and EdDSA it holds the public key, and --key-file names the
private one.

Examples:
  gridcast token --config gridcast.toml --sub 10000
  gridcast token --config gridcast.toml --route /ws --channel news --expires 1h
  gridcast token --key-file private.pem --algorithm ES256 --claim aud=chat")]
    Token(TokenArguments),

    /// Hash a password or token of an [[api.user]]
    #[command(after_help = "\
Asks for the secret, or reads it from standard input. All hashes of a
configuration need the same --memory and --passes.

Examples:
  gridcast hash
  openssl rand -hex 16 | tee secret.txt | gridcast hash")]
    Hash(HashArguments),

    /// Print the completions of a shell
    #[command(after_help = "\
Examples:
  gridcast completions bash > ~/.local/share/bash-completion/completions/gridcast
  gridcast completions zsh > ~/.zfunc/_gridcast
  gridcast completions fish > ~/.config/fish/completions/gridcast.fish")]
    Completions(CompletionsArguments),

    /// Print the manual page, or write those of all commands
    #[command(after_help = "\
Examples:
  gridcast man | man -l -
  gridcast man /usr/local/share/man/man1")]
    Man(ManArguments),
}

/// Parses the arguments of the process.
///
/// # Errors
/// The exit status: 2 after a message about an invalid argument; 0 after the help or the version, or 1 if
/// these could not be printed.
pub fn parse() -> Result<Command, u8> {
    let error = match Arguments::try_parse() {
        Ok(arguments) => return Ok(arguments.command),
        Err(error) => error,
    };
    let is_printed = error.print().is_ok();
    Err(match error.use_stderr() {
        true => USAGE_STATUS,
        false => u8::from(!is_printed),
    })
}

impl ToolCommand {
    /// The data directory whose topics are to be checked, if that is the command. It speaks to no node.
    pub fn directory_to_verify(&self) -> Option<&Path> {
        match self {
            Self::Topics(TopicsArguments { offline, .. }) => match offline.as_ref()? {
                OfflineTopics::Verify { directory } => Some(directory),
            },
            _ => None,
        }
    }

    /// Runs the command. `read` reads and checks a configuration file.
    pub fn run(self, read: impl FnOnce(&Path) -> Result<Config, String>) -> Result<(), Failure> {
        match self {
            Self::Token(arguments) => arguments.run(read),
            Self::Hash(arguments) => arguments.run(),
            Self::Completions(arguments) => arguments.run(),
            Self::Man(arguments) => arguments.run(),
            client => {
                let runtime = Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(|error| Failure::Failed(error.to_string()))?;
                // Boxed: otherwise each place where the runtime polls has its own copy of the code.
                let work: Pin<Box<dyn Future<Output = Result<(), Failure>>>> =
                    Box::pin(client.run_client());
                let ended = runtime.block_on(work);
                // A lookup of a name in progress would delay the end.
                runtime.shutdown_background();
                ended
            }
        }
    }

    async fn run_client(self) -> Result<(), Failure> {
        let server = |options: &ServerOptions| options.server(|name| std::env::var(name).ok());
        match self {
            Self::Publish(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Send(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Call(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Close(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Reload(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Nodes(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Clients(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Channels(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Topics(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Backends(arguments) => arguments.run(&server(&arguments.server)?).await,
            Self::Consume(arguments) => {
                let (server, reconnects) = (server(&arguments.server)?, !arguments.no_reconnect);
                follow(&server, &mut Consumption::new(arguments), reconnects).await
            }
            Self::Tap(arguments) => {
                let server = server(&arguments.server)?;
                arguments.prepare(&server).await?;
                follow(&server, &mut TapStream::new(&arguments), !arguments.no_reconnect).await
            }
            Self::Token(_) | Self::Hash(_) | Self::Completions(_) | Self::Man(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
