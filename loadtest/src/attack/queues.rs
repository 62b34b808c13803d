//! Attacks on a topic: more messages than it can hold, and consumers that join and leave.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::scene::Scene;
use super::sockets::{open, open_many, write_until};
use super::turns::{deflated, open_compressed};
use crate::raw;
use crate::tasks::in_parallel;

/// A route with a topic that accepts compressed messages.
pub const COMPRESSED_TOPIC: &str =
    "[[edge.route]]\npath = \"/upload\"\ntopic = \"uploads\"\ncompression = true\n";

const FEEDERS: u32 = 1_500;

/// A message of the maximum length, of a character that JSON writes with six.
const GROWING_BYTES: usize = 64 * 1024;
const GROWING: u8 = 1;

const WAITING_CLIENTS: u32 = 7_500;
const MESSAGES_EACH: usize = 6;
const MESSAGE_BYTES: usize = 100;

const CONSUMERS: u32 = 500;

/// How long consumers stay once all have joined.
const STAY: Duration = Duration::from_millis(100);

/// The request of a consumer for one event at a time, which it never acknowledges, so that the clients keep
/// waiting.
const POP: &[u8] = br#"{"m":"queue.pop","p":{"t":["messages"],"a":true,"w":1},"i":1}"#;

/// The start of an answer, which is the only part that a consumer reads.
const ANSWER_BYTES: usize = 16;

/// Has each client send one small frame, most of them to a full topic.
pub async fn full_topic(scene: &Scene) -> Result<String> {
    let mut clients = Vec::new();
    for _ in 0..FEEDERS {
        clients.push(open_compressed(scene.target().edge, "/upload").await?);
    }
    let packed = deflated(&vec![GROWING; GROWING_BYTES]);
    let frame = raw::frame(raw::TEXT | raw::COMPRESSED, &packed);
    scene.begin().await;
    let (end, mut sent) = (scene.end(), 0);
    for client in &mut clients {
        sent += usize::from(write_until(client, &frame, end).await);
    }
    sleep_until(end).await;
    Ok(format!("{sent} of {FEEDERS} sent {} bytes", frame.len()))
}

/// Has consumers join a topic with waiting messages of many clients, and leave, all at once.
pub async fn churn(scene: &Scene) -> Result<String> {
    let mut clients =
        open_many(scene.target().edge, WAITING_CLIENTS, true, |_| "/ws".into()).await?;
    let messages = raw::frame(raw::TEXT, &[b'x'; MESSAGE_BYTES]).repeat(MESSAGES_EACH);
    for client in &mut clients {
        client.write_all(&messages).await?;
    }
    let (start, end) = (scene.begin().await, scene.patience());
    let (mut rounds, mut joined) = (0, 0);
    while rounds == 0 || start.elapsed() < scene.time {
        joined += come_and_go(scene, end).await?;
        rounds += 1;
        if Instant::now() >= end {
            break;
        }
    }
    let ms = start.elapsed().as_millis() / rounds;
    Ok(format!("{joined} of {} joined; each time in {ms} ms", rounds * u128::from(CONSUMERS)))
}

/// The consumers whose pop was answered before `end`.
async fn come_and_go(scene: &Scene, end: Instant) -> Result<usize> {
    let api = scene.target().api;
    let joining = in_parallel(0..CONSUMERS, move |_| async move {
        let joining = async {
            let mut consumer = open(api, "/ws/v1", false).await?;
            let pop = raw::frame(raw::TEXT, POP);
            consumer.write_all(&pop).await?;
            consumer.read_exact(&mut [0; ANSWER_BYTES]).await?;
            anyhow::Ok(consumer)
        };
        Ok(timeout_at(end, joining).await.ok().and_then(Result::ok))
    });
    let consumers: Vec<TcpStream> = joining.await?.into_iter().flatten().collect();
    sleep_until(Instant::now() + STAY).await;
    Ok(consumers.len())
}
