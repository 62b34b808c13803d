//! The variants of a frame, one for each form of messages, coalesced with the frame before it.

use std::rc::Rc;

use crate::metrics::Counters;
use crate::protocol::api::{self, MessageOrigin};
use crate::protocol::deflate::Deflater;
use crate::protocol::frame::{Frame, Kind};
use crate::shard::connection::{BufferPool, MessageForm, Outbound};

/// The frames that the previous publish appended to outbound queues, by form. If the last chunk of a queue is this very `Rc`, nothing was queued
/// since. The `Rc` kept here stays allocated, so its address cannot be reused.
pub(super) type LastFrames = [Option<Rc<Frame>>; MessageForm::COUNT];

/// Bounds of coalescing: the minimum number of subscribers, and the maximum size in bytes. A
/// coalesced run costs the kernel less than separate frames in a burst. The copy pays off only when
/// several subscribers share it.
pub(super) const COALESCE_MIN_SUBSCRIBERS: usize = 4;
const COALESCED_BYTES_MAX: usize = 4096;

/// The variants of a frame, each made when the first subscriber needs it.
#[derive(Debug)]
pub(super) struct Variants {
    plain: Rc<Frame>,
    made: [Option<Variant>; MessageForm::COUNT],
    last_frames: LastFrames,
}

/// One variant of a frame.
#[derive(Debug)]
pub(super) struct Variant {
    frame: Rc<Frame>,
    // The previous frame, and the two frames as one run of bytes.
    coalesced: Option<(Rc<Frame>, Rc<Frame>)>,
    // Whether any subscriber got the coalesced run.
    is_coalesced: bool,
    // The size in bytes of the frame alone.
    bytes: usize,
    // The bytes that compression has saved.
    saved_bytes: usize,
}

/// What a variant is made with, by the first subscriber that needs it.
pub(super) struct VariantMaker<'m> {
    /// The compressors of the shard.
    pub deflater: &'m mut Deflater,
    /// A reusable buffer for a message in its envelope.
    pub envelope: &'m mut Vec<u8>,
    /// The counters of the shard.
    pub counters: &'m mut Counters,
}

impl Variants {
    /// Creates the set without any variant made.
    pub(super) fn of(frame: Frame, last_frames: LastFrames) -> Self {
        Self { plain: Rc::new(frame), made: Default::default(), last_frames }
    }

    /// Returns the frame as it was published.
    pub(super) fn plain(&self) -> &Frame {
        &self.plain
    }

    /// Returns the variant of a form. `origin` returns where the message comes from.
    #[inline]
    pub(super) fn get<'c>(
        &mut self,
        form: MessageForm,
        origin: impl FnOnce() -> MessageOrigin<'c>,
        maker: VariantMaker<'_>,
    ) -> &mut Variant {
        let place = form as usize;
        let Self { plain, made, last_frames } = self;
        // The variant is made for the first subscriber and reused for the others.
        made[place].get_or_insert_with(|| {
            Variant::made(plain, form, last_frames[place].take(), origin(), maker)
        })
    }

    /// Returns the frames that the next publish may be coalesced with.
    pub(super) fn into_last_frames(self) -> LastFrames {
        self.made.map(|variant| variant.map(Variant::into_last_frame))
    }
}

impl Variant {
    #[cold]
    #[inline(never)]
    fn made(
        plain: &Rc<Frame>,
        form: MessageForm,
        last: Option<Rc<Frame>>,
        origin: MessageOrigin<'_>,
        maker: VariantMaker<'_>,
    ) -> Self {
        let VariantMaker { deflater, envelope, counters } = maker;
        let (kind, message) = match form.is_enveloped() {
            false => (plain.kind(), plain.payload()),
            true => {
                envelope.clear();
                api::put_device_message(envelope, origin, plain.kind(), plain.payload());
                (Kind::Text, &envelope[..])
            }
        };
        let body = deflater.body(form.window(), kind, message);
        counters.compressions += u64::from(body.is_deflated);
        let saved_bytes = message.len() - body.bytes.len();
        let frame = match body.is_deflated || form.is_enveloped() {
            true => Rc::new(Frame::of(&body)),
            false => plain.clone(),
        };
        Self::of(frame, last, saved_bytes)
    }

    fn of(frame: Rc<Frame>, last: Option<Rc<Frame>>, saved_bytes: usize) -> Self {
        let is_short =
            |last: &Rc<Frame>| last.bytes().len() + frame.bytes().len() <= COALESCED_BYTES_MAX;
        let coalesced = last.filter(is_short).map(|last| {
            let coalesced = Rc::new(last.followed_by(&frame));
            (last, coalesced)
        });
        let bytes = frame.bytes().len();
        Self { frame, coalesced, is_coalesced: false, bytes, saved_bytes }
    }

    /// Returns the size in bytes of the frame alone.
    pub(super) fn frame_bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the bytes that compression has saved. 0: the frame is not compressed.
    pub(super) fn saved_bytes(&self) -> usize {
        self.saved_bytes
    }

    /// Appends the frame to a subscriber's outbound queue.
    #[inline]
    pub(super) fn push(&mut self, outbound: &mut Outbound, buffer_pool: &mut BufferPool) {
        match &self.coalesced {
            Some((last, coalesced)) if outbound.coalesce(last, coalesced, self.bytes) => {
                self.is_coalesced = true;
            }
            _ => outbound.push_shared(buffer_pool, self.frame.clone()),
        }
    }

    fn into_last_frame(self) -> Rc<Frame> {
        match self.coalesced {
            Some((_, coalesced)) if self.is_coalesced => coalesced,
            _ => self.frame,
        }
    }
}
