//! Messages about who is present in channels, between the shards that have clients and the home of a channel.

use std::sync::Arc;

/// The most users, or members, that one message names. A longer list takes several messages.
pub const MEMBERS_PER_MESSAGE_MAX: usize = 256;

/// A user, or with `None` all clients without a user.
pub type PresentMember = Option<Arc<str>>;

/// A message about a channel with presence: see `channel::presence`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceMessage {
    /// The channel.
    pub channel: Arc<str>,
    /// The news about the channel.
    pub news: PresenceNews,
}

/// What a [`PresenceMessage`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceNews {
    /// To the home: the sender reports its members of the channel from now on. Nothing that it reported before counts.
    Begin(Beginning),
    /// To the home: users who are present as far as the devices of the sender were told.
    Known(Vec<Arc<str>>),
    /// To the home: members with clients on the sender.
    Present(Vec<PresentMember>),
    /// To the home: a member without clients on the sender, for at least the grace of the channel.
    Absent(PresentMember),
    /// To the home: the sender has another home for the channel now.
    End,
    /// From the home: users who are present. Devices are not told, because they know. An empty list confirms that the home
    /// has taken a report.
    WereThere(Vec<Arc<str>>),
    /// From the home: users who are present. Devices are told of those that the receiver did not know.
    Joined(Vec<Arc<str>>),
    /// From the home: a user who is not present any more.
    Left(Arc<str>),
    /// From the home: the receiver is the standby of the home. It follows the channel without clients in it.
    Guard,
    /// From the home: the receiver is not the standby any more.
    Unguard,
}

impl PresenceNews {
    /// Whether this is for the home of the channel. Otherwise it is from the home.
    pub fn is_for_home(&self) -> bool {
        matches!(
            self,
            Self::Begin(_) | Self::Known(_) | Self::Present(_) | Self::Absent(_) | Self::End
        )
    }
}

/// Why a shard begins to report a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// The shard had no clients in the channel.
    New,
    /// The home was another shard, which is still reachable.
    Moved,
    /// The shard has lost the home that it reported to.
    Lost,
}
