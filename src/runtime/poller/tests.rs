//! The poller alone, with a buffer of 64 bytes, 4 events and 4 receives at a time.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};

use super::*;
use crate::shard::{Batch, Chunk};

const KEY: ConnectionKey = ConnectionKey { index: 7, generation: ConnectionKey::GENERATION_MAX };
const WAIT: Duration = Duration::from_secs(10);

/// The completions of the next turn, of which there may be none.
fn turn(poller: &mut Poller, wait: Duration) -> Vec<Completion> {
    poller.submit(wait).unwrap();
    poller.begin_turn();
    std::iter::from_fn(|| poller.next()).collect()
}

/// Returns the bytes that one turn receives; `None` is the end of a stream.
fn received(poller: &mut Poller, wait: Duration) -> Vec<Option<Vec<u8>>> {
    poller.submit(wait).unwrap();
    poller.begin_turn();
    let mut all = Vec::new();
    while let Some(completion) = poller.next() {
        let Completion::Received { key: KEY, result, .. } = completion else {
            panic!("not a receive: {completion:?}");
        };
        all.push(result.unwrap().map(|buffer| poller.buffer(&buffer).to_vec()));
    }
    all
}

fn batch(chunks: &[&[u8]]) -> Batch {
    chunks.iter().map(|bytes| Chunk::Own(bytes.to_vec())).collect()
}

#[test]
fn a_source_comes_back_from_the_data_of_its_event() {
    let key = |index, generation| EventSource::Connection(ConnectionKey { index, generation });
    for source in [
        key(0, 0),
        key(u32::MAX, ConnectionKey::GENERATION_MAX),
        EventSource::Listener(0),
        EventSource::Listener(1000),
        EventSource::Eventfd,
    ] {
        assert_eq!(EventSource::of(source.data()), source);
    }
}

#[test]
fn a_socket_gives_one_buffer_per_turn_until_all_is_taken() {
    let mut poller = Poller::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let sent: Vec<u8> = (0..200).collect();
    peer.write_all(&sent).unwrap();
    poller.receive(KEY, socket.as_fd());
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let [Some(bytes)] = &received(&mut poller, WAIT)[..] else { panic!("one buffer") };
        got.extend_from_slice(bytes);
    }
    assert_eq!(got, sent);
    assert!(received(&mut poller, Duration::ZERO).is_empty());
    peer.write_all(b"more").unwrap();
    assert_eq!(received(&mut poller, WAIT), [Some(b"more".to_vec())]);
}

/// The kernel reports both at once, and nothing later.
#[test]
fn an_end_that_came_with_the_last_bytes_is_found() {
    let mut poller = Poller::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    poller.receive(KEY, socket.as_fd());
    assert!(received(&mut poller, Duration::ZERO).is_empty());
    peer.write_all(b"last").unwrap();
    drop(peer);
    assert_eq!(received(&mut poller, WAIT), [Some(b"last".to_vec())]);
    assert_eq!(received(&mut poller, WAIT), [None]);
    assert!(received(&mut poller, Duration::ZERO).is_empty());
}

#[test]
fn what_came_while_nothing_was_received_is_found_later() {
    let mut poller = Poller::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    poller.receive(KEY, socket.as_fd());
    assert!(turn(&mut poller, Duration::ZERO).is_empty());
    poller.cancel_receive(KEY);
    let cancelled = turn(&mut poller, WAIT);
    let [Completion::Received { result: Err(error), is_over: true, .. }] = &cancelled[..] else {
        panic!("not cancelled: {cancelled:?}");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
    peer.write_all(b"meanwhile").unwrap();
    assert!(turn(&mut poller, Duration::ZERO).is_empty());
    poller.receive(KEY, socket.as_fd());
    assert_eq!(received(&mut poller, WAIT), [Some(b"meanwhile".to_vec())]);
}

#[test]
fn a_receive_of_what_is_there_ends_at_once() {
    let mut poller = Poller::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    // The second time the poller knows without a call that nothing is there.
    for _ in 0..2 {
        poller.receive_once(KEY, socket.as_fd(), 3);
        let nothing = turn(&mut poller, WAIT);
        let [Completion::Received { result: Err(error), is_over: true, .. }] = &nothing[..] else {
            panic!("there is nothing: {nothing:?}");
        };
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
    }
    peer.write_all(b"something").unwrap();
    assert!(turn(&mut poller, WAIT).is_empty());
    poller.receive_once(KEY, socket.as_fd(), 3);
    assert_eq!(received(&mut poller, WAIT), [Some(b"som".to_vec())]);
    assert!(received(&mut poller, Duration::ZERO).is_empty());
}

#[test]
fn an_event_of_a_closed_socket_does_not_reach_the_next_who_has_the_place() {
    let mut poller = Poller::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    poller.receive(KEY, socket.as_fd());
    assert!(turn(&mut poller, Duration::ZERO).is_empty());
    peer.write_all(b"late").unwrap();
    poller.submit(WAIT).unwrap();
    drop(socket);
    let (_next_peer, next) = UnixStream::pair().unwrap();
    let next_key = ConnectionKey { generation: 0, ..KEY };
    poller.receive(next_key, next.as_fd());
    assert!(turn(&mut poller, Duration::ZERO).is_empty());
    poller.cancel_receive(KEY);
    let missed = turn(&mut poller, Duration::ZERO);
    assert!(matches!(missed[..], [Completion::CancelMissed { key: KEY }]), "{missed:?}");
}

#[test]
fn a_send_says_at_once_how_much_was_written_and_room_is_waited_for() {
    let mut poller = Poller::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let big = vec![b'x'; 10 << 20];
    let mut sending = Sending::new();
    sending.begin(batch(&[&big[..100], &big[100..]]));
    poller.send(KEY, socket.as_fd(), sending);
    poller.take_ended();
    let Some(Completion::Sent { key: KEY, mut sending, result }) = poller.next() else {
        panic!("it has ended");
    };
    let mut written = result.unwrap();
    while !sending.advance(written) {
        poller.wait_writable(KEY, socket.as_fd());
        let mut taken = vec![0; 1 << 20];
        let taken = peer.read(&mut taken).unwrap();
        assert!(taken > 0);
        let room = turn(&mut poller, Duration::ZERO);
        if room.is_empty() {
            written = 0;
            continue;
        }
        assert!(matches!(room[..], [Completion::Writable { key: KEY }]), "{room:?}");
        poller.send(KEY, socket.as_fd(), sending);
        poller.take_ended();
        let Some(Completion::Sent { sending: again, result, .. }) = poller.next() else {
            panic!("it has ended");
        };
        sending = again;
        written = match result {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => 0,
            result => result.unwrap(),
        };
    }
}

/// A send of more runs than one call takes is short though the socket has room.
#[test]
fn room_that_is_there_already_is_reported() {
    let mut poller = Poller::new().unwrap();
    let (_peer, socket) = UnixStream::pair().unwrap();
    poller.receive(KEY, socket.as_fd());
    assert!(turn(&mut poller, Duration::ZERO).is_empty());
    for _ in 0..3 {
        poller.wait_writable(KEY, socket.as_fd());
        let room = turn(&mut poller, WAIT);
        assert!(matches!(room[..], [Completion::Writable { key: KEY }]), "{room:?}");
    }
}

#[test]
fn each_write_of_the_eventfd_wakes() {
    let mut poller = Poller::new().unwrap();
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    for _ in 0..3 {
        poller.wait_woken(eventfd.as_fd());
        assert!(turn(&mut poller, Duration::ZERO).is_empty());
        rustix::io::write(&eventfd, &1u64.to_ne_bytes()).unwrap();
        assert!(poller.has_completions().unwrap());
        let woken = turn(&mut poller, WAIT);
        assert!(matches!(woken[..], [Completion::Woken]), "{woken:?}");
    }
}

#[test]
fn all_sockets_are_received_from_though_a_turn_takes_few() {
    const SOCKETS: u32 = 50;
    let mut poller = Poller::new().unwrap();
    let mut pairs: Vec<_> = (0..SOCKETS).map(|_| UnixStream::pair().unwrap()).collect();
    let mut heard = vec![0; SOCKETS as usize];
    for (index, (_, socket)) in (0..).zip(&pairs) {
        poller.receive(ConnectionKey { index, generation: 0 }, socket.as_fd());
    }
    for round in 1..=3 {
        for (peer, _) in &mut pairs {
            peer.write_all(b"hello").unwrap();
        }
        while heard.iter().any(|&times| times < round) {
            let completions = turn(&mut poller, WAIT);
            assert!(completions.len() <= RECEIVES_PER_TURN, "{completions:?}");
            for completion in completions {
                let Completion::Received { key, result: Ok(Some(_)), .. } = completion else {
                    panic!("not a receive: {completion:?}");
                };
                heard[key.index as usize] += 1;
            }
        }
    }
    assert_eq!(heard, vec![3; SOCKETS as usize]);
}

#[test]
fn a_turn_accepts_few_connections_and_the_next_ones_the_rest() {
    const CONNECTIONS: usize = 10;
    let mut poller = Poller::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    poller.accept(0, listener.as_fd());
    assert!(turn(&mut poller, Duration::ZERO).is_empty());
    let _peers: Vec<_> = (0..CONNECTIONS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut accepted = 0;
    while accepted < CONNECTIONS {
        let completions = turn(&mut poller, WAIT);
        assert!(completions.len() <= ACCEPTS_PER_TURN + 1, "{completions:?}");
        for completion in completions {
            let Completion::Accepted { listener: 0, result: Ok(_), is_over: false } = completion
            else {
                panic!("not accepted: {completion:?}");
            };
            accepted += 1;
        }
    }
    poller.cancel_accept(0);
    let cancelled = turn(&mut poller, WAIT);
    assert!(matches!(cancelled[..], [Completion::Accepted { is_over: true, .. }]), "{cancelled:?}");
    let _late = TcpStream::connect(address).unwrap();
    assert!(turn(&mut poller, Duration::ZERO).is_empty());
    poller.accept(0, listener.as_fd());
    let accepted = turn(&mut poller, WAIT);
    assert!(matches!(accepted[..], [Completion::Accepted { result: Ok(_), .. }]), "{accepted:?}");
}
