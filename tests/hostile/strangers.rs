//! Requests with a body of those who may not call: answered at the head, before a byte of the body.

/// A request of which only the head is sent.
pub struct Stranger {
    pub what: &'static str,
    pub head: String,
    pub status: u16,
}

/// Users with one role, and from one place that is not here. Their passwords are `secret`.
pub const USERS: &str = r#"
[[api.user]]
name = "app"
password = "secret"
[[api.user]]
name = "reader"
password = "secret"
roles = ["read"]
[[api.user]]
name = "far"
password = "secret"
from = ["10.0.0.0/8"]
"#;

/// `app:wrong`, `reader:secret` and `far:secret`.
const WRONG: &str = "Authorization: Basic YXBwOndyb25n\r\n";
const READER: &str = "Authorization: Basic cmVhZGVyOnNlY3JldA==\r\n";
const FAR: &str = "Authorization: Basic ZmFyOnNlY3JldA==\r\n";

const LENGTH: &str = "Content-Length: 1000\r\n";

pub fn strangers() -> Vec<Stranger> {
    let stranger = |status, what, path: &str, lines: &[&str]| {
        let lines = lines.concat();
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
        Stranger { what, head, status }
    };
    let publish = "/v1/mesh/publish";
    vec![
        stranger(401, "no credentials", publish, &[LENGTH]),
        stranger(401, "no credentials, chunked", publish, &["Transfer-Encoding: chunked\r\n"]),
        stranger(
            401,
            "no credentials, asks before it sends",
            publish,
            &[LENGTH, "Expect: 100-continue\r\n"],
        ),
        stranger(401, "no credentials, a path that is not there", "/v1/secret", &[LENGTH]),
        stranger(
            401,
            "credentials that are not base64",
            publish,
            &[LENGTH, "Authorization: Basic !!!\r\n"],
        ),
        stranger(401, "an unknown scheme", publish, &[LENGTH, "Authorization: Digest a\r\n"]),
        stranger(401, "a wrong password", publish, &[LENGTH, WRONG]),
        stranger(401, "two that are right each", publish, &[LENGTH, READER, FAR]),
        stranger(403, "a user without the role", publish, &[LENGTH, READER]),
        stranger(403, "a user from elsewhere", publish, &[LENGTH, FAR]),
    ]
}
