//! The start page, at `/` of the API: a page to try the node in a browser, with the node's
//! addresses filled in.

use crate::protocol::json::{put_number, put_string};
use crate::shard::settings::{EdgeSettings, Endpoint, RouteSettings, Settings};

/// The page: one file without external resources. `{{node}}` is replaced by the output of
/// [`describe`].
const PAGE: &str = include_str!("page.html");

/// The content security policy of the page. It may run its own script and style, call this API, and
/// connect to any edge. The hashes are those of the script and style elements (CSP, section 2.3.1);
/// a test prints the right ones when the page has changed.
pub(super) const PAGE_POLICY: &str = "default-src 'none'; \
    script-src 'sha256-MHbWJuGvEQ7WXq8WSwrtX8YQSlmVe/vkGb7/Ig1Zj+k='; \
    style-src 'sha256-yGvTm553hejdlkfcsThlyaRqwXnHNQeEmedqepHte8M='; \
    img-src data:; connect-src 'self' ws: wss:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns the page of this node.
pub(super) fn page(settings: &Settings) -> String {
    // The JSON is inside a script element, which must not contain `</script>`.
    PAGE.replace("{{node}}", &describe(settings).replace('<', "\\u003c"))
}

/// Returns a JSON object: `port` and `tls` of the API, whether it has `users`, and the `routes`.
fn describe(settings: &Settings) -> String {
    let has_users = !settings.api.users.is_empty();
    let endpoints = settings.process.endpoints.as_ref();
    let mut out = Vec::from(b"{");
    put_endpoint(&mut out, endpoints.map(|all| &all.api), settings.api.advertise.port());
    put_flag(&mut out, ",\"users\":", has_users);
    out.extend_from_slice(b",\"routes\":[");
    // A browser cannot connect to a Unix socket.
    let is_unix = |at: usize| {
        let endpoint = endpoints.and_then(|all| all.edges.get(at));
        endpoint.is_some_and(|endpoint| endpoint.address.tcp().is_none())
    };
    let edges = settings.edges.iter().enumerate().filter(|(at, _)| !is_unix(*at));
    let routes =
        edges.flat_map(|(at, edge)| edge.open_routes().map(move |(_, route)| (at, edge, route)));
    for (number, (at, edge, route)) in routes.enumerate() {
        out.extend_from_slice(if number > 0 { b",{" } else { b"{" });
        put_route(&mut out, edge, endpoints.and_then(|all| all.edges.get(at)), route);
        // The page needs no credentials. With users, it shows only what a device may know anyway.
        if !has_users {
            put_traffic(&mut out, route);
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    String::from_utf8_lossy(&out).into_owned()
}

fn put_endpoint(out: &mut Vec<u8>, endpoint: Option<&Endpoint>, port: u16) {
    out.extend_from_slice(b"\"port\":");
    put_number(out, endpoint.map_or(port, |at| at.address.port()).into());
    put_flag(out, ",\"tls\":", endpoint.is_some_and(|at| at.has_tls));
}

/// Writes the address of a route, and where the route expects a token.
fn put_route(
    out: &mut Vec<u8>,
    edge: &EdgeSettings,
    endpoint: Option<&Endpoint>,
    route: &RouteSettings,
) {
    put_endpoint(out, endpoint, edge.port);
    let host = endpoint.and_then(|at| at.address.ip()).filter(|ip| !ip.is_unspecified());
    let host = host.map(|ip| match ip.is_ipv6() {
        true => format!("[{ip}]"),
        false => ip.to_string(),
    });
    put_text(out, ",\"host\":", &host.unwrap_or_default());
    put_text(out, ",\"path\":", &route.path);
    let token = route.token.as_ref().map_or("", |rule| match rule.sources {
        sources if sources.protocol => "protocol",
        sources if sources.query => "query",
        _ => "header",
    });
    put_text(out, ",\"token\":", token);
}

/// Writes what the route does with messages, and which channels its clients may subscribe to.
fn put_traffic(out: &mut Vec<u8>, route: &RouteSettings) {
    put_flag(out, ",\"echo\":", route.echo);
    put_text(out, ",\"topic\":", route.topic.as_deref().unwrap_or_default());
    out.extend_from_slice(b",\"channels\":[");
    for (number, pattern) in route.subscribe.iter().enumerate() {
        out.extend_from_slice(if number > 0 { b"," } else { b"" });
        put_string(out, pattern);
    }
    out.push(b']');
}

fn put_flag(out: &mut Vec<u8>, name: &str, flag: bool) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(if flag { b"true" } else { b"false" });
}

fn put_text(out: &mut Vec<u8>, name: &str, text: &str) {
    out.extend_from_slice(name.as_bytes());
    put_string(out, text);
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_policy_contains_the_hashes_of_the_script_and_the_style() {
        for (directive, start, end) in
            [("script-src", "<script>", "</script>"), ("style-src", "<style>", "</style>")]
        {
            let (_, text) = PAGE.split_once(start).expect("the page has one");
            let (text, rest) = text.split_once(end).expect("it ends");
            assert!(!rest.contains(start), "the page has one {start}");
            let hash = STANDARD.encode(Sha256::digest(text));
            let source = format!("{directive} 'sha256-{hash}';");
            assert!(PAGE_POLICY.contains(&source), "the page was changed; now it is {source}");
        }
    }

    #[test]
    fn the_page_loads_no_external_resources() {
        for outside in ["src=", "@import", " url(", ":url(", "http://", "https://"] {
            let found = PAGE.match_indices(outside);
            let found = found.filter(|(at, _)| !PAGE[*at..].starts_with("http://www.w3.org/"));
            assert_eq!(found.count(), 0, "{outside}");
        }
        assert!(!PAGE.contains(" style=") && !PAGE.contains("onclick"), "the policy forbids them");
    }
}
