//! A call of a back end that waits until its earlier calls are answered.

use super::Shape;
use crate::address::ClientId;
use crate::protocol::api::{Call, Content, Function, MultiPublish};
use crate::protocol::frame::Kind;

/// A call that waits until all earlier calls of its connection are answered, because it would overtake them.
#[derive(Debug)]
pub struct ParkedCall {
    shape: Shape,
    call: OwnedCall,
}

#[derive(Debug)]
enum OwnedCall {
    Send(ClientId, OwnedContent),
    Publish(Box<str>, OwnedContent),
    MultiPublish {
        channels: Vec<Box<str>>,
        is_list: bool,
        excluded: Vec<ClientId>,
        key: Option<Box<str>>,
        content: OwnedContent,
    },
    Call(ClientId, Function),
    UserSend(Vec<Box<str>>, OwnedContent),
    UserCall(Vec<Box<str>>, Function),
}

#[derive(Debug)]
struct OwnedContent {
    kind: Kind,
    bytes: Box<[u8]>,
}

impl OwnedContent {
    fn of(content: Content<'_>) -> Self {
        Self { kind: content.kind, bytes: content.bytes.into_owned().into() }
    }

    fn borrowed(&self) -> Content<'_> {
        Content { kind: self.kind, bytes: (&self.bytes[..]).into() }
    }
}

impl ParkedCall {
    /// Whether a call can be parked: it is for clients. No other call can overtake one that is.
    pub fn takes(call: &Call<'_>) -> bool {
        matches!(
            call,
            Call::Send(..)
                | Call::Publish(..)
                | Call::MultiPublish(_)
                | Call::Call(..)
                | Call::UserSend(..)
                | Call::UserCall(..)
        )
    }

    /// Copies a call. `None`: it cannot be parked.
    pub fn new(shape: Shape, call: Call<'_>) -> Option<Self> {
        let call = match call {
            Call::Send(client, content) => OwnedCall::Send(client, OwnedContent::of(content)),
            Call::Publish(channel, content) => {
                OwnedCall::Publish(channel.into(), OwnedContent::of(content))
            }
            Call::MultiPublish(publish) => {
                let MultiPublish { channels, is_list, excluded, key, content } = *publish;
                OwnedCall::MultiPublish {
                    channels: channels.into_iter().map(Box::from).collect(),
                    is_list,
                    excluded,
                    key: key.map(Box::from),
                    content: OwnedContent::of(content),
                }
            }
            Call::Call(client, function) => OwnedCall::Call(client, function),
            Call::UserSend(users, content) => OwnedCall::UserSend(users, OwnedContent::of(content)),
            Call::UserCall(users, function) => OwnedCall::UserCall(users, function),
            _ => return None,
        };
        Some(Self { shape, call })
    }

    /// Has the call carried out: passes on the format of its answer, and the call.
    pub fn resume(self, carry_out: impl FnOnce(Shape, Call<'_>)) {
        let Self { shape, call } = self;
        let call = match &call {
            OwnedCall::Send(client, content) => Call::Send(*client, content.borrowed()),
            OwnedCall::Publish(channel, content) => Call::Publish(channel, content.borrowed()),
            OwnedCall::MultiPublish { channels, is_list, excluded, key, content } => {
                Call::MultiPublish(Box::new(MultiPublish {
                    channels: channels.iter().map(|channel| &**channel).collect(),
                    is_list: *is_list,
                    excluded: excluded.clone(),
                    key: key.as_deref(),
                    content: content.borrowed(),
                }))
            }
            OwnedCall::Call(client, function) => Call::Call(*client, function.clone()),
            OwnedCall::UserSend(users, content) => {
                Call::UserSend(users.clone(), content.borrowed())
            }
            OwnedCall::UserCall(users, function) => Call::UserCall(users.clone(), function.clone()),
        };
        carry_out(shape, call);
    }

    /// Returns the memory that the call takes, in bytes.
    pub fn held_bytes(&self) -> usize {
        let of_names = |names: &[Box<str>]| {
            names.iter().map(|name| name.len() + size_of::<Box<str>>() + 24).sum::<usize>()
        };
        let of_call = match &self.call {
            OwnedCall::Send(_, content) => content.bytes.len(),
            OwnedCall::Publish(channel, content) => channel.len() + content.bytes.len(),
            OwnedCall::MultiPublish { channels, excluded, content, .. } => {
                of_names(channels) + size_of_val(&excluded[..]) + content.bytes.len()
            }
            OwnedCall::Call(_, function) => function.held_bytes(),
            OwnedCall::UserSend(users, content) => of_names(users) + content.bytes.len(),
            OwnedCall::UserCall(users, function) => of_names(users) + function.held_bytes(),
        };
        size_of::<Self>() + of_call
    }
}
