mod grid;

use super::PresenceChange::{Joined, Left, Occupied, Vacated};
use super::*;
use crate::address::ShardId;
use crate::message::{Beginning, PresenceMessage, PresenceNews};

/// The same hash in every run, so that a seed repeats what has happened.
pub(super) type NameHasher = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

const TERMS: PresenceTerms = PresenceTerms { grace_ms: 3000, has_topic: true };

fn node(number: u16) -> NodeId {
    NodeId::new(number).expect("a small number")
}

fn shard(number: u16) -> ShardAddress {
    ShardAddress { node: node(number), shard: ShardId(0) }
}

fn text(name: &str) -> Arc<str> {
    name.into()
}

/// A channel whose home is the first node and whose standby the second, if all three are reachable.
fn channel() -> Arc<str> {
    let places = places(1);
    let is_ranked =
        |name: &Arc<str>| (places.home(name), places.standby(name)) == (shard(1), Some(shard(2)));
    let names = (0..).map(|number: u32| Arc::from(number.to_string()));
    names.into_iter().find(is_ranked).expect("one of six names")
}

fn places(own: u16) -> PresencePlaces {
    let mut places = PresencePlaces::new(shard(own), 1);
    for other in [1, 2, 3] {
        places.add(node(other), 1, Incarnation(1));
    }
    places
}

fn changes(home: &mut HomePresence) -> Vec<PresenceChange> {
    home.check();
    std::iter::from_fn(|| home.poll_change()).collect()
}

fn sent(home: &mut HomePresence) -> Vec<(u16, PresenceNews)> {
    let messages = std::iter::from_fn(|| home.poll_message());
    messages.map(|(to, message)| (to.node.number(), message.news)).collect()
}

/// The home of [`channel`], and what it is told.
struct Home {
    home: HomePresence,
    places: PresencePlaces,
}

impl Home {
    fn new() -> Self {
        Self { home: HomePresence::new(1 << 20), places: places(1) }
    }

    fn tell(&mut self, now_ms: u64, from: u16, news: PresenceNews) {
        let message = PresenceMessage { channel: channel(), news };
        self.home.handle(now_ms, shard(from), message, &self.places, |_| TERMS);
        self.home.check();
    }

    fn begin(&mut self, now_ms: u64, from: u16, beginning: Beginning, members: &[Option<&str>]) {
        self.tell(now_ms, from, PresenceNews::Begin(beginning));
        let members = members.iter().map(|member| member.map(Arc::from)).collect();
        self.tell(now_ms, from, PresenceNews::Present(members));
    }

    fn expire(&mut self, now_ms: u64) -> Vec<PresenceChange> {
        while self.home.expire(now_ms, &self.places, 1) {}
        changes(&mut self.home)
    }
}

#[test]
fn a_shard_reports_a_member_at_the_first_client_and_the_end_when_the_last_is_gone_for_the_grace() {
    let (places, channel) = (places(3), channel());
    let mut local = LocalPresence::new(1 << 20);
    let ada = || Some(text("ada"));
    let reported = |local: &mut LocalPresence, now_ms| {
        while local.expire(now_ms, 1) {}
        local.check();
        let messages: Vec<_> = std::iter::from_fn(|| local.poll_message()).collect();
        assert!(messages.iter().all(|(to, _)| *to == shard(1)), "the home is the first node");
        messages.into_iter().map(|(_, message)| message.news).collect::<Vec<_>>()
    };
    local.enter(&places, &channel, ada(), 3000);
    let present = PresenceNews::Present(vec![ada()]);
    let begin = PresenceNews::Begin(Beginning::New);
    assert_eq!(reported(&mut local, 0), [begin.clone(), present.clone()]);
    local.enter(&places, &channel, ada(), 3000);
    local.leave(1, &channel, ada());
    assert_eq!(reported(&mut local, 10_000), []);
    local.leave(20_000, &channel, ada());
    assert_eq!(reported(&mut local, 22_999), []);
    // Back in time, and gone again.
    local.enter(&places, &channel, ada(), 3000);
    local.leave(23_000, &channel, ada());
    assert_eq!((local.next_expiry(), reported(&mut local, 25_999)), (Some(26_000), vec![]));
    assert_eq!(reported(&mut local, 26_000), [PresenceNews::Absent(ada())]);
    assert!(local.is_empty());
    local.enter(&places, &channel, ada(), 3000);
    assert_eq!(reported(&mut local, 0), [begin, present]);
}

#[test]
fn a_user_joins_with_the_first_client_of_all_shards_and_leaves_with_the_last() {
    let (mut home, channel) = (Home::new(), channel());
    let (ada, here) = (text("ada"), channel.clone());
    home.begin(0, 2, Beginning::New, &[Some("ada")]);
    let told = changes(&mut home.home);
    assert_eq!(told, [Occupied(here.clone()), Joined(here.clone(), ada.clone())]);
    home.begin(1, 3, Beginning::New, &[Some("ada"), None]);
    home.tell(2, 2, PresenceNews::Absent(Some(ada.clone())));
    assert_eq!(changes(&mut home.home), []);
    let told = sent(&mut home.home);
    let joined = || PresenceNews::Joined(vec![ada.clone()]);
    let confirmed = || PresenceNews::WereThere(Vec::new());
    let expected = [
        (2, PresenceNews::Guard),
        (2, joined()),
        (2, confirmed()),
        (3, PresenceNews::WereThere(vec![ada.clone()])),
        (3, confirmed()),
    ];
    assert_eq!(told, expected);
    home.tell(3, 3, PresenceNews::Absent(Some(ada.clone())));
    assert_eq!(changes(&mut home.home), [Left(here.clone(), ada.clone())]);
    let left = PresenceNews::Left(ada.clone());
    assert_eq!(sent(&mut home.home), [(3, left.clone()), (2, left)]);
    home.tell(4, 3, PresenceNews::Absent(None));
    assert_eq!(changes(&mut home.home), [Vacated(here)]);
    assert_eq!(sent(&mut home.home), [(2, PresenceNews::Unguard)]);
    assert_eq!((home.home.channels(), home.home.bytes()), (0, 0));
}

#[test]
fn the_users_of_a_lost_node_leave_unless_they_are_elsewhere_too_or_come_back() {
    let (mut home, here) = (Home::new(), channel());
    home.begin(0, 3, Beginning::New, &[Some("ada"), Some("bob"), Some("eve"), None]);
    home.begin(0, 2, Beginning::New, &[Some("ada")]);
    changes(&mut home.home);
    home.places.remove(node(3));
    home.home.handle_session(1000, node(3), SessionChange::Ended);
    home.tell(1500, 2, PresenceNews::Present(vec![Some(text("eve"))]));
    assert_eq!(home.expire(1749), []);
    assert_eq!(home.expire(1750), [Left(here, text("bob"))]);
}

#[test]
fn a_home_that_follows_a_lost_one_tells_back_ends_only_who_has_come_or_gone() {
    // The second node was the standby.
    let here = channel();
    let mut home = Home { home: HomePresence::new(1 << 20), places: places(2) };
    home.places.remove(node(1));
    let known = |users: &[&str]| PresenceNews::Known(users.iter().map(|user| text(user)).collect());
    home.tell(0, 2, PresenceNews::Begin(Beginning::Lost));
    home.tell(0, 2, known(&["ada", "bob"]));
    home.tell(0, 2, PresenceNews::End);
    home.begin(100, 3, Beginning::Lost, &[Some("ada"), Some("eve")]);
    assert_eq!(home.expire(749), [Joined(here.clone(), text("eve"))]);
    assert_eq!(home.expire(750), [Left(here.clone(), text("bob"))]);
    home.tell(900, 3, PresenceNews::Absent(Some(text("ada"))));
    home.tell(900, 3, PresenceNews::Absent(Some(text("eve"))));
    let left = |user: &str| Left(here.clone(), text(user));
    assert_eq!(home.expire(900), [left("ada"), left("eve"), Vacated(here.clone())]);
}

#[test]
fn a_standby_tells_of_a_channel_whose_clients_are_all_lost_with_the_home() {
    let here = channel();
    let mut standby = LocalPresence::new(1 << 20);
    let mut home = Home { home: HomePresence::new(1 << 20), places: places(2) };
    let mut from_home = |news| {
        standby.handle(shard(1), PresenceMessage { channel: here.clone(), news });
        standby.check();
    };
    from_home(PresenceNews::Guard);
    from_home(PresenceNews::Joined(vec![text("ada"), text("bob")]));
    from_home(PresenceNews::Left(text("bob")));
    assert_eq!(standby.poll_told(), None);
    home.places.remove(node(1));
    standby.handle_session(node(1));
    while standby.move_some(&home.places, 1) {}
    while let Some((to, message)) = standby.poll_message() {
        assert_eq!(to, shard(2));
        home.tell(5000, 2, message.news);
    }
    assert!(standby.is_empty());
    assert_eq!(home.expire(5749), []);
    assert_eq!(home.expire(5750), [Left(here.clone(), text("ada")), Vacated(here)]);
}

#[test]
fn devices_are_told_only_what_they_do_not_know_and_only_the_last_of_it() {
    let (places, channel) = (places(3), channel());
    let mut local = LocalPresence::new(1 << 20);
    local.enter(&places, &channel, None, 3000);
    let tell = |local: &mut LocalPresence, from, news| {
        local.handle(shard(from), PresenceMessage { channel: channel.clone(), news });
        local.check();
    };
    let told = |local: &mut LocalPresence| {
        let told = std::iter::from_fn(|| local.poll_told());
        told.map(|(_, user, is_join)| (user.to_string(), is_join)).collect::<Vec<_>>()
    };
    let users = |names: &[&str]| names.iter().map(|name| text(name)).collect::<Vec<_>>();
    tell(&mut local, 1, PresenceNews::WereThere(users(&["ada", "bob"])));
    tell(&mut local, 1, PresenceNews::WereThere(Vec::new()));
    tell(&mut local, 1, PresenceNews::Joined(users(&["ada", "eve", "ivy"])));
    tell(&mut local, 1, PresenceNews::Left(text("ivy")));
    // Not the home.
    tell(&mut local, 2, PresenceNews::Joined(users(&["joe"])));
    assert_eq!(told(&mut local), [("eve".into(), true)]);
    tell(&mut local, 1, PresenceNews::Left(text("bob")));
    tell(&mut local, 1, PresenceNews::Left(text("joe")));
    assert_eq!(told(&mut local), [("bob".into(), false)]);
    let mut here: Vec<_> = local.users(&channel).map(|user| user.to_string()).collect();
    here.sort_unstable();
    assert_eq!(here, ["ada", "eve"]);
}

#[test]
fn what_back_ends_could_not_be_told_is_told_later_unless_it_is_over() {
    let (mut home, here) = (Home::new(), channel());
    home.begin(0, 2, Beginning::New, &[Some("ada")]);
    let told = changes(&mut home.home);
    told.into_iter().for_each(|change| home.home.tell_again(0, change));
    let told = changes(&mut home.home);
    assert_eq!(told, [Occupied(here.clone()), Joined(here.clone(), text("ada"))]);
    told.into_iter().for_each(|change| home.home.tell_again(0, change));
    home.tell(0, 2, PresenceNews::Absent(Some(text("ada"))));
    assert_eq!((changes(&mut home.home), home.home.channels()), (vec![], 0));
}

#[test]
fn members_take_no_more_memory_than_allowed_and_those_without_room_are_refused() {
    let mut home = Home { home: HomePresence::new(10_000), places: places(1) };
    let names: Vec<String> = (0..1000).map(|number| number.to_string()).collect();
    let members: Vec<Option<&str>> = names.iter().map(|name| Some(&name[..])).collect();
    home.begin(0, 2, Beginning::New, &members);
    let (members, refused) = (home.home.members(), home.home.take_refused());
    assert!((10..30).contains(&members), "{members} members");
    assert_eq!(refused as usize, 1000 - members);
    assert!(home.home.bytes() <= 10_000);
    for name in &names {
        home.tell(1, 2, PresenceNews::Absent(Some(text(name))));
    }
    changes(&mut home.home);
    assert_eq!((home.home.members(), home.home.bytes(), home.home.channels()), (0, 0, 0));

    let mut local = LocalPresence::new(1000);
    local.enter(&places(3), &channel(), None, 0);
    for name in &names {
        let news = PresenceNews::Joined(vec![text(name)]);
        local.handle(shard(1), PresenceMessage { channel: channel(), news });
    }
    local.check();
    let known = local.users(&channel()).count();
    assert_eq!((known, local.take_refused() as usize), (10, 990));
}
