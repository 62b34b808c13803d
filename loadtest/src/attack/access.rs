//! Attacks with wrong or missing credentials, and attacks that exhaust connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, sleep_until};

use super::scene::Scene;
use super::sockets::{connect_from, connect_many, open, statuses, write_until};
use crate::server::Setup;
use crate::tasks::in_parallel;

/// The descriptor limit of the server, and a larger number of connections that try to exhaust it.
pub const DESCRIPTORS: u32 = 2_000;
const GREEDY_CONNECTIONS: u32 = 3_000;
const DEVICES: usize = 50;

/// Time limit for a device to connect.
const DEVICE_PATIENCE: Duration = Duration::from_secs(1);

/// The users: that of the probe; one whose hashed password was verified before, and one whose password was
/// not. The password of both is `right`.
const USERS: &str = r#"
[[api.user]]
name = "probe"
password = "probe"
[[api.user]]
name = "known"
password = "$argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$RKwT9rklJ1yKFZFNf0jxNj8+SSsdfjEdytN0DayQzTo"
[[api.user]]
name = "unknown"
password = "$argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$RKwT9rklJ1yKFZFNf0jxNj8+SSsdfjEdytN0DayQzTo"
"#;

/// `probe:probe`, `known:right`, `unknown:right` and `known:wrong`, in the form of Basic credentials.
const PROBE: &str = "Basic cHJvYmU6cHJvYmU=";
const KNOWN: &str = "Basic a25vd246cmlnaHQ=";
const UNKNOWN: &str = "Basic dW5rbm93bjpyaWdodA==";

/// The address of peers with the right credentials, such as a load balancer.
const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 3, 0, 1);

/// The first address of guessing peers.
const FIRST_GUESSER: Ipv4Addr = Ipv4Addr::new(127, 4, 0, 0);

const STRANGERS: u32 = 1_000;
const BODY_BYTES: usize = 1_000_000;

/// Guesses per tick, half of them pipelined on one connection.
const TICK: Duration = Duration::from_millis(50);
const GUESSES_PER_TICK: u32 = 10;
const PIPELINED: u32 = 5;

/// Interval between two requests with right credentials.
const PERIOD: Duration = Duration::from_millis(100);

/// Time limit for an answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A server with users and the default time limit of requests, so that bodies can arrive.
pub fn setup() -> Setup {
    Setup {
        config: USERS,
        variables: &[("GRIDCAST_LIMITS_HANDSHAKE_MS", "10000")],
        authorization: Some(PROBE),
        ..Setup::default()
    }
}

/// Sends bodies without credentials, except for their last byte.
pub async fn strangers(scene: &Scene) -> Result<String> {
    let sockets = connect_many(scene.target().api, STRANGERS).await?;
    let mut request = format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
    )
    .into_bytes();
    request.extend(vec![b'x'; BODY_BYTES - 1]);
    let request: std::sync::Arc<[u8]> = request.into();
    scene.begin().await;
    let end = Instant::now() + scene.time.max(Duration::from_secs(4));
    let sending = in_parallel(sockets, |mut socket| {
        let request = request.clone();
        async move {
            write_until(&mut socket, &request, end).await;
            Ok(statuses(&mut socket, 1, end).await.first() == Some(&401))
        }
    });
    let refused = sending.await?.into_iter().filter(|&is_refused| is_refused).count();
    Ok(format!("{refused} of {STRANGERS} got 401"))
}

/// Sends wrong passwords from the address of the right ones.
pub async fn guesses(scene: &Scene) -> Result<String> {
    guess_from(scene, |_| BALANCER).await
}

/// Sends wrong passwords, each from another address.
pub async fn verifications(scene: &Scene) -> Result<String> {
    guess_from(scene, |number| Ipv4Addr::from_bits(FIRST_GUESSER.to_bits() + number)).await
}

async fn guess_from(scene: &Scene, source: fn(u32) -> Ipv4Addr) -> Result<String> {
    let api = scene.target().api;
    let first = ask(api, BALANCER, KNOWN).await;
    scene.begin().await;
    let end = scene.end();
    let guessing = tokio::spawn(guess(api, end, source));
    let unknown = tokio::spawn(first_let_in(api, end - scene.time / 2, end));
    let (mut asked, mut let_in) = (0, 0);
    while Instant::now() < end {
        sleep(PERIOD).await;
        let_in += u32::from(ask(api, BALANCER, KNOWN).await == Some(200));
        asked += 1;
    }
    let (judged, guesses) = guessing.await??;
    let unknown = unknown.await??;
    let before = if first == Some(200) { "" } else { " (refused before)" };
    Ok(format!(
        "known user: {let_in} of {asked} let in{before}; unknown user: {unknown}; {judged} of \
         {guesses} guesses got 401"
    ))
}

/// Guesses until `end`. Returns how many guesses were judged (401), and how many were sent.
async fn guess(api: SocketAddr, end: Instant, source: fn(u32) -> Ipv4Addr) -> Result<(usize, u32)> {
    let (mut ticks, mut guesses, mut guessing) = (interval(TICK), 0, JoinSet::new());
    while Instant::now() < end {
        ticks.tick().await;
        let alone = (PIPELINED..GUESSES_PER_TICK).map(|_| 1);
        for count in [PIPELINED].into_iter().chain(alone) {
            let numbers = guesses..guesses + count;
            guesses += count;
            guessing.spawn(async move {
                let requests: String = numbers.clone().map(wrong_request).collect();
                answers(api, source(numbers.start), &requests, count as usize).await
            });
        }
    }
    let statuses = guessing.join_all().await.into_iter().flatten();
    Ok((statuses.filter(|&status| status == 401).count(), guesses))
}

/// A new guess: `known:` and nine digits.
fn wrong_request(number: u32) -> String {
    request(&format!("Basic {}", base64_of_fifteen(format!("known:{number:09}").as_bytes())))
}

fn request(authorization: &str) -> String {
    format!("GET /version HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n\r\n")
}

/// Encodes fifteen bytes in base64 (RFC 4648), which needs no padding.
fn base64_of_fifteen(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = |three: &[u8]| {
        let bits = three.iter().fold(0_usize, |bits, &byte| bits << 8 | usize::from(byte));
        [18, 12, 6, 0].map(|shift| char::from(LETTERS[bits >> shift & 63]))
    };
    bytes.chunks_exact(3).flat_map(letters).collect()
}

/// Sends `requests` on a new connection. Returns the statuses of `count` answers.
async fn answers(api: SocketAddr, source: Ipv4Addr, requests: &str, count: usize) -> Vec<u16> {
    let end = Instant::now() + ANSWER;
    let Ok(mut socket) = connect_from(source, api, true).await else { return vec![] };
    write_until(&mut socket, requests.as_bytes(), end).await;
    statuses(&mut socket, count, end).await
}

async fn ask(api: SocketAddr, source: Ipv4Addr, authorization: &str) -> Option<u16> {
    answers(api, source, &request(authorization), 1).await.first().copied()
}

/// Tries right credentials that were not verified before, after some time of guesses. Returns how often they were
/// refused before they were accepted.
async fn first_let_in(api: SocketAddr, from: Instant, end: Instant) -> Result<String> {
    sleep_until(from).await;
    let (start, mut refused) = (Instant::now(), 0);
    while Instant::now() < end {
        match ask(api, BALANCER, UNKNOWN).await {
            Some(200) => {
                let ms = start.elapsed().as_millis();
                return Ok(format!("let in after {refused} refusals, {ms} ms"));
            }
            _ => refused += 1,
        }
        sleep(PERIOD).await;
    }
    Ok(format!("never let in, {refused} refusals"))
}

/// Opens idle connections, and then connects devices.
pub async fn descriptors(scene: &Scene) -> Result<String> {
    let target = scene.target();
    scene.begin().await;
    let end = scene.end();
    let holding = in_parallel(0..GREEDY_CONNECTIONS, move |_| async move {
        let opening = open(target.api, "/ws/v1", true);
        Ok(tokio::time::timeout_at(end, opening).await.ok().and_then(Result::ok))
    });
    let held: Vec<TcpStream> = holding.await?.into_iter().flatten().collect();
    let devices = in_parallel(0..DEVICES, move |_| async move {
        let opening = open(target.edge, "/ws", true);
        Ok(matches!(tokio::time::timeout(DEVICE_PATIENCE, opening).await, Ok(Ok(_))))
    });
    let let_in = devices.await?.into_iter().filter(|&is_in| is_in).count();
    sleep_until(end).await;
    Ok(format!("{} of {GREEDY_CONNECTIONS} held; {let_in} of {DEVICES} devices got in", held.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_written_as_basic_writes_them() {
        assert_eq!(base64_of_fifteen(b"known:000000007"), "a25vd246MDAwMDAwMDA3");
        assert!(wrong_request(7).contains("Authorization: Basic a25vd246MDAwMDAwMDA3\r\n"));
    }
}
