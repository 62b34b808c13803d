//! Rules of channels: messages that back ends publish and send, and their outcome.

use std::collections::{HashMap, HashSet};

use crate::ledger::PeerNumber;

/// A moment, or a place in the order of one back end's requests.
pub type Moment = u64;

/// The back end that asked for something, and when. Its requests take effect in the order of `place`.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub by: PeerNumber,
    pub place: u64,
    pub at: Moment,
}

/// A change of a subscription.
#[derive(Clone, Copy, Debug)]
struct Change {
    asked: Asked,
    answered: Option<Moment>,
    subscribes: bool,
    failed: bool,
}

impl Change {
    fn is_before(&self, asked: &Asked) -> bool {
        let by_order = self.asked.by == asked.by && self.asked.place < asked.place;
        by_order || self.answered.is_some_and(|answered| answered < asked.at)
    }
}

struct Publish {
    asked: Asked,
    channel: String,
    // Taken, not taken; and when the answer came.
    answer: Option<(u64, u64, Moment)>,
}

struct Send {
    asked: Asked,
    client: PeerNumber,
    // Taken or not, and when the answer came.
    answer: Option<(bool, Moment)>,
}

/// How strict the rules may be: what is known of clients, and of what is between the nodes.
pub trait Truth {
    /// Whether a client has ended: it may not have read what it was sent.
    fn has_ended(&self, client: PeerNumber) -> bool;

    /// Whether its node knew at this time that it was gone.
    fn was_gone(&self, client: PeerNumber, at: Moment) -> bool;

    /// Whether all nodes were there and heard each other from the question to the answer.
    fn is_whole(&self, asked: &Asked, answered: Moment) -> bool;

    /// Whether what was asked for came to the client's node, however late.
    fn is_reached(&self, asked: &Asked, client: PeerNumber) -> bool;

    /// Whether what waits for a client never is too much.
    fn is_roomy(&self) -> bool;
}

/// All pushes of a run.
#[derive(Default)]
pub struct Pushes {
    // By back end and place in its requests.
    publishes: HashMap<(PeerNumber, u64), Publish>,
    sends: HashMap<(PeerNumber, u64), Send>,
    changes: HashMap<(PeerNumber, String), Vec<Change>>,
    got: HashSet<(PeerNumber, PeerNumber, u64)>,
    last: HashMap<(PeerNumber, PeerNumber), u64>,
}

impl Pushes {
    pub fn note_publish(&mut self, asked: Asked, channel: &str) {
        let publish = Publish { asked, channel: channel.into(), answer: None };
        self.publishes.insert((asked.by, asked.place), publish);
    }

    pub fn note_published(&mut self, by: PeerNumber, place: u64, tally: (u64, u64), at: Moment) {
        let publish = self.publishes.get_mut(&(by, place)).expect("it was asked for");
        publish.answer = Some((tally.0, tally.1, at));
    }

    pub fn note_send(&mut self, asked: Asked, client: PeerNumber) {
        self.sends.insert((asked.by, asked.place), Send { asked, client, answer: None });
    }

    pub fn note_sent(&mut self, by: PeerNumber, place: u64, is_taken: bool, at: Moment) {
        self.sends.get_mut(&(by, place)).expect("it was asked for").answer = Some((is_taken, at));
    }

    pub fn note_change(
        &mut self,
        asked: Asked,
        client: PeerNumber,
        channel: &str,
        subscribes: bool,
    ) {
        let change = Change { asked, answered: None, subscribes, failed: false };
        self.changes.entry((client, channel.into())).or_default().push(change);
    }

    /// A change was answered.
    pub fn note_changed(&mut self, by: PeerNumber, place: u64, took_effect: bool, at: Moment) {
        for change in self.changes.values_mut().flatten() {
            if change.asked.by == by && change.asked.place == place {
                (change.answered, change.failed) = (Some(at), !took_effect);
            }
        }
    }

    /// A client got what request `place` of a back end pushed.
    pub fn note_got(&mut self, client: PeerNumber, by: PeerNumber, place: u64) {
        let last = self.last.insert((client, by), place);
        assert!(
            last.is_none_or(|last| last < place),
            "client {client} got {place} of back end {by} after {last:?}"
        );
        self.got.insert((client, by, place));
        if let Some(send) = self.sends.get(&(by, place)) {
            assert_eq!(send.client, client, "what was sent to one client came to another");
            return;
        }
        let publish = self.publishes.get(&(by, place)).expect("what comes was pushed");
        let is_possible = self.changes.contains_key(&(client, publish.channel.clone()));
        assert!(is_possible, "client {client} was never in {}", publish.channel);
    }

    /// Every answer is true. To be asked when all is quiet.
    pub fn check(&self, truth: &impl Truth) {
        self.sends.values().for_each(|send| self.check_send(send, truth));
        let mut receivers: HashMap<(PeerNumber, u64), Vec<PeerNumber>> = HashMap::new();
        for &(client, by, place) in &self.got {
            receivers.entry((by, place)).or_default().push(client);
        }
        for (key, publish) in &self.publishes {
            let got = receivers.get(key).map_or(&[][..], |clients| clients);
            self.check_publish(publish, got, truth);
        }
    }

    /// Returns the tally of the last publish to a channel that `by` asked for after `since`.
    pub fn tally_since(&self, since: Moment, by: PeerNumber, channel: &str) -> Option<(u64, u64)> {
        let is_meant =
            |p: &&Publish| p.asked.by == by && p.asked.at > since && p.channel == channel;
        let last = self.publishes.values().filter(is_meant).max_by_key(|p| p.asked.at)?;
        last.answer.map(|(taken, failed, _)| (taken, failed))
    }

    fn check_send(&self, send: &Send, truth: &impl Truth) {
        let Send { asked, client, answer: Some((is_taken, answered)) } = send else { return };
        let got = self.got.contains(&(*client, asked.by, asked.place));
        let has_ended = truth.has_ended(*client);
        if *is_taken {
            return assert!(got || has_ended, "it did not come to client {client}: {asked:?}");
        }
        if truth.is_whole(asked, *answered) {
            assert!(!got, "it came to client {client} though it failed: {asked:?}");
            assert!(has_ended || !truth.is_roomy(), "client {client} did not take it: {asked:?}");
        }
    }

    fn check_publish(&self, publish: &Publish, got: &[PeerNumber], truth: &impl Truth) {
        let Some((taken, failed, answered)) = publish.answer else { return };
        let asked = &publish.asked;
        let what = format!("{asked:?} in {} ({taken}, {failed})", publish.channel);
        let is_whole = truth.is_whole(asked, answered);
        // What is late may come after the answer.
        let until = if is_whole { answered } else { Moment::MAX };
        let (mut certain, mut missed, mut possible, mut ended) = (0, 0, 0, 0);
        for ((client, channel), changes) in &self.changes {
            let is_later = changes.iter().all(|change| change.asked.at > until);
            if *channel != publish.channel || is_later || truth.was_gone(*client, asked.at) {
                continue;
            }
            possible += 1;
            ended += u64::from(truth.has_ended(*client));
            if is_certain(changes, asked, until)
                && !truth.has_ended(*client)
                && truth.is_reached(asked, *client)
            {
                certain += 1;
                missed += u64::from(!got.contains(client));
            }
        }
        let got = got.len() as u64;
        let excused = if truth.is_roomy() { 0 } else { failed };
        assert!(missed <= excused, "{missed} subscribers missed it: {what}");
        assert!(taken <= got + ended, "{got} got it, {ended} ended: {what}");
        if is_whole {
            assert!(got <= taken, "{got} got it: {what}");
            assert!(certain <= taken + failed, "{certain} were subscribed: {what}");
            assert!(taken + failed <= possible, "{possible} could be subscribed: {what}");
            assert!(failed == 0 || !truth.is_roomy(), "some did not take it: {what}");
        }
    }
}

/// Whether these changes leave no doubt that the client was subscribed for all of a publish.
fn is_certain(changes: &[Change], publish: &Asked, until: Moment) -> bool {
    changes.iter().any(|joined| {
        let holds = joined.subscribes && !joined.failed && joined.is_before(publish);
        holds
            && changes.iter().filter(|change| !change.subscribes).all(|left| {
                let is_later = left.asked.by == publish.by && left.asked.place > publish.place;
                // One that failed may have come late.
                let is_over = left.is_before(&joined.asked) && !left.failed;
                is_over || left.asked.at > until || is_later
            })
    })
}
