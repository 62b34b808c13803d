//! Events as CloudEvents 1.0 in JSON, in batches.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::event_kind;
use crate::address::ClientId;
use crate::protocol::api::event_object;
use crate::protocol::json::{put_number, put_string};

/// The content type of a batch.
pub const BATCH_TYPE: &str = "application/cloudevents-batch+json";

/// An event, and what its envelope says.
#[derive(Clone, Copy, Debug)]
pub struct CloudEvent<'e> {
    /// The id, the same for every attempt.
    pub id: &'e str,
    /// The client that sent the event.
    pub client: ClientId,
    /// When the event came to the topic, in Unix milliseconds.
    pub arrived_unix_ms: u64,
    /// The JSON of the encoded event.
    pub json: &'e [u8],
}

/// Appends a batch of events, with this `source`.
pub fn put_batch<'e>(
    out: &mut Vec<u8>,
    source: &str,
    events: impl Iterator<Item = CloudEvent<'e>>,
) {
    out.push(b'[');
    for (at, event) in events.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put_event(out, source, event);
    }
    out.push(b']');
}

fn put_event(out: &mut Vec<u8>, source: &str, event: CloudEvent<'_>) {
    let object = event_object(event.json);
    out.extend_from_slice(b"{\"specversion\":\"1.0\",\"id\":");
    put_string(out, event.id);
    out.extend_from_slice(b",\"source\":");
    put_string(out, source);
    out.extend_from_slice(b",\"type\":");
    put_string(out, &format!("gridcast.{}", event_kind(object)));
    if !event.client.is_of_no_client() {
        out.extend_from_slice(b",\"subject\":\"");
        put_number(out, event.client.value());
        out.push(b'"');
    }
    out.extend_from_slice(b",\"time\":");
    put_string(out, &time_of(event.arrived_unix_ms));
    out.extend_from_slice(b",\"datacontenttype\":\"application/json\",\"data\":");
    out.extend_from_slice(object);
    out.push(b'}');
}

fn time_of(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000);
    let text = time.ok().and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "1970-01-01T00:00:00Z".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_an_array_of_cloud_events() {
        let json =
            br#"{"e":"queue.pop","p":{"n":1,"c":"5","t":"a","d":{"event":"open"}},"id":null}"#;
        let event = |id| CloudEvent {
            id,
            client: ClientId::from_value(5),
            arrived_unix_ms: 1_700_000_000_123,
            json,
        };
        let mut out = Vec::new();
        put_batch(&mut out, "/gridcast/topics/a", [event("x.1"), event("x.2")].into_iter());
        let batch: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        let expected = serde_json::json!({
            "specversion": "1.0", "id": "x.2", "source": "/gridcast/topics/a",
            "type": "gridcast.open", "subject": "5", "time": "2023-11-14T22:13:20.123Z",
            "datacontenttype": "application/json",
            "data": {"n": 1, "c": "5", "t": "a", "d": {"event": "open"}},
        });
        assert_eq!((batch.as_array().map(Vec::len), &batch[1]), (Some(2), &expected));
        let mut out = Vec::new();
        let pushed = CloudEvent { client: ClientId::of_no_client(5), ..event("x.3") };
        put_batch(&mut out, "/gridcast/topics/a", [pushed].into_iter());
        let batch: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(batch[0].get("subject"), None, "no client has sent it");
    }
}
