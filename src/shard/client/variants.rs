//! The variants of a frame, one for each form of messages, coalesced with the frame before it.

use std::rc::Rc;

use crate::metrics::Counters;
use crate::protocol::api::{self, MessageOrigin};
use crate::protocol::deflate::Deflater;
use crate::protocol::frame::{Frame, Kind};
use crate::shard::connection::{BufferPool, MessageForm, Outbound};

/// What there is for each form of messages but the plain one.
type Others<T> = [Option<T>; MessageForm::COUNT - 1];

/// The frames that the previous publish appended to outbound queues, by form. If the last chunk of a queue is this very
/// `Rc`, nothing was queued since. The `Rc` kept here stays allocated, so its address cannot be reused.
#[derive(Debug, Default)]
pub(super) struct LastFrames {
    plain: Option<Rc<Frame>>,
    others: Option<Box<Others<Rc<Frame>>>>,
}

/// Bounds of coalescing: the minimum number of subscribers, and the maximum size in bytes. A
/// coalesced run costs the kernel less than separate frames in a burst. The copy pays off only when
/// several subscribers share it.
pub(super) const COALESCE_MIN_SUBSCRIBERS: usize = 4;
const COALESCED_BYTES_MAX: usize = 4096;

/// The variants of a frame, each made when the first subscriber needs it.
#[derive(Debug)]
pub(super) struct Variants {
    published: Rc<Frame>,
    plain: Option<Variant>,
    // Apart: most publishes need the plain variant only, and are then small.
    others: Option<Box<Others<Variant>>>,
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
    // The bytes that compression has saved. 0: the frame is not compressed.
    saved_bytes: usize,
    // The subscribers that got the frame since they were counted last.
    receivers: usize,
}

/// The sums of the frames that a walk has appended to outbound queues.
#[derive(Debug, Default)]
pub(super) struct Appended {
    /// Frames.
    pub frames: u64,
    /// Bytes of these frames.
    pub bytes: usize,
    /// Frames that are compressed.
    pub compressed: u64,
    /// Bytes that compression has saved.
    pub saved_bytes: usize,
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

impl Appended {
    /// Adds what of a variant was appended since the last call.
    fn add(&mut self, variant: &mut Variant) {
        let receivers = std::mem::take(&mut variant.receivers);
        self.frames += receivers as u64;
        self.bytes += receivers * variant.bytes;
        if variant.saved_bytes > 0 {
            self.compressed += receivers as u64;
            self.saved_bytes += receivers * variant.saved_bytes;
        }
    }
}

impl LastFrames {
    fn take(&mut self, form: MessageForm) -> Option<Rc<Frame>> {
        match form.place_beside_plain() {
            None => self.plain.take(),
            Some(place) => self.others.as_mut()?[place].take(),
        }
    }
}

impl Variants {
    /// Creates the set without any variant made.
    pub(super) fn of(frame: Frame, last_frames: LastFrames) -> Self {
        Self { published: Rc::new(frame), plain: None, others: None, last_frames }
    }

    /// Returns the frame as it was published.
    pub(super) fn published(&self) -> &Frame {
        &self.published
    }

    /// Returns the variant of a form. `None`: nobody has needed it yet, see [`Self::make`].
    #[inline]
    pub(super) fn made(&mut self, form: MessageForm) -> Option<&mut Variant> {
        match form.place_beside_plain() {
            None => self.plain.as_mut(),
            Some(place) => self.others.as_mut()?[place].as_mut(),
        }
    }

    /// Makes the variant of a form, for the first subscriber that needs it. `None`: the frame is an event, and has no
    /// envelope around it.
    #[cold]
    #[inline(never)]
    pub(super) fn make(
        &mut self,
        form: MessageForm,
        origin: Option<MessageOrigin<'_>>,
        maker: VariantMaker<'_>,
    ) -> &mut Variant {
        let last = self.last_frames.take(form);
        let variant = Variant::made(&self.published, form, last, origin, maker);
        match form.place_beside_plain() {
            None => self.plain.insert(variant),
            Some(place) => self.others.get_or_insert_default()[place].insert(variant),
        }
    }

    /// Returns what was appended since the last call.
    pub(super) fn take_appended(&mut self) -> Appended {
        let mut appended = Appended::default();
        if let Some(plain) = &mut self.plain {
            appended.add(plain);
        }
        if let Some(others) = &mut self.others {
            others.iter_mut().flatten().for_each(|variant| appended.add(variant));
        }
        appended
    }

    /// Takes the frames that the next publish may be coalesced with.
    pub(super) fn take_last_frames(&mut self) -> LastFrames {
        let last = |variant: Option<Variant>| variant.map(Variant::into_last_frame);
        LastFrames {
            plain: last(self.plain.take()),
            others: self.others.take().map(|others| Box::new(others.map(last))),
        }
    }
}

impl Variant {
    fn made(
        published: &Rc<Frame>,
        form: MessageForm,
        last: Option<Rc<Frame>>,
        origin: Option<MessageOrigin<'_>>,
        maker: VariantMaker<'_>,
    ) -> Self {
        let VariantMaker { deflater, envelope, counters } = maker;
        let (kind, message) = match origin.filter(|_| form.is_enveloped()) {
            None => (published.kind(), published.payload()),
            Some(origin) => {
                envelope.clear();
                api::put_device_message(envelope, origin, published.kind(), published.payload());
                (Kind::Text, &envelope[..])
            }
        };
        let body = deflater.body(form.window(), kind, message);
        counters.compressions += u64::from(body.is_deflated);
        let saved_bytes = message.len() - body.bytes.len();
        let frame = match body.is_deflated || form.is_enveloped() {
            true => Rc::new(Frame::of(&body)),
            false => published.clone(),
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
        Self { frame, coalesced, is_coalesced: false, bytes, saved_bytes, receivers: 0 }
    }

    /// Returns the size in bytes of the frame alone.
    pub(super) fn frame_bytes(&self) -> usize {
        self.bytes
    }

    /// Appends the frame to a subscriber's outbound queue.
    // Always inlined: called for each delivery, and a call costs 15 instructions.
    #[inline(always)]
    pub(super) fn push(&mut self, outbound: &mut Outbound, buffer_pool: &mut BufferPool) {
        self.receivers += 1;
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
