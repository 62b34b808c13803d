//! A WebSocket is granted to a whole handshake only, and the grant holds nothing that was not
//! meant.

use gridcast::protocol::deflate::Agreement;
use gridcast::protocol::http::{
    Date, Method, Request, RequestLimits, RequestReader, RequestStep, Version,
};
use gridcast::protocol::upgrade::{self, Upgrade};

const LIMITS: RequestLimits = RequestLimits { head_bytes: 1024, headers: 16, body_bytes: 64 };

/// One request.
pub fn run(data: &[u8]) {
    let mut bytes = data.to_vec();
    let mut input = &mut bytes[..];
    let mut reader = RequestReader::default();
    let Ok(RequestStep::Request(request)) = reader.read(&mut input, &LIMITS) else { return };
    match upgrade::check(&request) {
        Ok(upgrade) => {
            check_request(&request);
            check_grant(&upgrade);
        }
        Err(error) => {
            assert!([400, 405, 426].contains(&error.status()) && !error.to_string().is_empty());
        }
    }
}

/// RFC 6455 section 4.2.1, told otherwise than the code tells it.
fn check_request(request: &Request<'_>) {
    let only = |name: &str| {
        let values: Vec<_> = request.header_values(name).collect();
        assert_eq!(values.len(), 1, "{name}");
        values[0]
    };
    assert!(upgrade::is_upgrade(request));
    assert_eq!((request.method, request.version), (Method::Get, Version::Http11));
    assert_eq!((request.body.len(), only("sec-websocket-version")), (0, &b"13"[..]));
    let key = only("Sec-WebSocket-Key");
    assert!(key.len() == 24 && key.ends_with(b"==") && key.is_ascii());
    assert!(request.header_has_token("connection", "UPGRADE"));
    assert!(request.header_has_token("upgrade", "WebSocket"));
}

fn check_grant(upgrade: &Upgrade<'_>) {
    let subprotocol = upgrade.subprotocols().next();
    let mut out = Vec::new();
    let agreement = Agreement::of(upgrade.extensions(), upgrade.is_of_browser());
    upgrade::write_switching(&mut out, Date::at(0), &upgrade.accept, subprotocol, agreement);
    let text = String::from_utf8(out).expect("an offered subprotocol is text");
    let lines: Vec<_> = text.split("\r\n").collect();
    let granted = usize::from(subprotocol.is_some()) + usize::from(agreement.is_some());
    assert_eq!(lines.len(), 7 + granted, "{text:?}");
    assert!(text.ends_with("\r\n\r\n") && !text.contains('\0'));
}
