//! The listener for back ends.

use std::net::SocketAddr;

use super::definition::section;
use super::document::{ConfigError, Section};
use super::origin::ORIGINS;
use super::shape::{LISTEN, REACHABLE};
use super::user::{UserKeys, read_users};
use super::{Proxy, TlsFiles};
use crate::address::listen::ListenAddress;
use crate::protocol::credentials::User;

section! {
    /// The listener for back ends.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Api(section) {
        /// The TCP address that back ends connect to, or the path of a Unix socket, which is created with
        /// mode 0660. Port 0 lets the system pick one. Without users this must be a loopback address or a
        /// Unix socket, because everybody who can connect may do everything.
        bind: ListenAddress = LISTEN, value(([127, 0, 0, 1], 6789).into()), restart;

        /// The address that `GET /v1/nodes` tells back ends to use for this node. Required if the API has a
        /// Unix socket and the node is part of a grid.
        advertise: Option<SocketAddr> = REACHABLE, none(
            "`bind`; where that is `0.0.0.0` or `[::]`, the address of the route out",
            "\"10.0.0.5:6789\""
        );

        /// Web origins, besides the API's own, whose pages may call the API from a browser. Written in the
        /// form that browsers send.
        origins: Vec<String> = ORIGINS, value(Vec::new());
    }
    tables {
        /// TLS for the API. Without this table, the API speaks plain HTTP.
        tls as "tls": Option<TlsFiles> = TlsFiles::read(section)?, Optional(TlsFiles::definition), restart;

        /// The proxies in front of the API, which tell the addresses of their clients. Without this table
        /// each client has the address that it connects from.
        proxy as "proxy": Option<Proxy> = Proxy::read(section)?, Optional(Proxy::definition);

        /// Users of the API. Without users there is no authentication.
        users as "user": Vec<User> = read_users(section)?, Many(UserKeys::definition);
    }
}

impl Api {
    /// Reads `[api]`.
    pub(super) fn read(root: &Section<'_>) -> Result<Self, ConfigError> {
        let section = root.table("api")?;
        let api = Self::read_keys(&section)?;
        let bind = &api.bind;
        let is_found = bind.tcp().is_some() || api.advertise.is_some();
        if !is_found && root.table("mesh")?.is_written() {
            let reason = "missing; other nodes tell it, and the API has only a Unix socket";
            return Err(section.fault(&["advertise"], reason));
        }
        if api.users.is_empty() && !bind.is_local() {
            let reason = "without users the API listens on loopback only, such as 127.0.0.1:6789";
            return Err(section.fault(&["bind"], format!("{reason}; found {bind}")));
        }
        Ok(api)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused};
    use crate::protocol::credentials::Roles;

    #[test]
    fn the_api_listens_on_loopback_only() {
        refused(
            "[api]\nbind = \"0.0.0.0:6789\"",
            "gridcast.toml:2: api.bind: without users the API listens on loopback only, such as \
             127.0.0.1:6789; found 0.0.0.0:6789",
        );
        assert_eq!(parse("api.bind = \"127.9.9.9:0\"").api.bind.port(), 0);
        assert!(parse("api.bind = \"[::ffff:127.0.0.1]:1\"").api.bind.is_local());
    }

    #[test]
    fn with_a_user_the_api_listens_anywhere() {
        let text = "[api]\nbind = \"0.0.0.0:6789\"\n[[api.user]]\nname = \"app\"\ntoken = \"t\"";
        let api = parse(text).api;
        assert!(api.bind.ip().is_some_and(|ip| ip.is_unspecified()));
        assert!(api.users[0].roles == Roles::READ_WRITE && api.users[0].from.is_empty());
    }

    #[test]
    fn a_unix_socket_is_local_and_other_nodes_need_another_address() {
        let bind = "[api]\nbind = \"unix:/run/gridcast/api.sock\"\n";
        assert_eq!(parse(bind).api.bind.to_string(), "unix:/run/gridcast/api.sock");
        let mesh =
            "[node]\nid = 1\n[mesh]\nbind = \"127.0.0.1:0\"\nkey = \"correct-horse-battery\"\n";
        refused(
            &format!("{bind}{mesh}"),
            "gridcast.toml:1: api.advertise: missing; other nodes tell it, and the API has only a Unix \
             socket",
        );
        let advertise = "advertise = \"10.0.0.5:6789\"\n";
        assert!(parse(&format!("{bind}{advertise}{mesh}")).mesh.is_some());
    }
}
