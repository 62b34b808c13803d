//! gridcast: a long-connection gateway. Devices hold WebSocket connections to its *edge*; back ends
//! push to them and read what they send through its *API*.
//!
//! # The map
//!
//! | layer | what it knows |
//! |---|---|
//! | [`address`] | who is meant: node, shard, client. A client's id is its address |
//! | [`slot_map`] | a table whose keys never name a later value |
//! | [`protocol`] | bytes ⇄ meaning: HTTP, WebSocket, the API's JSON. Pure |
//! | [`message`] | what shards say to each other |
//! | [`queue`] | messages of clients that wait for back ends: topics, and the credit that feeds them. Pure |
//! | [`metrics`] | what a shard counts |
//! | [`shard`] | all state of one core: connections, channels, calls, fan-out, timers. Pure |
//! | [`runtime`] | threads, rings, sockets, mailboxes: the only place with I/O, clocks and unsafe code |
//! | [`mesh`] | other nodes: who is there, what they want to hear, how messages reach them |
//! | [`config`] | one definition per key; the file and the variables → checked values, the reference page, the sample file |
//! | [`doctor`] | reads the machine → what is right and wrong with it |
//! | [`node`] | puts a node together, runs it, takes it down |
//!
//! # The arrows
//!
//! A layer imports only what stands to its left; `tests/architecture.rs` holds this table, and who
//! may name glommio, io_uring, quinn and tokio, rustls' sessions and `std::net`'s sockets.
//!
//! ```text
//! address ← protocol ← message ← queue ← shard ← runtime ← mesh ← node ← main
//!            metrics ←────┘      ↑ slot_map (also of mesh)    config ←──┘
//!                                              runtime, mesh, config ← doctor ← main
//! ```
//!
//! Only `node`, `doctor` and `main` see `config` (which takes one enum from `queue`, and the API's
//! users from `protocol`): each layer is told what it needs in a struct of its own.
//!
//! # Three ideas
//!
//! 1. **A shard is a value.** Bytes, messages and the time go in (`handle_*`); messages, writes and
//!    actions come out (`poll_*`). A node of shards is a `Vec` in a test, and a timeout of a minute
//!    passes in no time.
//!    Inside it, parts with private state borrow a turn and leave steps to each other; see [`shard`].
//! 2. **The id is the address.** It names node and shard, so no directory is asked; its time part
//!    keeps it from being given out twice, over restarts by a record of the times used (`runtime::ids`).
//! 3. **Frame once.** Server frames are not masked, so the same bytes serve every subscriber; compressed
//!    ones too, since no message refers to those before it (`protocol::deflate`).
//!
//! # The life of a publish
//!
//! 1. The kernel puts bytes into a buffer that `runtime::ring` provided; `runtime::driver` shows them
//!    to `Shard::handle_bytes`, over TLS what `runtime::tls` makes of them. An idle connection owns
//!    no buffer.
//! 2. `shard::backend` (or `shard::requests`, over HTTP) gets a whole message from
//!    `protocol::assembler`, in place, and `protocol::api` reads the call from it, in place. Over
//!    HTTP, a connection that sends the head of its last call again has only the length and the
//!    credentials read anew (`protocol::http`).
//! 3. `Shard::call` (`shard::calls`) routes it. If only clients of this shard can be subscribed, it goes to
//!    them at once. Otherwise `shard::backend` encodes one frame, opens a question in `backend::pending`,
//!    and asks those who may have subscribers (`shard::interest`), itself and others alike, through the turn.
//! 4. `runtime::bus` hands it to each: a reference, through one mailbox per pair of shards. That a
//!    pair's messages keep their order is what "subscribe, then publish" and the order of a back
//!    end's messages rest on.
//! 5. There `client::fanout` walks through the channel's members, in slices, and pushes the frame to
//!    each outbound queue, in the form that its client agreed on: the compressed one is made when the
//!    first needs it (`client::variants`). The frames of a burst to one channel are joined, once for
//!    all of them. A connection is noted once as having something to write.
//! 6. At the end of the turn noted connections get one gathered send each, however many frames they
//!    got; all sends of a turn are one submission. Of those that only a fan-out reached a turn has
//!    few, so that others do not wait for them. A socket that would block waits alone.
//! 7. The tallies come back and add up in `backend::pending`; complete, or after `limits.answer_ms`, the
//!    back end gets `{s, f}`, in the order of its calls (`connection::replies`).
//!
//! # The life of a client's message
//!
//! `client::messages` encodes the event, once, and leaves it to `shard::topics`, which pushes it to the
//! topic's home shard against credit (`topics::feeders`). Without credit it waits and the client is not read
//! from, though its pings, pongs and close frame are heard (`connection::pending_close`). Once 1 MiB waits, clients
//! are stopped before their next message is decoded. The home (`topics::homes`, `queue::topic`) hands it to a
//! consumer that has room, keeps it until the consumer's shard says that it was written
//! (`backend::consumers`), and gives it to another if the connection dies before that.
//!
//! # The life of a client whose node is lost
//!
//! Each shard names its clients to a guardian, a shard of another node (`shard::wards`). When the grid gives
//! the node up, the guardian puts their close events into the topics of its own node.
//!
//! # The life of a request whose user has a hashed secret
//!
//! `shard::access` keeps the request, with a place among the answers, and pauses its connection;
//! `runtime::verifier`, one thread of the node, makes the comparison that would take a shard's turn
//! many times over; its verdict comes through the bus, and the request goes on (`shard::requests`). Plain
//! secrets and those that proved right of late are judged at once. `access::verdicts` decides whose
//! comparison is next, so that nobody who guesses keeps others out. A request whose body is not all there is
//! judged at its head: a body is kept only for who may send it.
//!
//! # Who may do how much
//!
//! `shard::rate` is one number per client or address: when its bucket is full again. A client that
//! has sent too much is not read from; an address is counted by its home, a shard found by its hash
//! as a topic's is (`address::placement`, `access::addresses`). What all shards of a node share is in
//! `shard::node_state`: the calls that each user may still make, and the bits of `shard::interest`, which
//! say which shards may have subscribers of a channel. Settings never change.
//!
//! Without a configured limit, too, nobody delays the others: `shard::work` counts what input costs,
//! gives each connection a slice of a turn, and lets those that always spend it wait behind the
//! others. What else may come in a crowd is done in slices of its own: timers, closing, and the
//! channels of clients that are gone (`client::subscriptions`).
//!
//! # What the log says of a connection
//!
//! `shard::trail` has a line at level `debug` for each step of a connection, from accept to close.
//! The shard names `tracing`, which is a facade: what becomes of an event is for `node` to say, and
//! nothing of that is I/O in the shard. The layers below it log nothing.
//!
//! # How much a node holds
//!
//! `runtime::memory` counts what is allocated, so nothing that peers make a node hold is missing and no
//! message pays for it. `runtime::budget` compares it with `limits.memory_bytes` and tells each shard
//! once a turn; `shard::memory` says what gives way, in which order, and does its shard's part. The
//! shards share one total, `shard::shed_round`, so that together they free about the excess.
//!
//! # The thread of the mesh
//!
//! [`mesh::Mesh`] is a value as a shard is. `mesh::quic` drives it on one thread beside the shards: it holds an
//! end of the bus, behind the last shard's, and one QUIC connection to each other node, with a stream for
//! each sender of messages. `mesh::identity` decides which nodes belong to the grid. The module's page says
//! which file has which subject.
//!
//! # When a node is lost
//!
//! `mesh::upkeep` pings each node (`mesh::liveness`), and ends the session with one that has lost its link
//! (`mesh::sessions`). `mesh::membership` has all nodes agree on which one is dead. The mesh tells every shard
//! of both. Calls for the node's clients fail, and the shards that stand in for its clients report their ends
//! (`shard::wards`).
//!
//! # What the process says
//!
//! `runtime::log` is a bounded queue and one thread that writes it to standard error: a reader that is
//! gone, full or stands still costs lines, which are counted, and nothing else.
//!
//! # What is absent
//!
//! Locks; a task, channel or buffer per connection (but for what compressed messages of some clients
//! refer back to, `protocol::deflate::History`); a shared map of channels or clients (the bits of
//! `shard::interest` name neither); a registry of metrics; traits with one implementation; features
//! that change behaviour.

// They panic when nobody reads: see `runtime::log`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

pub mod address;
pub mod config;
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
