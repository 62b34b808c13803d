//! Connections from trusted proxies: the shard reads the PROXY protocol header at their start, before TLS.

use super::{Driver, find};
use crate::message::ConnectionKey;
use crate::runtime::socket_io::{Buffer, SocketIo};
use crate::shard::Now;

impl<I: SocketIo> Driver<I> {
    /// Lets the shard read the header at the start of a connection, and passes on what follows it. If the
    /// shard first wants to count the address that the header tells, a TLS handshake is held back until
    /// the shard resumes the connection: a refused one should cost no handshake.
    #[cold]
    pub(super) fn read_header(&mut self, now: Now, key: ConnectionKey, buffer: &Buffer) {
        let Self { sockets, shard, io, .. } = self;
        let Some(socket) = find(sockets, key) else { return };
        let input = io.buffer(buffer);
        let Some(length) = shard.handle_proxy_header(now, key, input) else { return };
        socket.awaits_header = false;
        socket.wants_bytes = shard.inspect().is_receiving(key);
        let wants_bytes = socket.wants_bytes;
        let rest = &mut input[length..];
        let is_empty = rest.is_empty();
        match &mut socket.tls {
            None if is_empty => {}
            None => shard.handle_bytes(now, key, rest),
            Some(tls) => {
                tls.receive(rest);
                socket.is_held = !wants_bytes;
                if wants_bytes && !is_empty {
                    self.open_or_defer(now, key);
                }
            }
        }
        if !wants_bytes {
            self.stop_receiving(key);
        }
    }

    /// Continues a TLS handshake that was held back.
    pub(super) fn release(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if std::mem::take(&mut socket.is_held) {
            socket.is_deferred = true;
            self.deferred.push_back(key);
        }
    }
}
