//! gridcast is a long-connection gateway. Devices keep WebSocket connections to its *edge*. Back
//! ends push messages to the devices, and read what they send, through its *API*.
//!
//! # The map
//!
//! | layer | responsibility |
//! |---|---|
//! | [`address`] | addresses of nodes, shards and clients. A client's id is its address |
//! | [`slot_map`] | a table that reuses slots, and whose keys tell the values of one slot apart |
//! | [`protocol`] | parsing and encoding: HTTP, WebSocket, the API's JSON. Pure |
//! | [`message`] | the messages of shards, the mesh and the node: one enum per direction |
//! | [`queue`] | topics: messages of clients that wait for back ends, with flow control by credit, and the logs of those on disk. Pure |
//! | [`channel`] | channels with history: their messages, idempotency keys; who is present. Pure |
//! | [`metrics`] | the counters of a shard, the figures of the process, and their text for `/metrics` |
//! | [`console`] | the files of the page for operators, at `/console` |
//! | [`shard`] | all state of one core: connections, channels, calls, fan-out, timers. Pure |
//! | [`runtime`] | threads, io_uring and epoll, client sockets, mailboxes: the only place with unsafe code; with `mesh::quic` and `bridge::http` the only one with clocks and network I/O |
//! | [`bridge`] | requests to HTTP services: the key sets of issuers, admission hooks. Sinks, which carry events to engines. Sources, whose messages are calls |
//! | [`mesh`] | the other nodes: membership, their interest in channels, delivery of messages |
//! | [`config`] | one definition per key. Yields the checked values, the reference page and the sample file |
//! | [`cli`] | the command line, and the commands that are clients of the API |
//! | [`doctor`] | checks the machine, and reports problems |
//! | [`node`] | assembles a node, runs it, shuts it down |
//!
//! # Where to find it
//!
//! | question | place |
//! |---|---|
//! | Where is a publish counted? | `Clients::walk` in `shard::client::fanout`, on each shard. The sum for `{s, f}`: of other nodes in `mesh::publish`, of all in `shard::backend::pending` |
//! | Where is a message for users delivered? | `Clients::walk_users` in `shard::client::for_users`, on every shard of the grid; sent to the other nodes by `Mesh::carry_out_for_users` in `mesh::publish` |
//! | Where does a publish to a channel with history get its position, and its order? | `ChannelHomes::accept` in `shard::homes`; routed by `shard::publishing` |
//! | Which node numbers the messages of a channel in a grid, and who has copies? | `GridChannels` in `channel::grid` |
//! | Where is it decided who joins a channel and leaves it? | `HomePresence` in `channel::presence`, told by the shards' `LocalPresence`; `shard::client::presence` tells devices and topics |
//! | Where does a device get what it has missed? | `shard::client::recovery`, from `Histories::recover` in `channel::histories` |
//! | Where does a client held by `hold_until` continue? | `change_context` in `shard::client::functions` ends the pause |
//! | Where does any paused connection continue? | `Connections::unpause` in `shard::connection::reading`, then `Shard::resume` in `shard::input` |
//! | Where does a client continue that waits for room in a topic? | `Feeders::poll_ready` in `shard::topics::feeders`; deferred clients in `Shard::read_waiting`, in `shard::input` |
//! | Where are the clients of a lost node reported? | `shard::last_wills`, told by `Mesh::tell_dead` in [`mesh`] |
//! | Where does a call wait for other shards and nodes, and time out? | `open_question` and `expire` in `shard::backend::calls`; a missing tally adds nothing, any other call fails |
//! | Where is the answer to a call written, over HTTP too? | `Connections::reply` and `write_replies` in `shard::connection::answers`, in the order of the requests |
//! | Where is a slow client closed, or its message dropped? | `Clients::walk` and `Clients::send` in `shard::client`; then `Connections::close_slow` |
//! | Where is io_uring or epoll chosen? | `choose_driver` in `runtime::check`, and `ShardStart::start` in `node::shards` if the rings of the shards fail later |
//! | Where does a request present its credentials? | `Credentials::of` in `protocol::credentials` |
//! | Where is a call to an unreachable node refused? | `Mesh::forward` in `mesh::outbound` |
//! | Where is a back end closed that takes no events? | `queue::topic`, then `ToConsumer::Evict` in `shard::messages` |
//! | Where is a reload applied to open connections? | `apply` in `shard::reload` |
//! | Where is a device watched for a tap? | `Turn::tap_client` in `shard::taps::telling` tells what happens to it; `mark` in `shard::taps` decides which taps match |
//! | Where are clients and channels found for a list? | `shard::client::list`, in the slices of `shard::lists::walks` |
//! | Where is a list of administration gathered? | `shard::lists` asks the shards of all nodes; each answers in `shard::messages` |
//! | What is shed when memory is short, in which order? | the table at the top of `shard::memory` |
//! | Where is a handshake accepted or refused? | `shard::client::handshake` |
//! | Where is a message of a client turned into an event? | `shard::client::messages` |
//! | Where is a call of a device carried out, and when is its `push` answered? | `shard::client::device`; `Effect::EventStored` of `queue::topic` |
//! | Where does a device renew its token? | `shard::client::renewal`; a token whose key is missing waits in `shard::admission` |
//! | Where is a device told when to come back? | `hint_close` in `shard::connection::device` |
//! | Where is an event delivered to a consumer? | `shard::backend::consumers` |
//! | Where does the lease of an event end? | an acknowledgement: `shard::backend::acknowledge`, then `queue::topic`; a refusal or the time: `refused` and `expire_leases` in `queue::topic::lease` |
//! | Where is an event taken over HTTP? | `shard::backend::takes` joins the topics, waits and answers; the event stays with `queue::topic::taken` until `shard::backend::settle` |
//! | Where is an event handed to a sink? | `HomeTopics::poll_sink_events` in `shard::topics::sinks`; batched in `bridge::sinks`, delivered in `bridge::engines` |
//! | Where is an event of a topic on disk stored? | `OpenLog::write` in `runtime::disk`; then `Topic::handle_news` in `queue::topic::disk` |
//! | Where is a call of a webhook's answer carried out? | `read_bridge_call` in `shard::calls`, called by `shard::messages`; the calls of a batch in `bridge::sinks::runner` |
//! | Where is the call of a source carried out, and its message acknowledged? | the same way as a webhook's; `bridge::call_sources::runner`, and the engine's file in `bridge::engines` |
//! | Where is a slow consumer closed? | `Connections::close_slow` in `shard::connection::lifecycle` |
//! | Where does a connection get the address of a proxy's client? | [`shard`]'s `proxied`; the PROXY protocol header is read in `runtime::driver::proxied` |
//! | Where do idle connections time out? | `shard::connection::timeouts` |
//! | Where does a command connect to a node, and say why it cannot? | `cli::connection`, `cli::explain` |
//!
//! # The arrows
//!
//! A layer imports only layers to its left. `tests/architecture.rs` enforces this table. The same
//! test restricts who may name glommio, io_uring, quinn, tokio, hyper, async_nats, kafka_protocol, redis, tungstenite, the sessions of rustls,
//! and the sockets of `std::net`.
//!
//! ```text
//! address ← protocol ← message ← queue, channel ← shard ← runtime ← mesh, bridge ← node ← main
//!  metrics, slot_map ←────┘    console ←──┘                         config ←──┘
//!                                              runtime, mesh, config ← doctor ← main
//!                                                    protocol, config ← cli ← main
//! ```
//!
//! Only `node`, `doctor`, `cli` and `main` import `config`, which takes `WhenFull` from `queue`, and
//! users, token rules, admission hooks and HTTP limits from `protocol`. Every other layer receives its settings in a struct of its own. The
//! commands of `cli` know a node by its API alone, like any other client.
//!
//! # Three ideas
//!
//! Three of the five ideas in `docs/internals/architecture.md`:
//!
//! 1. **A shard is a value.** Bytes, messages and the time go in (`handle_*`). Messages, writes and
//!    actions come out (`poll_*`). In a test a node is a `Vec` of shards, and a timeout of a minute
//!    takes no time. Inside a shard, parts with private state borrow a turn and push steps for each
//!    other; see [`shard`].
//! 2. **The id is the address.** A client's id names its node and shard, so that no directory is
//!    needed. Its time part keeps ids unique, also across restarts: `runtime::ids` records the
//!    times in use.
//! 3. **Frame once.** Server frames are not masked, so the same bytes serve every subscriber. This
//!    holds for compressed frames too, because no message that the server sends
//!    refers to an earlier one (`protocol::deflate`).
//!
//! # Messages by direction
//!
//! A shard sends a [`LocalMessage`](message::LocalMessage) to a shard of its node, a
//! [`GridMessage`](message::GridMessage) to a shard of any node, and a [`ToMesh`](message::ToMesh) to the
//! mesh. It receives the first two, [`FromMesh`](message::FromMesh) and [`FromNode`](message::FromNode).
//! `shard::messages` passes each kind to its part. Between nodes only a `GridMessage`, and what two meshes say
//! to each other, crosses the wire. A message that its receiver does not know does not compile.
//!
//! # The life of a publish
//!
//! 1. The kernel receives bytes into a buffer of `runtime::ring`. Without io_uring,
//!    `runtime::poller` receives them into its only buffer. `runtime::driver` passes them to
//!    `Shard::handle_bytes`, decrypted by `runtime::tls` if need be. An idle connection
//!    owns no buffer. Only an HTTP connection keeps up to 1 KiB, the head of its last request with
//!    a body, until it is closed or memory is short.
//! 2. `shard::backend` (over HTTP, `shard::requests`) gets a whole message from
//!    `protocol::assembler`, and `protocol::api` parses the call in place. If a request over HTTP
//!    has the same head as the last one, only the length and the credentials are parsed again
//!    (`protocol::http`).
//! 3. `Shard::call` (`shard::calls`) routes the call. If only clients of this shard can be
//!    subscribed, it publishes at once. Otherwise `shard::backend` encodes one frame, opens a
//!    question in `backend::pending`, and sends it to every shard that may have subscribers
//!    (`shard::interest`), itself included.
//! 4. `runtime::bus` delivers the message as a reference, through one mailbox per pair of shards.
//!    Each mailbox keeps its order. Two promises depend on that: subscribe before publish, and the
//!    order of a back end's messages.
//! 5. On each of these shards `client::fanout` walks through the channel's members in slices,
//!    pushes the frame to their outbound queues, and counts it as delivered or failed. Each
//!    subscriber gets the form it agreed on, plain or in an envelope, compressed or not, made once
//!    (`client::variants`).
//!    The frames of a burst are coalesced once for all subscribers.
//! 6. At the end of the turn each connection with queued output gets one gathered send, and all
//!    sends are submitted together. Fan-out writes have a budget per turn, so that they do not
//!    delay other output. A socket that would block delays only itself.
//! 7. The tallies of the shards are summed in `backend::pending`. The back end gets `{s, f}` when
//!    all have arrived or `limits.answer_ms` has passed, in the order of its calls
//!    (`connection::replies`).
//!
//! A publish to a channel with history takes another way in step 3: to the home of the channel, which gives it a position and
//! has the shards carry it out, in the same order everywhere (`shard::publishing`, `shard::homes`). It comes back as the
//! position and the tallies.
//!
//! # The life of a client's message
//!
//! 1. `client::messages` decodes the message and encodes the event, once.
//! 2. `shard::topics` sends the event to the topic's home shard, as far as its credit goes
//!    (`topics::feeders`). Without credit the event waits, and reading from the client pauses. Its
//!    pings, pongs and close frame are still handled (`connection::pending_close`). Once 1 MiB of
//!    events waits, reading pauses before the next message is decoded.
//! 3. The home (`topics::home_topics`, `queue::topic`) delivers the event to a consumer with room in its
//!    window. The event is kept until the consumer's shard reports that it was written
//!    (`backend::consumers`). If the connection breaks before that, another consumer gets it.
//! 4. When the topic has room again, the client's read-ahead is processed (`Shard::resume`).
//!
//! # The life of a client whose node is lost
//!
//! 1. Each shard registers its clients with a watcher, which is a shard of another node
//!    (`shard::last_wills`).
//! 2. `mesh::upkeep` pings each node (`mesh::liveness`), and ends the session with an unreachable
//!    one (`mesh::sessions`). Calls for its clients fail from then on.
//! 3. All nodes agree in `mesh::membership` that the node is dead, and the mesh tells every shard.
//! 4. The watcher puts the close events of the lost clients into the topics of its own node
//!    (`shard::last_wills`).
//!
//! # The life of a request whose user has a hashed secret
//!
//! 1. A request is checked at its head, before its body is received. Plain secrets, and those
//!    verified recently, are compared at once.
//! 2. For any other secret `shard::access` parks the request, reserves its answer's place, and
//!    pauses the connection.
//! 3. `access::verification_queue` chooses the next verification fairly, so that guessing does not lock out
//!    others. A verification takes longer than many turns, so one thread of the node runs them all
//!    (`runtime::verifier`).
//! 4. The result arrives through the bus, and the request continues (`shard::requests`).
//!
//! # The life of a handshake that needs the world
//!
//! 1. `shard::client::handshake` finds that a key is missing, or that the route has an admission hook, and
//!    returns what the handshake needs.
//! 2. `shard::admission` parks the request and pauses the connection, as for a hashed secret, and sends a
//!    message to the bridge.
//! 3. The bridge fetches the keys, or asks the hook. Many handshakes of a shard share one question for keys,
//!    and all shards share one fetch (`bridge::keys`). Questions for a hook queue there (`bridge::hooks`).
//! 4. The answer arrives through the bus. The handshake is checked again from its start, with the new
//!    keys or with what the hook grants. Its deadline passes in the shard, whatever the bridge does.
//!
//! # Rate limits and fairness
//!
//! `shard::rate` stores one number per client or address: the time when its bucket is full again. A
//! client over its message rate is paused. Connections per address are counted by the home of the
//! address, a shard chosen by hash like that of a topic (`address::placement`,
//! `access::addresses`). Behind a trusted proxy that is the address which the proxy tells. `shard::node_state` is shared by all shards of a node: the call quota of
//! each user, and the bits of `shard::interest`, which say which shards may have subscribers of a
//! channel. Settings change only by a reload.
//!
//! Connections cannot starve each other even without configured limits. `shard::work` estimates the
//! cost of input, gives each connection a slice of a turn, and reads those that always use it up
//! last. Other work that can arrive in bulk has a budget per turn too: timers, closing, and
//! unsubscribing clients that are gone (`client::subscriptions`). Sockets that send without pause
//! are received from in turns, one buffer each, so that the others find buffers
//! (`runtime::driver::heavy`).
//!
//! # The life of a reload
//!
//! 1. On SIGHUP or `admin.reload` the thread of `node::reload` reads the configuration again and checks everything: the file, the
//!    certificates, the key files. If a check fails, nothing changes.
//! 2. `config::changes` names each changed setting, and those that need a restart.
//! 3. New [`Settings`](shard::settings::Settings) are made from those in use: users and routes keep
//!    their indices, by which connections refer to them. `runtime::reload` passes the settings to
//!    every shard, which applies them between two turns (`Shard::handle_reload`).
//! 4. `shard::reload` visits the open connections in slices: it closes clients without a route and
//!    back ends that may do less, and gives the others their new limits.
//!
//! # Logging of connections
//!
//! `shard::trail` logs each step of a connection from accept to close, at level `debug`. The shard
//! uses `tracing`, which is a facade without I/O; `node` decides where the lines go. The layers
//! below the shard log nothing.
//!
//! If `log.access` is on, `shard::connection::access_log` counts for each connection, and writes a line
//! when it ends. The bit that asks for this lies beside that of the taps, so that a message of a
//! connection that nobody observes costs one test.
//!
//! # Memory
//!
//! `runtime::memory` counts all allocations, so that memory held on behalf of peers needs no
//! accounting of its own. `runtime::budget` compares the total with `limits.memory_bytes` and
//! informs each shard once a turn. `shard::memory` decides what is refused or closed first, and
//! does its shard's part. All shards share one total, `shard::shed_round`, so that together they
//! free about the excess.
//!
//! # The thread of the mesh
//!
//! [`mesh::Mesh`] is a value like a shard. `mesh::quic` drives it on a thread of its own. On the
//! bus the thread has a mailbox of its own, like each shard. The thread keeps one QUIC connection
//! to each other node, with a stream per sender. With `mesh.threads`, other threads carry these connections
//! (`mesh::quic::carriers`): they encrypt, decrypt and send. `mesh::identity` decides which nodes belong to the
//! grid. See [`mesh`] for its files.
//!
//! # The thread of the bridge
//!
//! `bridge::Bridge` is a value like a shard. `bridge::http` drives it on a thread of its own, with a tokio
//! runtime of its own, so that TLS and JSON delay neither shards nor heartbeats. Messages of shards come
//! through one bounded channel (`runtime::outlet`); answers go through the bus.
//!
//! # The life of an event on disk
//!
//! 1. The home of the topic holds the event back (`queue::topic::disk`), and passes it to the log at the end of the turn
//!    (`shard::topics::logs`).
//! 2. The thread of the logs takes the changes of all shards through one bounded channel, writes them to the files of each
//!    log, syncs each once, and tells the homes what is stored (`runtime::disk`). What to write, and what a file means after
//!    a crash, is decided by a value without I/O (`queue::log`).
//! 3. The home hands the event to each group that has all earlier ones and has room in its window, answers the back end
//!    that has pushed it, and gives the feeding shard new credit. Groups that lag get the event later, from the files.
//! 4. Acknowledgements go to the log too. A file is removed when every group has settled all of its events.
//!
//! # The life of an event with a sink
//!
//! 1. The home of the topic keeps the event in the group of the sink (`queue::topic`). The bridge tells the home that
//!    the sink has begun, and the home hands out events within a window.
//! 2. `bridge::sinks` makes batches. No two batches in flight have events of the same client, so a batch that fails
//!    is sent again without breaking the order.
//! 3. An engine of `bridge::engines` delivers a batch. A webhook may answer with calls. Shards carry them out one
//!    after another, and answer the bridge instead of a connection.
//! 4. When the engine has acknowledged the batch, and its calls are carried out, the bridge reports the numbers of
//!    the events to the home, which frees their room.
//!
//! # The thread that samples the process
//!
//! `runtime::usage` reads procfs every 5 seconds and stores the figures in `shard::node_state`. A shard
//! that answers `/metrics` reads no file.
//!
//! # Standard error
//!
//! `runtime::log` is a bounded queue, and one thread that writes it to standard error. If the
//! reader is gone or stalled and the queue is full, lines are dropped and counted. Nothing else is
//! affected.
//!
//! # What is absent
//!
//! - locks
//! - a task, channel or buffer per connection. There are two exceptions:
//!   `protocol::deflate::History`, for clients whose compressed messages refer to earlier ones, and
//!   the last head of an HTTP connection (`protocol::http`)
//! - a shared map of channels or clients. The bits of `shard::interest` name neither
//! - a registry of metrics
//! - traits with one implementation
//! - cargo features that change behaviour

// These macros panic when standard output or error cannot be written: see `runtime::log`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]
#![cfg_attr(not(test), warn(unreachable_pub))]

pub mod address;
pub mod bridge;
pub mod channel;
pub mod cli;
pub mod config;
pub mod console;
pub mod doctor;
pub mod mesh;
pub mod message;
pub mod metrics;
pub mod node;
pub mod protocol;
pub mod queue;
pub mod runtime;
pub mod shard;
pub mod slot_map;
