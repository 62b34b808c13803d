//! Requests whose body has not come yet: who may not send it is answered at once.
//!
//! A body may take a megabyte, so it is kept only for those whose origin, credentials, address and
//! role allow the call that it is for. Others are answered at the head, and their connection ends
//! with that; so do pages, which need no body. While credentials are verified nothing is read but
//! what a paused connection may hold. A request that comes whole in one piece is judged whole.

use super::Shard;
use super::access::{Admission, Grant, Refusal};
use super::connection::{Listener, Stage};
use super::replies::HttpShape;
use super::requests::{SOCKET_PATH, api_method, is_open};
use super::trail::{self, Entry};
use super::work;
use crate::message::ConnectionKey;
use crate::protocol::http::{Method, Request};
use crate::protocol::upgrade::UpgradeError;

/// What comes of a request at its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Its body may come.
    Goes,
    /// A verdict on its credentials is awaited.
    Waits,
    /// It is answered, and its connection ends.
    Answered,
}

impl Shard {
    /// Judges a request whose body is not all here.
    pub(super) fn judge_head(&mut self, key: ConnectionKey, head: Request<'_>) -> Judged {
        self.connections.wait_for_rest(&mut self.turn, key);
        let Some(connection) = self.connections.get(key) else { return Judged::Answered };
        // The limits of an edge allow no body.
        if connection.listener != Listener::Api {
            return Judged::Goes;
        }
        trail::note(self.turn.trail(key), Entry::Requested(head.method.name(), head.path));
        let mut shape = HttpShape::of(&head);
        match self.check_origin(key, &head) {
            Ok(origin) => shape.allow_origin = origin,
            Err(why) => {
                return self.answer_head(key, shape, |shard, shape| {
                    shard.connections.refuse(&mut shard.turn, key, shape, 403, &[], why);
                });
            }
        }
        if head.method == Method::Other("OPTIONS") && shape.allow_origin.is_some() {
            return self.answer_head(key, shape, |shard, shape| shard.answer_preflight(key, shape));
        }
        if is_open(head.path) {
            return self.answer_head(key, shape, |shard, shape| {
                shard.handle_page_request(key, shape, &head);
            });
        }
        match self.check_credentials(key, &head) {
            Admission::Known(admitted) => self.judge_admitted(key, shape, admitted, head),
            Admission::Unknown(fingerprint) => {
                self.park(key, shape, None, fingerprint);
                Judged::Waits
            }
        }
    }

    /// Judges a request whose credentials are known, or refused.
    fn judge_admitted(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        admitted: Result<Grant, Refusal>,
        head: Request<'_>,
    ) -> Judged {
        let is_call = api_method(head.path).is_some() && head.method == Method::Post;
        match admitted {
            Ok(grant) if is_call && grant.roles.write => {
                if let Some(Stage::Http(http)) = self.connections.get(key).map(|c| &mut c.stage) {
                    http.is_judged = true;
                    http.is_proven = true;
                }
                Judged::Goes
            }
            // Its first frames could be taken for the body.
            Ok(_) if head.path == SOCKET_PATH => self.answer_head(key, shape, |shard, shape| {
                let error = UpgradeError::Body;
                shard.connections.refuse(
                    &mut shard.turn,
                    key,
                    shape,
                    error.status(),
                    error.headers(),
                    &error.to_string(),
                );
            }),
            Ok(grant) => self.answer_head(key, shape, |shard, shape| {
                shard.handle_granted(key, shape.clone(), grant, head);
            }),
            Err(refusal) => self.answer_head(key, shape, |shard, shape| {
                shard.refuse_access(key, shape, refusal);
            }),
        }
    }

    /// Answers a request without its body. Where the next one begins is not known.
    fn answer_head(
        &mut self,
        key: ConnectionKey,
        mut shape: HttpShape,
        answer: impl FnOnce(&mut Self, &HttpShape),
    ) -> Judged {
        self.turn.counters.http_requests += 1;
        self.turn.work.spend(work::REQUEST);
        shape.exchange.keep_alive = false;
        if let Some(Stage::Http(http)) = self.connections.get(key).map(|c| &mut c.stage) {
            http.is_mid_request = false;
            http.started_ms = self.turn.now.ms;
            http.has_answered = true;
            http.is_last = true;
        }
        answer(self, &shape);
        Judged::Answered
    }

    /// The verdict on the credentials of a request is here, or does not come, and its body is not.
    pub(super) fn settle_head(
        &mut self,
        key: ConnectionKey,
        shape: HttpShape,
        admitted: Result<Grant, Refusal>,
    ) {
        let Some(connection) = self.connections.get(key) else { return };
        let is_held = !connection.held.is_empty();
        let Stage::Http(http) = &mut connection.stage else { return };
        let reader = std::mem::take(&mut http.reader);
        let Some(head) = reader.head() else { return };
        match self.judge_admitted(key, shape, admitted, head) {
            Judged::Goes => {
                self.connections.keep_reader(key, reader);
                // A peer that waits to be asked for its body sends nothing that would be read.
                if !is_held {
                    self.read_http(key, &mut &mut [][..]);
                }
            }
            Judged::Waits | Judged::Answered => {
                self.connections.end_with_answer(&mut self.turn, key)
            }
        }
    }
}
