//! Serves the files of the console.

use crate::console::{self, File};
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
        None => put_page(turn, connections, key, shape),
        Some(file) => put_file(turn, connections, key, shape, request, file),
    }
}

fn put_page(turn: &mut Turn, connections: &mut Connections, key: ConnectionKey, shape: &HttpShape) {
    let page = console::page(!turn.settings.api.users.is_empty());
    let headers = [
        ("Content-Security-Policy", console::POLICY),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Cache-Control", "no-store"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
    ];
    let kind = (200, "text/html; charset=utf-8");
    let date = turn.date();
    connections.reply_bytes(turn, key, |out| shape.put(out, date, kind, &headers, page.as_bytes()));
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
    let is_known = request.header_values("if-none-match").any(|tags| file.is_known(tags));
    let tag = file.tag();
    let headers = [
        ("ETag", &tag[..]),
        // A copy may be kept, and is used only if it is still the same.
        ("Cache-Control", "no-cache"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("X-Content-Type-Options", "nosniff"),
    ];
    let (status, body) = if is_known { (304, "") } else { (200, file.text()) };
    let kind = (status, file.content_type());
    let date = turn.date();
    connections.reply_bytes(turn, key, |out| shape.put(out, date, kind, &headers, body.as_bytes()));
}
