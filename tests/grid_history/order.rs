//! What is known of the order of messages, from all that devices and back ends are told.

use std::collections::{BTreeSet, HashMap};

use gridcast::protocol::position::Position;

/// The one order of all messages, as far as it was seen.
pub struct Order {
    // Whether messages may have another place on another side of a split, or after all copies were lost.
    may_repeat: bool,
    // Whether two messages may follow the same one, on two sides of a split.
    may_fork: bool,
    // The place before each message, and the place behind the message that follows a place.
    before: HashMap<Position, Position>,
    behind: HashMap<Position, Position>,
    // The message of each place, and the place of each message.
    contents: HashMap<Position, String>,
    places: HashMap<String, Position>,
    /// What was published and answered.
    pub answered: BTreeSet<String>,
}

impl Order {
    pub fn new(may_repeat: bool, may_fork: bool) -> Self {
        Self {
            may_repeat,
            may_fork,
            before: HashMap::new(),
            behind: HashMap::new(),
            contents: HashMap::new(),
            places: HashMap::new(),
            answered: BTreeSet::new(),
        }
    }

    /// A back end is told the place of its message.
    pub fn learn_answer(&mut self, position: Position, data: String) {
        self.learn_place(position, &data);
        self.answered.insert(data);
    }

    /// A device gets a message next to another place.
    pub fn learn_message(&mut self, before: Option<Position>, position: Position, data: &str) {
        self.learn_place(position, data);
        let Some(before) = before else { return };
        let known = *self.before.entry(position).or_insert(before);
        assert_eq!(known, before, "one device has missed what is before {data}");
        let behind = *self.behind.entry(before).or_insert(position);
        assert!(self.may_fork || behind == position, "two messages follow {before:?}");
    }

    /// A place has one message, and, unless a history was lost, a message has one place.
    fn learn_place(&mut self, position: Position, data: &str) {
        let known = self.contents.entry(position).or_insert_with(|| data.to_owned());
        assert_eq!(known, data, "two messages have the place {position:?}");
        let known = *self.places.entry(data.to_owned()).or_insert(position);
        assert!(self.may_repeat || known == position, "{data} has two places");
    }
}
