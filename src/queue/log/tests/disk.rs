//! A simulated disk, which forgets what was not synced, tears writes, fails and fills up.

use std::collections::BTreeMap;

use super::{SEGMENT_BYTES, TOPIC};
use crate::queue::log::{
    Damage, GroupIndex, Log, LogId, Read, Reader, Recovered, Recovery, SegmentNumber, StoredEvent,
    Task,
};

/// The unit in which a simulated disk keeps writes, or forgets them.
const SECTOR: usize = 16;

/// Numbers from a seed (SplitMix64).
pub(in crate::queue) struct Random(pub u64);

impl Random {
    pub(in crate::queue) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(in crate::queue) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(in crate::queue) fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug, Default)]
pub(in crate::queue) struct SimulatedFile {
    pub now: Vec<u8>,
    synced: Vec<u8>,
    // Whether the directory would name the file after a crash.
    is_named: bool,
}

#[derive(Debug, Default)]
pub(in crate::queue) struct Disk {
    pub files: BTreeMap<SegmentNumber, SimulatedFile>,
    // Removed, but the directory may still name them after a crash.
    removed: BTreeMap<SegmentNumber, SimulatedFile>,
    pub bytes_max: Option<usize>,
}

#[derive(Debug, PartialEq)]
pub(in crate::queue) enum Failure {
    Full,
    Broken,
    Crash,
}

impl Disk {
    pub(in crate::queue) fn used(&self) -> usize {
        self.files.values().map(|file| file.now.len()).sum()
    }

    pub(in crate::queue) fn write(
        &mut self,
        random: &mut Random,
        segment: SegmentNumber,
        at: usize,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let left = self.bytes_max.map_or(usize::MAX, |max| max.saturating_sub(self.used()));
        let file = self.files.get_mut(&segment).expect("only files that exist are written");
        let needed = (at + bytes.len()).saturating_sub(file.now.len());
        // A crash or a full disk stops a write anywhere.
        let is_crash = random.happens(3);
        let written = match (needed > left, is_crash) {
            (true, _) => bytes.len() - (needed - left).min(bytes.len()),
            (false, true) => random.below(bytes.len() as u64 + 1) as usize,
            (false, false) => bytes.len(),
        };
        let end = at + written;
        if file.now.len() < end {
            file.now.resize(end, 0);
        }
        file.now[at..end].copy_from_slice(&bytes[..written]);
        match (needed > left, is_crash) {
            (true, _) => Err(Failure::Full),
            (_, true) => Err(Failure::Crash),
            _ if random.happens(2) => Err(Failure::Broken),
            _ => Ok(()),
        }
    }

    pub(in crate::queue) fn sync(
        &mut self,
        random: &mut Random,
        segment: SegmentNumber,
    ) -> Result<(), Failure> {
        match random.below(60) {
            0 => return Err(Failure::Crash),
            1 => return Err(Failure::Broken),
            _ => {}
        }
        let file = self.files.get_mut(&segment).expect("only files that exist are synced");
        file.synced.clone_from(&file.now);
        Ok(())
    }

    pub(in crate::queue) fn carry_out(
        &mut self,
        random: &mut Random,
        task: &Task<'_>,
    ) -> Result<(), Failure> {
        match *task {
            Task::Create(segment, bytes) => {
                let file = self.files.entry(segment).or_default();
                file.now.clear();
                self.write(random, segment, 0, bytes)?;
                self.sync(random, segment)?;
                if random.happens(2) {
                    return Err(Failure::Crash);
                }
                self.files.get_mut(&segment).unwrap().is_named = true;
                self.removed.clear();
            }
            Task::Append(segment, at, bytes) => {
                self.write(random, segment, at as usize, bytes)?;
                self.sync(random, segment)?;
            }
            Task::Truncate(segment, length) => {
                self.files.get_mut(&segment).unwrap().now.truncate(length as usize);
                self.sync(random, segment)?;
            }
            Task::Remove(segment) => {
                let file = self.files.remove(&segment).expect("a file is removed once");
                self.removed.insert(segment, file);
            }
        }
        Ok(())
    }

    /// Forgets part of what was not synced.
    pub(in crate::queue) fn crash(&mut self, random: &mut Random) {
        for (segment, file) in std::mem::take(&mut self.removed) {
            if random.happens(50) {
                self.files.entry(segment).or_insert(file);
            }
        }
        self.files.retain(|_, file| file.is_named || random.happens(50));
        for file in self.files.values_mut() {
            let before = std::mem::take(&mut file.synced);
            let mut after = match random.below(3) {
                0 => before.clone(),
                1 => file.now.clone(),
                _ => file.now[..random.below(file.now.len() as u64 + 1) as usize].to_vec(),
            };
            if after.len() < before.len() {
                after = before.clone();
            }
            for (at, chunk) in after.chunks_mut(SECTOR).enumerate() {
                let old = before.get(at * SECTOR..).unwrap_or_default();
                if random.happens(30) {
                    let kept = old.len().min(chunk.len());
                    chunk[..kept].copy_from_slice(&old[..kept]);
                    chunk[kept..].fill(0);
                }
            }
            file.now.clone_from(&after);
            file.synced = after;
            file.is_named = true;
        }
    }

    pub(in crate::queue) fn read(&self, read: Read) -> Vec<u8> {
        let bytes = &self.files[&read.segment].now;
        let from = (read.at as usize).min(bytes.len());
        bytes[from..bytes.len().min(from + read.length)].to_vec()
    }

    pub(in crate::queue) fn recover(&self) -> Result<Recovered, Damage> {
        let files = self.files.iter().map(|(&number, file)| (number, file.now.len() as u64));
        let mut recovery = Recovery::new(LogId(9), TOPIC, SEGMENT_BYTES, files);
        while let Some(read) = recovery.poll_read() {
            recovery.handle_read(&self.read(read))?;
        }
        recovery.finish()
    }

    /// All that a group has not settled.
    pub(in crate::queue) fn read_all(
        &self,
        log: &Log,
        group: GroupIndex,
    ) -> Result<Vec<StoredEvent>, Damage> {
        let (mut reader, mut events) = (Reader::default(), Vec::new());
        while let Some(read) = log.poll_read(group, &mut reader) {
            events.extend(log.handle_read(group, &mut reader, &self.read(read))?);
        }
        Ok(events)
    }
}
