//! Delayed events in the files.

use super::*;
use crate::message::DelayedNumber;
use crate::protocol::frame::{Frame, Kind};

impl Bench {
    fn delay(&mut self, json: &str, due_ms: u64) -> DelayedNumber {
        let frame = Frame::message(Kind::Text, json.as_bytes());
        let number = self.log.append_delayed(ClientId::from_value(0x0304), due_ms, frame);
        self.write();
        number
    }

    fn delayed(&self) -> Vec<(u64, u64)> {
        self.log.delayed().map(|event| (event.number.0, event.due_ms)).collect()
    }
}

#[test]
fn a_delayed_event_is_a_record_of_its_own_and_another_one_when_it_is_due() {
    let mut bench = Bench::new();
    let number = bench.delay("{}", 1_800_000_000_000);
    let before = bench.last_file().1.len();
    let expected = |hex: &str| -> Vec<u8> {
        let pairs = (0..hex.len()).step_by(2);
        pairs.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    };
    let delayed =
        concat!("081a000000", "0000000000000000", "0403000000000000", "00505c18a3010000", "7b7d",);
    assert_eq!(bench.last_file().1[before - 31..], expected(delayed));
    assert_eq!(bench.log.stored(), MessageNumber(0), "no number among the events");
    assert_eq!(bench.log.append_due(number, 1_800_000_000_001), MessageNumber(0));
    bench.write();
    let due =
        concat!("091a000000", "0000000000000000", "0403000000000000", "01505c18a3010000", "7b7d",);
    let end = bench.last_file().1.len();
    assert_eq!(bench.last_file().1[end - 31..], expected(due));
    let events = bench.disk.read_all(&bench.log, AUDIT).expect("the log is whole");
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event.unix_ms, event.frame.payload()), (1_800_000_000_001, &b"{}"[..]));
    let (segment, file) = bench.last_file();
    let contents = check_segment(TOPIC, segment, file).expect("the file is whole");
    assert_eq!((contents.first, contents.end), (MessageNumber(0), MessageNumber(1)));
}

#[test]
fn a_delayed_event_keeps_no_earlier_file_and_is_in_each_later_one() {
    let mut bench = Bench::new();
    let number = bench.delay("later", 99);
    for first in [0, 60] {
        bench.add(60);
        bench.settle(DEFAULT, first..first + 60);
        bench.settle(AUDIT, first..first + 60);
        assert_eq!((bench.disk.files.len(), bench.log.held().messages), (1, 1));
        assert_eq!(bench.restart(&group_names()), 0);
        assert_eq!(bench.delayed(), [(0, 99)]);
    }
    let held = Credit { messages: 1, bytes: frame::message_bytes("later".len()) };
    assert_eq!(bench.log.held(), held);
    assert_eq!(bench.log.append_due(number, 7), MessageNumber(120));
    bench.write();
    assert_eq!((bench.log.held(), bench.delayed()), (held, vec![]));
    bench.restart(&group_names());
    assert_eq!((bench.log.held(), bench.delayed()), (held, vec![]));
    assert_eq!(bench.unsettled(AUDIT), [120]);
}

#[test]
fn a_write_that_was_not_completed_leaves_the_event_delayed() {
    let mut bench = Bench::new();
    let number = bench.delay("later", 99);
    let before = bench.last_file().1.len();
    bench.log.append_due(number, 7);
    bench.write();
    let whole = bench.last_file().1.clone();
    for end in before..=whole.len() {
        bench.last_file().1.clone_from(&whole);
        bench.last_file().1.truncate(end);
        bench.restart(&group_names());
        let is_event = end == whole.len();
        assert_eq!(bench.delayed().len(), usize::from(!is_event), "{end} bytes");
        assert_eq!(bench.unsettled(DEFAULT).len(), usize::from(is_event), "{end} bytes");
        assert_eq!(bench.log.held().messages, 1);
    }
}

#[test]
fn an_event_that_came_due_without_having_been_delayed_is_damage() {
    let mut bench = Bench::new();
    let number = bench.delay("later", 99);
    let at = bench.last_file().1.len();
    bench.log.append_due(number, 7);
    bench.write();
    // The same batch again, as the one of the next event.
    let mut again = bench.last_file().1[at..].to_vec();
    again[12..20].copy_from_slice(&1u64.to_le_bytes());
    format::end_batch(&mut again, 0);
    let (segment, file) = bench.last_file();
    let end = file.len() as u64;
    file.extend_from_slice(&again);
    let checked = check_segment(TOPIC, segment, file).expect_err("it ends twice");
    let recovered = bench.disk.recover().expect_err("it ends twice");
    let why = "a record names an event that is not delayed";
    assert_eq!((checked.at, checked.why), (end, why));
    assert_eq!((recovered.at, recovered.why), (end, why));
}

#[test]
fn a_group_that_is_new_gets_the_delayed_events_that_come_due_from_then_on() {
    let mut bench = Bench::new();
    let number = bench.delay("later", 99);
    bench.add(1);
    bench.restart(&[None, Some("billing".into())]);
    bench.log.append_due(number, 7);
    bench.write();
    assert_eq!((bench.unsettled(AUDIT), bench.unsettled(DEFAULT)), (vec![1], vec![0, 1]));
}
