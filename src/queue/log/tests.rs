//! A log as a value: what is written, recovered, read and removed. `disk.rs` is the disk, `simulation.rs` what may happen
//! to it.

mod delayed;
pub(in crate::queue) mod disk;
mod simulation;

use super::*;
use crate::address::ClientId;
use crate::protocol::frame;
use disk::Disk;

const TOPIC: &str = "orders";

/// Small, so that a run begins many segments.
const SEGMENT_BYTES: u64 = 700;

fn group_names() -> Vec<Option<Arc<str>>> {
    vec![None, Some("audit".into())]
}

fn number_of_groups() -> usize {
    group_names().len()
}

/// A log with its disk, on which nothing fails.
struct Bench {
    log: Log,
    disk: Disk,
}

const DEFAULT: GroupIndex = GroupIndex(0);
const AUDIT: GroupIndex = GroupIndex(1);

impl Bench {
    fn new() -> Self {
        let mut log = Log::new(LogId(9), TOPIC, SEGMENT_BYTES);
        log.set_groups(&group_names());
        Self { log, disk: Disk::default() }
    }

    fn add(&mut self, events: u64) {
        for _ in 0..events {
            let json = format!("event {}", self.log.stored().0);
            self.log.append(ClientId::from_value(1), 7, json.as_bytes());
            self.write();
        }
    }

    fn write(&mut self) {
        while self.carry_out_one() {}
    }

    /// Carries out the next task. Returns false if there is none.
    fn carry_out_one(&mut self) -> bool {
        let Some(task) = self.log.poll_task() else { return false };
        match task {
            Task::Create(segment, bytes) => {
                self.disk.files.entry(segment).or_default().now = bytes.to_vec();
            }
            Task::Append(segment, at, bytes) => {
                let file = &mut self.disk.files.get_mut(&segment).unwrap().now;
                file.truncate(at as usize);
                file.extend_from_slice(bytes);
            }
            Task::Truncate(segment, length) => {
                self.disk.files.get_mut(&segment).unwrap().now.truncate(length as usize);
            }
            Task::Remove(segment) => drop(self.disk.files.remove(&segment)),
        }
        self.log.handle_done();
        true
    }

    fn settle(&mut self, group: GroupIndex, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            let bytes = frame::message_bytes(format!("event {number}").len());
            self.log.settle(group, MessageNumber(number), bytes);
        }
        self.write();
    }

    fn restart(&mut self, groups: &[Option<Arc<str>>]) -> u64 {
        let recovered = self.disk.recover().expect("the log is whole");
        self.log = recovered.log;
        self.log.set_groups(groups);
        recovered.missing
    }

    fn unsettled(&self, group: GroupIndex) -> Vec<u64> {
        let events = self.disk.read_all(&self.log, group).expect("the log is whole");
        events.iter().map(|event| event.number.0).collect()
    }

    fn last_file(&mut self) -> (SegmentNumber, &mut Vec<u8>) {
        let (&segment, file) = self.disk.files.iter_mut().next_back().unwrap();
        (segment, &mut file.now)
    }
}

#[test]
fn damage_before_valid_batches_is_refused_by_file_and_offset_and_a_torn_end_is_cut_off() {
    let mut bench = Bench::new();
    bench.add(3);
    let (segment, file) = bench.last_file();
    let whole = file.clone();
    let begins = |at: &usize| whole[*at..].starts_with(&format::BATCH_MAGIC);
    let batches: Vec<usize> = (0..whole.len()).filter(begins).collect();
    assert_eq!((segment, batches.len()), (SegmentNumber(1), 4), "a checkpoint and three events");
    for at in batches[1]..whole.len() {
        bench.last_file().1.clone_from(&whole);
        bench.last_file().1[at] ^= 0x10;
        let batch = batches.iter().rposition(|&start| start <= at).unwrap();
        match (batch, bench.disk.recover()) {
            // Nobody can tell it from a write that was not completed.
            (3, Ok(recovered)) => {
                assert_eq!(recovered.log.stored(), MessageNumber(2), "byte {at}");
                assert_eq!(recovered.torn_bytes as usize, whole.len() - batches[3]);
            }
            (3, Err(damage)) => panic!("byte {at}: {damage}"),
            (_, Ok(_)) => panic!("byte {at} is not noticed"),
            (_, Err(damage)) => {
                assert_eq!((damage.segment, damage.at as usize), (segment, batches[batch]));
                let text = damage.to_string();
                assert!(text.starts_with("00000000000000000001.log: offset "), "{text}");
            }
        }
    }
    for end in batches[3]..whole.len() {
        *bench.last_file().1 = whole[..end].to_vec();
        let recovered = bench.disk.recover().expect("a torn end is no damage");
        assert_eq!(recovered.log.stored(), MessageNumber(2), "{end} bytes");
    }
}

#[test]
fn damage_in_an_earlier_file_is_found_when_it_is_read() {
    let mut bench = Bench::new();
    bench.add(60);
    let whole = bench.disk.files[&SegmentNumber(1)].now.clone();
    for at in 0..whole.len() {
        bench.disk.files.get_mut(&SegmentNumber(1)).unwrap().now[at] ^= 0x40;
        let log = bench.disk.recover().expect("only the last file is read").log;
        let damage = bench.disk.read_all(&log, DEFAULT).expect_err("a damaged file");
        assert_eq!(damage.segment, SegmentNumber(1), "byte {at}");
        bench.disk.files.get_mut(&SegmentNumber(1)).unwrap().now.clone_from(&whole);
    }
    for end in 0..whole.len() {
        bench.disk.files.get_mut(&SegmentNumber(1)).unwrap().now.truncate(end);
        let log = bench.disk.recover().expect("only the last file is read").log;
        bench.disk.read_all(&log, DEFAULT).expect_err("a file that was cut off");
        bench.disk.files.get_mut(&SegmentNumber(1)).unwrap().now.clone_from(&whole);
    }
}

#[test]
fn a_file_goes_when_every_group_has_settled_its_events_and_not_before() {
    let mut bench = Bench::new();
    bench.add(60);
    let files: Vec<_> = bench.disk.files.keys().copied().collect();
    assert!(files.len() >= 4, "{files:?}");
    bench.settle(DEFAULT, 0..60);
    let is_there = |segment| bench.disk.files.contains_key(segment);
    assert!(files.iter().all(is_there), "the other group has settled nothing");
    // All but the first event: the first file stays, and those behind it go.
    bench.settle(AUDIT, 1..60);
    let left: Vec<u64> = bench.disk.files.keys().map(|segment| segment.0).collect();
    assert_eq!((left[0], left.len()), (1, 2), "{left:?}");
    assert_eq!(bench.log.held(), Credit { messages: 1, bytes: 9 });
    bench.restart(&group_names());
    assert_eq!(bench.log.held(), Credit { messages: 1, bytes: 9 });
    assert_eq!((bench.unsettled(DEFAULT), bench.unsettled(AUDIT)), (vec![], vec![0]));
    bench.settle(AUDIT, [0]);
    assert_eq!((bench.disk.files.len(), bench.log.held()), (1, Credit::default()));
    let of_files: usize = bench.disk.files.values().map(|file| file.now.len()).sum();
    assert_eq!(bench.log.file_bytes(), of_files as u64);
}

#[test]
fn an_operator_may_remove_a_damaged_file_and_the_other_events_still_come() {
    let mut bench = Bench::new();
    bench.add(60);
    bench.disk.files.remove(&SegmentNumber(2));
    let missing = bench.restart(&group_names());
    let left = bench.unsettled(DEFAULT);
    assert!(missing > 0 && left.len() as u64 + missing == 60, "{missing} of 60 are gone");
    assert_eq!((left[0], left[left.len() - 1], bench.log.held().messages), (0, 59, left.len()));
    bench.settle(DEFAULT, left.clone());
    bench.settle(AUDIT, left);
    assert_eq!(bench.log.held(), Credit::default());
}

#[test]
fn a_new_group_gets_the_events_from_now_on_and_a_removed_one_holds_nothing_up() {
    let mut bench = Bench::new();
    bench.add(20);
    bench.settle(DEFAULT, 0..20);
    bench.restart(&[None, Some("billing".into())]);
    assert_eq!(bench.log.held(), Credit::default());
    bench.add(1);
    let is_same = |bench: &Bench| {
        assert_eq!(bench.unsettled(AUDIT), [20], "the group at this index is billing now");
        assert_eq!(bench.unsettled(DEFAULT), [20]);
    };
    is_same(&bench);
    bench.restart(&[None, Some("billing".into())]);
    is_same(&bench);
    bench.restart(&[None]);
    bench.settle(DEFAULT, [20]);
    assert_eq!((bench.log.held(), bench.disk.files.len()), (Credit::default(), 1));
}

#[test]
fn events_that_no_consumer_can_have_had_are_not_marked_as_redelivered() {
    let mut bench = Bench::new();
    let marks = |bench: &Bench| -> Vec<bool> {
        let events = bench.disk.read_all(&bench.log, DEFAULT).unwrap();
        events.iter().map(|event| event.is_redelivered).collect()
    };
    bench.add(2);
    bench.restart(&group_names());
    assert_eq!(marks(&bench), [false, false]);
    bench.log.set_consumed(DEFAULT, true, MessageNumber(0));
    assert!(bench.log.is_urgent() && !bench.log.is_written(), "a consumer waits for that");
    bench.add(1);
    bench.log.set_consumed(DEFAULT, false, MessageNumber(3));
    bench.add(1);
    bench.restart(&group_names());
    assert_eq!(marks(&bench), [true, true, true, false]);
    bench.log.set_consumed(DEFAULT, true, MessageNumber(0));
    bench.write();
    bench.restart(&group_names());
    assert_eq!(marks(&bench), [true; 4], "the node ended while there was a consumer");
}

#[test]
fn events_that_are_handed_out_in_vain_without_end_hold_nothing_up_and_take_bounded_room() {
    let mut bench = Bench::new();
    bench.add(1);
    let number = MessageNumber(0);
    let fail = |log: &mut Log, tries: u16| {
        (0..100).for_each(|more| {
            let failed = FailedTries { tries: tries * 100 + more, until_ms: 0 };
            log.note_retry(DEFAULT, number, failed);
        });
    };
    let next = bench.log.append(ClientId::from_value(1), 7, b"next");
    let mut tasks = 0;
    // As fast as anything is written.
    while bench.log.stored() <= next {
        fail(&mut bench.log, tasks);
        assert!(bench.log.unwritten_bytes() < 2 * RETRIES_BYTES_MAX);
        tasks += 1;
        assert!(tasks < 5, "the event is stored");
        bench.carry_out_one();
    }
    bench.write();
    assert!(bench.log.is_written());
    bench.restart(&group_names());
    let events = bench.disk.read_all(&bench.log, DEFAULT).expect("nothing is damaged");
    assert_eq!(events[0].failed.tries, (tasks - 1) * 100 + 99);
    assert_eq!(events[1].failed, FailedTries::default());
}

#[test]
fn events_and_checkpoints_larger_than_a_read_are_read() {
    let mut bench = Bench::new();
    let large = vec![b'x'; 3 << 20];
    for json in [&large[..], b"small", &large[..1 << 20], b"small"] {
        bench.log.append(ClientId::from_value(1), 7, json);
    }
    bench.write();
    bench.restart(&group_names());
    let events = bench.disk.read_all(&bench.log, AUDIT).unwrap();
    let lengths: Vec<_> = events.iter().map(|event| event.frame.payload().len()).collect();
    assert_eq!(lengths, [3 << 20, 5, 1 << 20, 5]);
}

#[test]
fn the_format_is_version_1_and_another_version_or_topic_is_refused() {
    let mut bench = Bench::new();
    bench.log.append(ClientId::from_value(0x0102_0304), 1_800_000_000_000, b"{}");
    bench.write();
    let hex: String = bench.last_file().1.iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = concat!(
        // The head of the segment.
        "6772696463617374",
        "01000000",
        "06000000",
        "0100000000000000",
        "0000000000000000",
        "0900000000000000",
        "6f7264657273",
        "00344723",
        // The checkpoint: nothing held, no segments before, two groups.
        "ff474342",
        "4f000000",
        "97731f12",
        "0000000000000000",
        "0410000000",
        "00000000000000000000000000000000",
        "0500000000",
        "0613000000",
        "0000",
        "000000000000000000",
        "0000000000000000",
        "0618000000",
        "0500",
        "6175646974",
        "000000000000000000",
        "0000000000000000",
        // An event.
        "ff474342",
        "17000000",
        "56ce3745",
        "0000000000000000",
        "0112000000",
        "0403020100000000",
        "00505c18a3010000",
        "7b7d",
    );
    assert_eq!(hex, expected);

    let whole = bench.last_file().1.clone();
    let mut newer = whole.clone();
    newer[8] = 2;
    let end = SEGMENT_HEAD_BYTES - 4 + TOPIC.len();
    let checksum = crc32c::crc32c(&newer[..end]).to_le_bytes();
    newer[end..end + 4].copy_from_slice(&checksum);
    *bench.last_file().1 = newer;
    let damage = bench.disk.recover().expect_err("another version");
    assert!(damage.why.contains("another version of gridcast"), "{damage}");
    *bench.last_file().1 = whole.clone();
    let mut recovery =
        Recovery::new(LogId(1), "other", SEGMENT_BYTES, [(SegmentNumber(1), whole.len() as u64)]);
    let damage = recovery.handle_read(&whole).expect_err("another topic");
    assert!(damage.why.contains("belongs to another topic"), "{damage}");
}

#[test]
fn only_files_with_the_name_of_a_segment_are_segments() {
    let number = SegmentNumber(42);
    assert_eq!(SegmentNumber::of_file_name(&number.file_name()), Some(number));
    for name in ["42.log", "0000000000000000004x.log", "+0000000000000000042.log", "lock", ""] {
        assert_eq!(SegmentNumber::of_file_name(name), None, "{name}");
    }
}
