//! Events that are taken over HTTP, and their tags.
//!
//! A tag names one hand-out of an event: the node that holds the event, the start of that node, the topic, the
//! take, and the number of the event in the topic. Every node of the grid understands it. As text it is base64url,
//! with a checksum, so that a damaged tag is an error and not another event.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::NAME_BYTES_MAX;
use super::write::{event_object, put_list};
use crate::address::{Incarnation, NodeId, placement};
use crate::protocol::frame::Frame;
use crate::protocol::json::put_string;

/// The tag of an event that was taken over HTTP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TakenTag {
    /// The node that holds the event.
    pub node: NodeId,
    /// The start of that node.
    pub incarnation: Incarnation,
    /// The take, unique in the grid.
    pub take: u64,
    /// The number of the event in the topic.
    pub number: u64,
    /// The topic.
    pub topic: Box<str>,
}

/// An event in the answer to a take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenEvent {
    /// The tag by which the event is acknowledged.
    pub tag: TakenTag,
    /// Whether the event was handed out before and not acknowledged.
    pub is_redelivered: bool,
    /// The encoded event.
    pub frame: Frame,
}

/// The first byte of a tag.
const VERSION: u8 = 1;

/// Bytes of a tag before the topic: version, node, incarnation, take, number.
const HEAD_BYTES: usize = 1 + 2 + 8 + 8 + 8;

/// Bytes of the checksum, which follows the topic.
const CHECKSUM_BYTES: usize = 4;

/// The length of the longest tag as text.
const TEXT_BYTES_MAX: usize = (HEAD_BYTES + NAME_BYTES_MAX + CHECKSUM_BYTES).div_ceil(3) * 4;

impl TakenTag {
    /// Returns the tag as text.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.topic.len() + CHECKSUM_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.node.number().to_be_bytes());
        for number in [self.incarnation.0, self.take, self.number] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(self.topic.as_bytes());
        let checksum = checksum(&bytes);
        bytes.extend_from_slice(&checksum);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads what [`Self::to_text`] has written. `None`: the text is no tag, or damaged.
    pub fn from_text(text: &str) -> Option<Self> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (bytes, sum) = bytes.split_last_chunk::<CHECKSUM_BYTES>()?;
        let (head, topic) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        if *sum != checksum(bytes) || head[0] != VERSION {
            return None;
        }
        let number = |at: usize| {
            let field = head[at..].first_chunk::<8>().expect("the head has three numbers");
            u64::from_be_bytes(*field)
        };
        let topic = std::str::from_utf8(topic).ok()?;
        Some(Self {
            node: NodeId::new(u16::from_be_bytes([head[1], head[2]]))?,
            incarnation: Incarnation(number(3)),
            take: number(11),
            number: number(19),
            topic: Some(topic).filter(|topic| (1..=NAME_BYTES_MAX).contains(&topic.len()))?.into(),
        })
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = placement::hash(bytes);
    ((hash ^ hash >> 32) as u32).to_be_bytes()
}

/// Appends the answer to a take: `{"events":[…]}`, each event as the `p` of an event with its tag.
pub(super) fn put_taken(out: &mut Vec<u8>, events: &[TakenEvent]) {
    out.extend_from_slice(b"{\"events\":");
    put_list(out, events, |out, TakenEvent { tag, is_redelivered, frame }| {
        let object = event_object(frame.payload());
        out.extend_from_slice(object.strip_suffix(b"}").unwrap_or(object));
        out.extend_from_slice(b",\"g\":\"");
        out.extend_from_slice(tag.to_text().as_bytes());
        out.push(b'"');
        if *is_redelivered {
            out.extend_from_slice(b",\"redelivered\":true");
        }
        out.push(b'}');
    });
    out.push(b'}');
}

/// Appends the answer to an acknowledgement of taken events: `{"s":true,"stale":[…]}`.
pub(super) fn put_settled(out: &mut Vec<u8>, stale: &[TakenTag]) {
    out.extend_from_slice(b"{\"s\":true,\"stale\":");
    put_list(out, stale, |out, tag| put_string(out, &tag.to_text()));
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ClientId;
    use crate::protocol::api::{EventHead, Reply, put_answer, put_event};

    fn tag(topic: &str) -> TakenTag {
        TakenTag {
            node: NodeId::new(1023).unwrap(),
            incarnation: Incarnation(1_700_000_000_123),
            take: u64::MAX,
            number: 7,
            topic: topic.into(),
        }
    }

    #[test]
    fn a_tag_comes_back_as_it_was_and_a_damaged_one_is_none() {
        for topic in ["orders", "ü", &"x".repeat(NAME_BYTES_MAX)] {
            let text = tag(topic).to_text();
            assert_eq!(TakenTag::from_text(&text), Some(tag(topic)));
            for at in 0..text.len() {
                let mut damaged = text.clone().into_bytes();
                damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
                let damaged = String::from_utf8(damaged).unwrap();
                assert_eq!(TakenTag::from_text(&damaged), None, "{at}");
                assert_eq!(TakenTag::from_text(&text[..at]), None, "{at}");
            }
        }
        for text in [tag("").to_text(), tag(&"x".repeat(256)).to_text(), "ü".into(), "17".into()] {
            assert_eq!(TakenTag::from_text(&text), None, "{text}");
        }
    }

    #[test]
    fn a_taken_event_has_the_fields_of_an_event_and_its_tag() {
        let mut encoded = Vec::new();
        let (node, client) = (NodeId::new(1).unwrap(), ClientId::from_value(5));
        put_event(&mut encoded, &mut Vec::new(), EventHead { node, client, topic: "t" }, |out| {
            out.extend_from_slice(b"{}");
        });
        let frame = Frame::from_encoded(&encoded);
        let event =
            |is_redelivered| TakenEvent { tag: tag("t"), is_redelivered, frame: frame.clone() };
        let mut out = Vec::new();
        put_answer(&mut out, &Ok(Reply::Taken(vec![event(false), event(true)])), None);
        let text = tag("t").to_text();
        let expected = format!(
            r#"{{"E":null,"r":{{"events":[{{"n":1,"c":"5","t":"t","d":{{}},"g":"{text}"}},{{"n":1,"c":"5","t":"t","d":{{}},"g":"{text}","redelivered":true}}]}}}}"#
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
