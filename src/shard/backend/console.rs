//! Serves the files of the console.

use crate::console::{self, Coding, File};
use crate::message::ConnectionKey;
use crate::protocol::http::{Method, Request};
use crate::shard::connection::{Connections, HttpShape};
use crate::shard::turn::Turn;

/// The path of the page. Its other files are below it.
const PATH: &str = "/console";

/// Returns the file at a path, besides the page itself.
fn file(path: &str) -> Option<&'static File> {
    console::file(path.strip_prefix(PATH)?.strip_prefix('/')?)
}

/// Whether a path is that of the console's page or of one of its files.
pub(super) fn is_console(path: &str) -> bool {
    path == PATH || file(path).is_some()
}

/// Answers a request for the console's page or one of its files.
pub(super) fn handle_request(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    shape: &HttpShape,
    request: &Request<'_>,
) {
    if !matches!(request.method, Method::Get | Method::Head) {
        let allow = [("Allow", "GET, HEAD")];
        return connections.refuse(turn, key, shape, 405, &allow, "expected GET");
    }
    match file(request.path) {
        None => put_page(turn, connections, key, shape, request),
        Some(file) => put_file(turn, connections, key, shape, request, file),
    }
}

/// The header that says that other requests may get another coding (RFC 9110, section 12.5.5).
const VARY: (&str, &str) = ("Vary", "Accept-Encoding");

/// Returns the coding of a response, and its `Content-Encoding` if it has one.
fn coding(request: &Request<'_>) -> (Coding, Option<(&'static str, &'static str)>) {
    match request.accepts_gzip() {
        true => (Coding::Gzip, Some(("Content-Encoding", "gzip"))),
        false => (Coding::Identity, None),
    }
}

fn put_page(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    shape: &HttpShape,
    request: &Request<'_>,
) {
    let (coding, encoding) = coding(request);
    let page = console::page(coding, !turn.settings.api.users.is_empty());
    let mut headers = vec![
        ("Content-Security-Policy", console::POLICY),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
        VARY,
    ];
    headers.extend(encoding);
    let kind = (200, "text/html; charset=utf-8");
    let date = turn.date();
    connections.reply_bytes(turn, key, |out| shape.put(out, date, kind, &headers, &page));
}

/// Answers with a file, or with 304 if the peer has it.
fn put_file(
    turn: &mut Turn,
    connections: &mut Connections,
    key: ConnectionKey,
    shape: &HttpShape,
    request: &Request<'_>,
    file: &File,
) {
    let (coding, encoding) = coding(request);
    let is_known = request.header_values("if-none-match").any(|tags| file.is_known(coding, tags));
    let tag = file.tag(coding);
    let mut headers = vec![
        ("ETag", &tag[..]),
        // A copy may be kept, and is used only if it is still the same.
        ("Cache-Control", "no-cache"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("X-Content-Type-Options", "nosniff"),
        VARY,
    ];
    let (status, body): (_, &[u8]) = match is_known {
        true => (304, b""),
        false => {
            headers.extend(encoding);
            (200, file.bytes(coding))
        }
    };
    let kind = (status, file.content_type());
    let date = turn.date();
    connections.reply_bytes(turn, key, |out| shape.put(out, date, kind, &headers, body));
}
