//! Issuers of keys and admission hooks over real sockets: services that work, are down, slow, or answer
//! garbage. The test answers every request itself.

#![forbid(unsafe_code)]

#[path = "../support/mod.rs"]
mod support;

mod hooks;
mod issuers;
mod misbehaving;

use support::Server;

fn server_with(line: &str) -> Server {
    Server::start(&config_with(line))
}

fn config_with(line: &str) -> String {
    format!(
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/in\"\ntopic = \"in\"\nevents = [\"open\"]\nsubscribe = [\"*\"]\n{line}\n\
         [[edge.route]]\npath = \"/plain\"\nsubscribe = [\"*\"]\n"
    )
}

fn metric(server: &Server, name: &str) -> u64 {
    let text = server.get("/metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is in {text}")).parse().expect("a number")
}
