//! What back ends publish and send, and what became of it: the rules of channels.

use std::collections::{HashMap, HashSet};

use crate::ledger::PeerNumber;

/// A moment, or a place in the order of one back end's requests.
pub type Moment = u64;

/// Who asked for something and when: what a back end asked for before takes effect before.
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
    client: PeerNumber,
    is_taken: Option<bool>,
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
        self.sends.insert((asked.by, asked.place), Send { client, is_taken: None });
    }

    pub fn note_sent(&mut self, by: PeerNumber, place: u64, is_taken: bool) {
        self.sends.get_mut(&(by, place)).expect("it was asked for").is_taken = Some(is_taken);
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

    /// Every answer is true. To be asked when all is quiet; `has_ended` tells of a client whether it
    /// may not have read what it was sent.
    pub fn check(&self, has_ended: impl Fn(PeerNumber) -> bool) {
        for (&(by, place), send) in &self.sends {
            let got = self.got.contains(&(send.client, by, place));
            match send.is_taken {
                Some(true) => assert!(
                    got || has_ended(send.client),
                    "{place} of back end {by} did not come to client {}",
                    send.client
                ),
                Some(false) => assert!(!got, "{place} of back end {by} came though it failed"),
                None => {}
            }
        }
        let mut receivers: HashMap<(PeerNumber, u64), Vec<PeerNumber>> = HashMap::new();
        for &(client, by, place) in &self.got {
            receivers.entry((by, place)).or_default().push(client);
        }
        for (key, publish) in &self.publishes {
            let got = receivers.get(key).map_or(&[][..], |clients| clients);
            self.check_publish(publish, got, &has_ended);
        }
    }

    /// What the answer counted of the last publish to a channel that `by` asked for after `since`.
    pub fn tally_since(&self, since: Moment, by: PeerNumber, channel: &str) -> Option<(u64, u64)> {
        let is_meant =
            |p: &&Publish| p.asked.by == by && p.asked.at > since && p.channel == channel;
        let last = self.publishes.values().filter(is_meant).max_by_key(|p| p.asked.at)?;
        last.answer.map(|(taken, failed, _)| (taken, failed))
    }

    fn check_publish(
        &self,
        publish: &Publish,
        got: &[PeerNumber],
        has_ended: &impl Fn(PeerNumber) -> bool,
    ) {
        let Some((taken, failed, answered)) = publish.answer else { return };
        let what = format!("{:?} in {} ({taken}, {failed})", publish.asked, publish.channel);
        let (mut certain, mut missed, mut possible, mut ended) = (0, 0, 0, 0);
        for ((client, channel), changes) in &self.changes {
            if *channel != publish.channel || changes.iter().all(|c| c.asked.at > answered) {
                continue;
            }
            possible += 1;
            ended += u64::from(has_ended(*client));
            if is_certain(changes, &publish.asked, answered) && !has_ended(*client) {
                certain += 1;
                missed += u64::from(!got.contains(client));
            }
        }
        let got = got.len() as u64;
        assert!(missed <= failed, "{missed} subscribers missed it: {what}");
        assert!(got <= taken && taken <= got + ended, "{got} got it, {ended} ended: {what}");
        assert!(certain <= taken + failed, "{certain} were subscribed: {what}");
        assert!(taken + failed <= possible, "{possible} could be subscribed: {what}");
    }
}

/// Whether these changes leave no doubt that the client was subscribed for all of a publish.
fn is_certain(changes: &[Change], publish: &Asked, answered: Moment) -> bool {
    changes.iter().any(|joined| {
        let holds = joined.subscribes && !joined.failed && joined.is_before(publish);
        holds
            && changes.iter().filter(|change| !change.subscribes).all(|left| {
                let is_later = left.asked.by == publish.by && left.asked.place > publish.place;
                left.is_before(&joined.asked) || left.asked.at > answered || is_later
            })
    })
}
