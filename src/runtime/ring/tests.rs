//! The ring alone, with four buffers of 64 bytes.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::buffers::{BUFFERS, Failures};
use super::*;
use crate::runtime::socket_io::BUFFER_BYTES;
use crate::shard::{Batch, Chunk};

const KEY: ConnectionKey = ConnectionKey { index: 7, generation: ConnectionKey::GENERATION_MAX };
const WAIT: Duration = Duration::from_secs(10);

/// The next completions, of which there is at least one.
fn completions(ring: &mut Ring) -> Vec<Completion> {
    let mut out = Vec::new();
    while out.is_empty() {
        ring.submit(WAIT).unwrap();
        ring.begin_turn();
        out.extend(std::iter::from_fn(|| ring.next()));
    }
    out
}

/// The buffers among completions that are all receives, and whether the last was over.
fn received(completions: Vec<Completion>) -> (Vec<Buffer>, Option<i32>, bool) {
    let (mut buffers, mut error, mut over) = (Vec::new(), None, false);
    for completion in completions {
        let Completion::Received { key, result, is_over } = completion else {
            panic!("not a receive: {completion:?}");
        };
        assert_eq!(key, KEY);
        over = is_over;
        match result {
            Ok(buffer) => buffers.extend(buffer),
            Err(failed) => error = failed.raw_os_error(),
        }
    }
    (buffers, error, over)
}

fn batch(chunks: &[&[u8]]) -> Batch {
    chunks.iter().map(|bytes| Chunk::Own(bytes.to_vec())).collect()
}

#[test]
fn a_key_comes_back_from_its_user_data_whatever_the_request() {
    let edges = [0, 1, ConnectionKey::GENERATION_MAX];
    for (index, generation) in [0, 1, u32::MAX].into_iter().zip(edges) {
        let expected = ConnectionKey { index, generation };
        let user_data = user_data(RingRequest::Writable, expected);
        let entry = Completed { user_data, result: 0, flags: 0 };
        let Some(Completion::Writable { key }) = completion(entry, &mut []) else {
            panic!("not what was asked for");
        };
        assert_eq!(key, expected);
    }
}

#[test]
fn receiving_ends_when_no_buffer_is_left_and_goes_on_when_one_is_back() {
    let mut ring = Ring::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let all_buffers = usize::from(BUFFERS) * BUFFER_BYTES;
    let sent: Vec<u8> = (0..=255).cycle().take(2 * all_buffers + 1).collect();
    peer.write_all(&sent).unwrap();
    let mut got = Vec::new();
    for _ in 0..2 {
        ring.receive(KEY, socket.as_fd());
        let mut buffers = Vec::new();
        loop {
            let (more, error, is_over) = received(completions(&mut ring));
            buffers.extend(more);
            if is_over {
                assert_eq!(error, Some(libc::ENOBUFS));
                break;
            }
        }
        assert_eq!(buffers.len(), usize::from(BUFFERS), "all of them are out");
        for buffer in buffers.drain(..) {
            got.extend_from_slice(ring.buffer(&buffer));
            ring.recycle(buffer);
        }
    }
    assert_eq!(got, sent[..2 * all_buffers]);
    assert!(ring.is_settled());
}

/// Receives until all buffers are handed out, checks that they differ, and gives them back.
fn receive_into_all_buffers(ring: &mut Ring) {
    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(&[b'x'; 2 * BUFFERS as usize * BUFFER_BYTES]).unwrap();
    ring.receive(KEY, socket.as_fd());
    let mut buffers = Vec::new();
    loop {
        let (more, _, is_over) = received(completions(ring));
        buffers.extend(more);
        if is_over {
            break;
        }
    }
    let ids: BTreeSet<u16> = buffers.iter().map(Buffer::id).collect();
    assert_eq!((ids.len(), buffers.len()), (usize::from(BUFFERS), usize::from(BUFFERS)));
    buffers.into_iter().for_each(|buffer| ring.recycle(buffer));
    assert!(ring.is_settled());
}

#[test]
fn a_failed_receive_neither_loses_nor_doubles_a_buffer_on_this_kernel() {
    Ring::probe().unwrap();
    let mut ring = Ring::new().unwrap();
    let (_peer, socket) = UnixStream::pair().unwrap();
    for _ in 0..2 * BUFFERS {
        ring.receive_once(KEY, socket.as_fd(), BUFFER_BYTES);
        let (buffers, error, is_over) = received(completions(&mut ring));
        assert_eq!((buffers.len(), error, is_over), (0, Some(libc::EAGAIN), true));
    }
    receive_into_all_buffers(&mut ring);
}

#[test]
fn a_buffer_that_a_failed_receive_left_in_the_ring_is_not_put_there_again() {
    let mut ring = Ring::new().unwrap();
    ring.buffers.failures = Failures::Keep;
    ring.faults.fail_receive_and_keep(KEY, 0);
    let (buffers, error, _) = received(completions(&mut ring));
    assert_eq!((buffers.len(), error), (0, Some(libc::EAGAIN)));
    receive_into_all_buffers(&mut ring);
}

#[test]
fn a_buffer_that_a_failed_receive_consumed_goes_back_to_the_kernel() {
    let mut ring = Ring::new().unwrap();
    ring.buffers.failures = Failures::Consume;
    let (mut peer, socket) = UnixStream::pair().unwrap();
    peer.write_all(b"lost").unwrap();
    ring.faults.fail_receive_and_consume();
    ring.receive_once(KEY, socket.as_fd(), BUFFER_BYTES);
    let (buffers, error, _) = received(completions(&mut ring));
    assert_eq!((buffers.len(), error), (0, Some(libc::EAGAIN)));
    receive_into_all_buffers(&mut ring);
}

#[test]
#[should_panic(expected = "went back twice")]
fn a_buffer_does_not_go_back_twice() {
    Ring::new().unwrap().recycle(Buffer::new(0, 0));
}

#[test]
fn a_cancelled_receive_says_so_once_and_takes_nothing_more() {
    let mut ring = Ring::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    ring.receive(KEY, socket.as_fd());
    ring.submit(Duration::ZERO).unwrap();
    ring.cancel_receive(KEY);
    let (buffers, error, is_over) = received(completions(&mut ring));
    assert_eq!((buffers.len(), error, is_over), (0, Some(libc::ECANCELED), true));
    peer.write_all(b"for the next").unwrap();
    ring.receive(KEY, socket.as_fd());
    let (mut buffers, _, _) = received(completions(&mut ring));
    let buffer = buffers.pop().unwrap();
    assert_eq!(ring.buffer(&buffer), b"for the next");
    ring.recycle(buffer);
}

#[test]
fn a_cancellation_does_not_reach_the_next_who_has_the_place() {
    let mut ring = Ring::new().unwrap();
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let gone = ConnectionKey { generation: KEY.generation - 1, ..KEY };
    ring.receive(KEY, socket.as_fd());
    ring.cancel_receive(gone);
    ring.submit(Duration::ZERO).unwrap();
    peer.write_all(b"still here").unwrap();
    let mut completions = completions(&mut ring);
    assert!(matches!(completions.remove(0), Completion::CancelMissed { key } if key == gone));
    ring.submit(WAIT).unwrap();
    ring.begin_turn();
    completions.extend(std::iter::from_fn(|| ring.next()));
    let (mut buffers, error, is_over) = received(completions);
    assert_eq!((error, is_over), (None, false));
    ring.recycle(buffers.pop().unwrap());
}

#[test]
fn more_requests_than_the_queue_holds_are_all_carried_out() {
    let mut ring = Ring::new().unwrap();
    let pairs: Vec<_> = (0..100).map(|_| UnixStream::pair().unwrap()).collect();
    for (index, (_, socket)) in pairs.iter().enumerate() {
        let key = ConnectionKey { index: index as u32, generation: 0 };
        let mut sending = Sending::new();
        sending.begin(batch(&[b"to ", &[index as u8]]));
        ring.send(key, socket.as_fd(), sending);
    }
    let mut sent = 0;
    while sent < pairs.len() {
        for completion in completions(&mut ring) {
            let Completion::Sent { key, mut sending, result } = completion else {
                panic!("not a send: {completion:?}");
            };
            assert!(sending.advance(result.unwrap()));
            let mut got = [0; 4];
            (&pairs[key.index as usize].0).read_exact(&mut got).unwrap();
            assert_eq!(got, [b't', b'o', b' ', key.index as u8]);
            sent += 1;
        }
    }
}
