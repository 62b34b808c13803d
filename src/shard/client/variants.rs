//! The plain and compressed variants of a frame, coalesced with the frame before it.

use std::rc::Rc;

use crate::metrics::Counters;
use crate::protocol::deflate::{Deflater, Window};
use crate::protocol::frame::Frame;
use crate::shard::connection::{BufferPool, Outbound};

/// The frames that the previous publish appended to outbound queues, by variant: plain, then one
/// per compression window. If the last chunk of a queue is this very `Rc`, nothing was queued
/// since. The `Rc` kept here stays allocated, so its address cannot be reused.
pub(super) type LastFrames = [Option<Rc<Frame>>; 1 + Window::COUNT];

/// Bounds of coalescing: the minimum number of subscribers, and the maximum size in bytes. A
/// coalesced run costs the kernel less than separate frames in a burst. The copy pays off only when
/// several subscribers share it.
pub(super) const COALESCE_MIN_SUBSCRIBERS: usize = 4;
const COALESCED_BYTES_MAX: usize = 4096;

/// The variants of a frame, each made when the first subscriber needs it.
#[derive(Debug)]
pub(super) struct Variants {
    plain: Rc<Frame>,
    made: [Option<Variant>; 1 + Window::COUNT],
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

    /// Returns the variant for a subscriber's compression window, or the plain one.
    #[inline]
    pub(super) fn get(
        &mut self,
        window: Option<Window>,
        deflater: &mut Deflater,
        counters: &mut Counters,
    ) -> &mut Variant {
        let place = window.map_or(0, |window| 1 + window as usize);
        let Self { plain, made, last_frames } = self;
        // The variant is made for the first subscriber and reused for the others.
        made[place].get_or_insert_with(|| {
            Variant::made(plain, window, last_frames[place].take(), deflater, counters)
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
        window: Option<Window>,
        last: Option<Rc<Frame>>,
        deflater: &mut Deflater,
        counters: &mut Counters,
    ) -> Self {
        let body = deflater.body(window, plain.kind(), plain.payload());
        counters.compressions += u64::from(body.is_deflated);
        let frame = match body.is_deflated {
            true => Rc::new(Frame::of(&body)),
            false => plain.clone(),
        };
        Self::of(frame, last)
    }

    fn of(frame: Rc<Frame>, last: Option<Rc<Frame>>) -> Self {
        let is_short =
            |last: &Rc<Frame>| last.bytes().len() + frame.bytes().len() <= COALESCED_BYTES_MAX;
        let coalesced = last.filter(is_short).map(|last| {
            let coalesced = Rc::new(last.followed_by(&frame));
            (last, coalesced)
        });
        let bytes = frame.bytes().len();
        Self { frame, coalesced, is_coalesced: false, bytes }
    }

    /// Returns the size in bytes of the frame alone.
    pub(super) fn frame_bytes(&self) -> usize {
        self.bytes
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
