//! The questions for one admission hook: those in flight, and those that wait.

use std::collections::VecDeque;

use super::{HttpExchange, JSON, Purpose, ServiceAnswer, ServiceFailure, ServiceRequest};
use crate::address::ShardId;
use crate::message::{AdmissionRequest, AdmissionVerdict};
use crate::protocol::admission::{ANSWER_BYTES_MAX, Admission};

/// The most questions of a node that one hook has to answer at a time.
pub(super) const IN_FLIGHT_MAX: usize = 64;

/// The most questions that wait for a hook.
pub(super) const WAITING_MAX: usize = 16_384;

/// The most bytes of the questions that wait for a hook.
pub(super) const WAITING_BYTES_MAX: usize = 32 << 20;

/// The state of one hook.
#[derive(Default)]
pub(super) struct HookQueue {
    in_flight: usize,
    // In the order in which they came.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Whether the last question failed.
    pub is_failing: bool,
}

struct Waiting {
    from: ShardId,
    request: AdmissionRequest,
    // When the shard stops waiting.
    deadline_ms: u64,
}

impl Waiting {
    /// Whether the device still waits for the answer.
    fn is_wanted(&self, now_ms: u64) -> bool {
        self.request.device.strong_count() > 0 && now_ms < self.deadline_ms
    }
}

impl HookQueue {
    /// Adds a question. If there is no room, questions of devices that have gone are dropped first.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn push(
        &mut self,
        now_ms: u64,
        from: ShardId,
        request: AdmissionRequest,
    ) -> Result<(), AdmissionVerdict> {
        let bytes = request.body.len();
        if !self.has_room(bytes) {
            self.waiting.retain(|waiting| waiting.is_wanted(now_ms));
            self.waiting_bytes =
                self.waiting.iter().map(|waiting| waiting.request.body.len()).sum();
        }
        if !self.has_room(bytes) {
            return Err(AdmissionVerdict::Full);
        }
        let deadline_ms = now_ms + request.hook.service.timeout_ms;
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting { from, request, deadline_ms });
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> bool {
        self.waiting.len() < WAITING_MAX && self.waiting_bytes + bytes <= WAITING_BYTES_MAX
    }

    /// Returns the next question to ask, if the hook has to answer fewer than [`IN_FLIGHT_MAX`].
    pub(super) fn poll_request(&mut self, now_ms: u64) -> Option<ServiceRequest> {
        while self.in_flight < IN_FLIGHT_MAX {
            let waiting = self.waiting.pop_front()?;
            self.waiting_bytes -= waiting.request.body.len();
            if !waiting.is_wanted(now_ms) {
                continue;
            }
            self.in_flight += 1;
            let Waiting { from, request, deadline_ms } = waiting;
            let AdmissionRequest { hook, connection, ticket, body, .. } = request;
            let exchange = HttpExchange {
                service: hook.service.clone(),
                secret: hook.secret.clone(),
                body: Some(body),
                content_type: JSON,
                timeout_ms: deadline_ms - now_ms,
                answer_bytes_max: ANSWER_BYTES_MAX,
            };
            let purpose = Purpose::Admission { hook, shard: from, connection, ticket };
            return Some(ServiceRequest { purpose, exchange });
        }
        None
    }

    /// Whether no question is in flight or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting.is_empty()
    }

    /// Notes that a question is not in flight any more.
    pub(super) fn handle_end(&mut self) {
        self.in_flight -= 1;
    }
}

/// Returns the verdict that follows from the answer of a hook, and why it is a failure if it is one.
pub(super) fn judge(
    answer: Result<ServiceAnswer, ServiceFailure>,
) -> (AdmissionVerdict, Result<(), String>) {
    let failed = |why| (AdmissionVerdict::Failed, Err(why));
    match answer {
        Ok(ServiceAnswer { status: 200, body, .. }) => match Admission::read(&body) {
            Ok(admission) => (AdmissionVerdict::Granted(Box::new(admission)), Ok(())),
            Err(error) => failed(error.to_string()),
        },
        Ok(ServiceAnswer { status: status @ (401 | 403), .. }) => {
            (AdmissionVerdict::Refused(status), Ok(()))
        }
        Ok(ServiceAnswer { status, .. }) => failed(format!("answered with status {status}")),
        Err(failure) => failed(failure.to_string()),
    }
}
