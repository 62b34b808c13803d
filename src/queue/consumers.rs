//! The consumers of one topic: what each of them has, and how to find one by its id or its place.

use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use hashbrown::HashMap;

use crate::address::{ClientId, NodeId};
use crate::message::{BackendId, Terms};
use crate::protocol::frame::Frame;

/// A message in a topic.
#[derive(Debug)]
pub struct Item {
    /// Its number in the topic.
    pub number: u64,
    /// When it came.
    pub since_us: u64,
    /// Another consumer had it before and did not acknowledge it.
    pub is_redelivered: bool,
    /// The shard that fed it is told when it has left the topic.
    pub is_watched: bool,
    /// The number of the `queue.pop` that it was handed out for.
    pub pop: u64,
    /// Its encoded event.
    pub frame: Frame,
}

/// How far a consumer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The answer to its `queue.pop` is not on its way yet.
    Joining,
    /// It competes.
    Active,
    /// It has taken nothing for a while although messages waited for it.
    Stalled,
    /// It asked to stop: it gets nothing more, and is removed when all it has is written.
    Leaving,
    /// Its connection is gone: all it has goes back, and then it is removed.
    Gone,
}

/// One consumer of a topic.
#[derive(Debug)]
pub struct Consumer {
    /// Its connection.
    pub id: BackendId,
    /// How far it is.
    pub state: State,
    /// The number of its latest `queue.pop`.
    pub pop: u64,
    /// It acknowledges what it is handed. Otherwise a message is done with when it was written.
    pub acknowledges: bool,
    /// Messages that it has, in the order they were handed out.
    pub handed: VecDeque<(ClientId, Item)>,
    /// Their bytes.
    pub handed_bytes: usize,
    /// When it last took something, or was handed something while it had nothing.
    pub progress_us: u64,
    /// It is queued to be handed what waits for it.
    pub is_behind: bool,
    window_messages: usize,
    window_bytes: usize,
}

impl Consumer {
    fn new(id: BackendId) -> Self {
        Self {
            id,
            state: State::Joining,
            pop: 0,
            acknowledges: false,
            handed: VecDeque::new(),
            handed_bytes: 0,
            progress_us: 0,
            is_behind: false,
            window_messages: 0,
            window_bytes: 0,
        }
    }

    /// Starts a `queue.pop` on these terms. Without a window of its own, a consumer may have
    /// `window_messages`.
    pub fn begin(&mut self, terms: Terms, window_messages: usize) {
        self.state = State::Joining;
        self.pop = terms.pop;
        self.acknowledges = terms.unsettled_max.is_some();
        self.window_bytes = terms.window_bytes;
        self.window_messages = terms.unsettled_max.unwrap_or(window_messages);
    }

    /// Whether it may be handed one more message now.
    pub fn has_room(&self) -> bool {
        // What it has from an earlier queue.pop may come back, and goes first then.
        let is_clear = self.handed.front().is_none_or(|(_, item)| item.pop == self.pop);
        self.state == State::Active
            && is_clear
            && self.handed.len() < self.window_messages
            && self.handed_bytes < self.window_bytes
    }

    /// Notes a message that is on its way to the consumer.
    pub fn take(&mut self, now_us: u64, client: ClientId, item: Item) {
        if self.handed.is_empty() {
            self.progress_us = now_us;
        }
        self.handed_bytes += item.frame.bytes().len();
        self.handed.push_back((client, item));
    }

    /// Removes the message at this place among those that it has.
    pub fn remove(&mut self, at: usize) -> Option<(ClientId, Item)> {
        let (client, item) = self.handed.remove(at)?;
        self.handed_bytes -= item.frame.bytes().len();
        Some((client, item))
    }

    /// Takes back its latest message, if that is from this `queue.pop`, or from any.
    pub fn take_back(&mut self, pop: Option<u64>) -> Option<(ClientId, Item)> {
        let (_, last) = self.handed.back()?;
        if pop.is_some_and(|pop| last.pop != pop) {
            return None;
        }
        let (client, mut item) = self.remove(self.handed.len() - 1)?;
        item.is_redelivered |= self.acknowledges;
        Some((client, item))
    }

    /// How much it is preferred, the lowest first; `None`: it takes no part. A consumer on the
    /// topic's own node is preferred, and any that takes something to one that does not.
    pub fn rank(&self, node: NodeId) -> Option<u8> {
        let is_remote = u8::from(self.id.at.node != node);
        match self.state {
            State::Active => Some(is_remote),
            State::Stalled => Some(2 + is_remote),
            State::Joining | State::Leaving | State::Gone => None,
        }
    }
}

/// The place of a consumer in [`Consumers`], until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u32);

/// All consumers of a topic.
#[derive(Debug, Default)]
pub struct Consumers {
    places: Vec<Option<Consumer>>,
    free: Vec<Place>,
    // Without those that are gone.
    by_id: HashMap<BackendId, Place>,
}

impl Consumers {
    /// Consumers whose connection is there.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The place of the consumer with this id, if there is one whose connection is there.
    pub fn find(&self, id: BackendId) -> Option<Place> {
        self.by_id.get(&id).copied()
    }

    /// Adds a consumer.
    pub fn insert(&mut self, id: BackendId) -> Place {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            Place(self.places.len() as u32 - 1)
        });
        self.places[place.0 as usize] = Some(Consumer::new(id));
        self.by_id.insert(id, place);
        place
    }

    /// Marks a consumer as gone: its id may come anew, and it keeps its place until
    /// [`Self::remove`].
    pub fn mark_gone(&mut self, id: BackendId) -> Option<Place> {
        let place = self.by_id.remove(&id)?;
        self[place].state = State::Gone;
        Some(place)
    }

    /// Removes a consumer that has nothing any more.
    pub fn remove(&mut self, place: Place) {
        let consumer = self.places[place.0 as usize].take();
        let consumer = consumer.expect("a consumer is removed once");
        debug_assert!(consumer.handed.is_empty(), "what it has goes back first");
        if self.by_id.get(&consumer.id) == Some(&place) {
            self.by_id.remove(&consumer.id);
        }
        self.free.push(place);
    }

    /// The consumer at a place, if there is one.
    pub fn get(&self, place: Place) -> Option<&Consumer> {
        self.places.get(place.0 as usize)?.as_ref()
    }

    /// All of them, those that are gone included, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = (Place, &Consumer)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(at, consumer)| Some((Place(at as u32), consumer.as_ref()?)))
    }

    /// The same, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Place, &mut Consumer)> {
        let places = self.places.iter_mut().enumerate();
        places.filter_map(|(at, consumer)| Some((Place(at as u32), consumer.as_mut()?)))
    }
}

impl Index<Place> for Consumers {
    type Output = Consumer;

    fn index(&self, place: Place) -> &Consumer {
        self.places[place.0 as usize]
            .as_ref()
            .expect("a place is of a consumer until it is removed")
    }
}

impl IndexMut<Place> for Consumers {
    fn index_mut(&mut self, place: Place) -> &mut Consumer {
        self.places[place.0 as usize]
            .as_mut()
            .expect("a place is of a consumer until it is removed")
    }
}
