//! Attacks on the CPU time of a shard: much work for few bytes, or very many bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, compress, create_comp_flags_from_zip_params,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::scene::{Scene, learn_ids};
use super::sockets::{
    connect_many, drain, flood_units, open_many, open_with, statuses, units, write_until,
};
use crate::client;
use crate::raw;
use crate::tasks::in_parallel;

/// A route without subscriptions, so that handshakes that request them are refused and can be pipelined.
pub const CLOSED_ROUTE: &str = "[[edge.route]]\npath = \"/closed\"\n";

/// A route that echoes large messages and accepts compressed ones.
pub const COMPRESSED_ECHO: &str = "[[edge.route]]\npath = \"/bombs\"\nhandler = \"echo\"\n\
     compression = true\nmessage_bytes = 16777216\noutbound_bytes = 67108864\n";

const PIPELINED: usize = 6;

/// Names in a handshake, one of them twice: as many as a head can hold.
const NAMES: u32 = 1_023;

const BACK_ENDS: usize = 8;

/// Different names in one message: the maximum.
const CONTEXT_KEYS: usize = 256;
const TOPICS: usize = 256;

/// The maximum length of a name.
const NAME_BYTES: usize = 255;

/// Bytes of names in one message, including two more for each than they take as topics.
const REPEATS_BYTES: usize = 1024 * 1024 - 4096;

const CROWD: u32 = 1_000;

const LEAVING_CLIENTS: u32 = 3_000;
const LEAVING_CHANNELS: u32 = 1_024;

/// The decompressed length of a bomb.
const BOMB_BYTES: usize = 16 * 1024 * 1024;
const BOMBERS: u32 = 20;

/// Sends handshakes whose channels take long to compare.
pub async fn channels(scene: &Scene) -> Result<String> {
    let names: Vec<_> = (0..NAMES).chain([0]).map(|name| format!("channel-{name:06}")).collect();
    let request = raw::upgrade_request(&format!("/closed?channels={}", names.join(",")));
    let burst: Arc<[u8]> = request.repeat(PIPELINED).into_bytes().into();
    let sockets = connect_many(scene.target().edge, 100).await?;
    let (start, end, count) = (scene.begin().await, scene.patience(), sockets.len() * PIPELINED);
    let answers = in_parallel(sockets, |mut socket| {
        let burst = Arc::clone(&burst);
        async move {
            write_until(&mut socket, &burst, end).await;
            Ok(statuses(&mut socket, PIPELINED, end).await.len())
        }
    });
    let answered: usize = answers.await?.into_iter().sum();
    Ok(format!("{answered} of {count} answered in {} ms", start.elapsed().as_millis()))
}

/// Sends calls whose arguments take long to compare, each for another client.
pub async fn calls(scene: &Scene) -> Result<String> {
    let count = (BACK_ENDS * PIPELINED) as u32;
    let mut clients = client::open_many(scene.target().edge, "/ws", count).await?;
    let ids = learn_ids(scene.target(), &mut clients).await?;
    // The most names that a call may have. They differ only at their ends.
    let stem = "x".repeat(NAME_BYTES - 4);
    let names = (0..NAMES).chain([0]).map(|name| format!("\"{stem}{name:04}\""));
    let names = names.collect::<Vec<_>>().join(",");
    let context = repeats(CONTEXT_KEYS).replace(',', ":0,");
    let calls = |id: &String| {
        let call = |function, argument: &str| {
            let params = format!(r#"{{"c":"{id}","f":"{function}","a":[{argument}]}}"#);
            format!(r#"{{"m":"conn.call","p":{params},"i":1}}"#)
        };
        [call("subscribe", &names), call("set_context", &format!("{{{context}:0}}"))]
    };
    let texts = ids.chunks(PIPELINED).map(|ids| ids.iter().flat_map(calls).collect()).collect();
    let answered = send_all(scene, texts).await?;
    drop(clients);
    Ok(answered)
}

/// Sends pops whose topics take long to compare.
pub async fn pop_topics(scene: &Scene) -> Result<String> {
    let pop = format!(r#"{{"m":"queue.pop","p":{{"t":[{}]}},"i":1}}"#, repeats(TOPICS));
    let unpop = r#"{"m":"queue.unpop","p":{},"i":2}"#.to_owned();
    send_all(scene, vec![vec![[pop, unpop]; PIPELINED].concat(); BACK_ENDS]).await
}

/// Lists `different` names, and repeats the last one until the message is full.
fn repeats(different: usize) -> String {
    let mut names: Vec<_> = (0..different).map(|name| format!("\"{name:04}\"")).collect();
    names.resize(REPEATS_BYTES / 9, format!("\"{:04}\"", different - 1));
    names.join(",")
}

/// Has each back end send all its texts at once, and waits for the answers.
async fn send_all(scene: &Scene, texts: Vec<Vec<String>>) -> Result<String> {
    let count: usize = texts.iter().map(Vec::len).sum();
    let mut back_ends = Vec::new();
    for texts in texts {
        back_ends.push((client::open(scene.target().api, "/ws/v1", raw::TEXT).await?, texts));
    }
    let (start, end) = (scene.begin().await, scene.patience());
    let calling = in_parallel(back_ends, |(mut back_end, texts)| async move {
        let mut answered = 0;
        let calling = async {
            texts.iter().for_each(|text| back_end.feed(&[text.as_bytes()]));
            back_end.flush().await?;
            while answered < texts.len() {
                back_end.next(|_, _| Ok(())).await?;
                answered += 1;
            }
            anyhow::Ok(())
        };
        // Only answers before the deadline count.
        let _ = timeout_at(end, calling).await;
        Ok(answered)
    });
    let answered: usize = calling.await?.into_iter().sum();
    Ok(format!("{answered} of {count} answered in {} ms", start.elapsed().as_millis()))
}

/// Sends pings on many sockets as fast as the server accepts them.
pub async fn pings(scene: &Scene) -> Result<String> {
    let sockets = open_many(scene.target().edge, CROWD, true, |_| "/ws".into()).await?;
    crowd(scene, sockets, &raw::frame(raw::PING, &[]), "pings").await
}

/// Sends requests on many sockets as fast as the server accepts them.
pub async fn not_found(scene: &Scene) -> Result<String> {
    let sockets = connect_many(scene.target().edge, CROWD).await?;
    crowd(scene, sockets, b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n", "requests").await
}

/// Has large messages decompressed, echoed, and compressed again.
pub async fn bombs(scene: &Scene) -> Result<String> {
    let bomb = raw::frame(raw::TEXT | raw::COMPRESSED, &deflated(&vec![b'a'; BOMB_BYTES]));
    let mut sockets = Vec::new();
    for _ in 0..BOMBERS {
        sockets.push(open_compressed(scene.target().edge, "/bombs").await?);
    }
    crowd(scene, sockets, &bomb, "bombs").await
}

/// Sends `unit` on each of `sockets` as fast as the server accepts it, and reads the answers.
async fn crowd(scene: &Scene, sockets: Vec<TcpStream>, unit: &[u8], what: &str) -> Result<String> {
    let units: Arc<[u8]> = units(unit).into();
    scene.begin().await;
    let (end, count) = (scene.end(), sockets.len());
    let flooding = in_parallel(sockets, |socket| {
        let units = Arc::clone(&units);
        async move {
            let (mut from, mut to) = socket.into_split();
            let (flood, drained) =
                tokio::join!(flood_units(&mut to, &units, end), drain(&mut from, end));
            Ok((flood.bytes, flood.is_ended || drained.1))
        }
    });
    let floods = flooding.await?;
    let bytes: u64 = floods.iter().map(|(bytes, _)| bytes).sum();
    let ended = floods.iter().filter(|(_, is_ended)| *is_ended).count();
    let rate = bytes as f64 / unit.len() as f64 / scene.time.as_secs_f64();
    Ok(format!("sent {rate:.0} {what}/s, {ended} of {count} sockets closed"))
}

/// Has clients with the maximum number of channels leave at the same moment.
pub async fn leave(scene: &Scene) -> Result<String> {
    let names: Vec<_> = (0..LEAVING_CHANNELS).map(|name| format!("c{name}")).collect();
    let path = format!("/ws?channels={}", names.join(","));
    let start = Instant::now();
    let sockets =
        open_many(scene.target().edge, LEAVING_CLIENTS, true, move |_| path.clone()).await?;
    let came = start.elapsed();
    scene.begin().await;
    drop(sockets);
    sleep_until(scene.end() + Duration::from_secs(1)).await;
    Ok(format!("they came in {} ms", came.as_millis()))
}

/// Opens a WebSocket with compression.
pub async fn open_compressed(edge: SocketAddr, path: &str) -> Result<TcpStream> {
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover; \
                 server_no_context_takeover\r\n";
    open_with(edge, &raw::upgrade_request_with(path, offer), true).await
}

/// Compresses the payload of a message (RFC 7692, section 7.2.1).
pub fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; bytes.len() / 8 + 1024];
    let flags = create_comp_flags_from_zip_params(9, 0, 0);
    let mut compressor = CompressorOxide::new(flags);
    let (_, _, count) = compress(&mut compressor, bytes, &mut out, TDEFLFlush::Sync);
    // The last four bytes of a flush, 00 00 ff ff, are not sent.
    out.truncate(count - 4);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_a_thousandth_of_what_it_unpacks_to() {
        let mut packed = deflated(&vec![b'a'; BOMB_BYTES]);
        assert!(packed.len() < BOMB_BYTES / 900, "{}", packed.len());
        // An empty last block.
        packed.extend([0, 0, 0xff, 0xff, 3, 0]);
        let unpacked = miniz_oxide::inflate::decompress_to_vec(&packed).expect("it is DEFLATE");
        assert!(unpacked == vec![b'a'; BOMB_BYTES]);
    }

    #[test]
    fn repeats_nearly_fill_a_message() {
        let names = repeats(TOPICS);
        assert!((750 * 1024..REPEATS_BYTES).contains(&names.len()));
        assert!(names.ends_with("\"0255\",\"0255\""));
    }
}
