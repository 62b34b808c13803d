//! Requests with a body of those who may not call: answered at the head, before a byte of the body.

use crate::support::basic;

/// A request of which only the head is sent.
pub struct Stranger {
    pub what: &'static str,
    pub head: String,
    pub status: u16,
}

/// Users with one role, and from one place that is not here.
pub const USERS: [(&str, &str); 3] = [
    ("app", "password = \"secret\""),
    ("reader", "password = \"secret\"\nroles = [\"read\"]"),
    ("far", "password = \"secret\"\nfrom = [\"10.0.0.0/8\"]"),
];

const LENGTH: &str = "Content-Length: 1000\r\n";

pub fn strangers() -> Vec<Stranger> {
    let stranger = |status, what, path: &str, lines: &[&str]| {
        let lines = lines.concat();
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
        Stranger { what, head, status }
    };
    let publish = "/v1/mesh/publish";
    let (reader, far) = (&basic("reader", "secret"), &basic("far", "secret"));
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
        stranger(401, "a wrong password", publish, &[LENGTH, &basic("app", "wrong")]),
        stranger(401, "two that are right each", publish, &[LENGTH, reader, far]),
        stranger(403, "a user without the role", publish, &[LENGTH, reader]),
        stranger(403, "a user from elsewhere", publish, &[LENGTH, far]),
    ]
}
