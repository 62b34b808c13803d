//! A frame in the forms in which subscribers get it, coalesced to what a burst put before it.

use std::rc::Rc;

use crate::metrics::Counters;
use crate::protocol::deflate::{Deflater, Window};
use crate::protocol::frame::Frame;
use crate::shard::connection::{BufferPool, Outbound};

/// What the publish to a channel that ended last put behind what waited for its subscribers, in each
/// variant: plain, and for each window. A subscriber whose last waiting run is a last itself, not only
/// its like, has got nothing since. While a last is held here its address is no other's.
pub type LastFrames = [Option<Rc<Frame>>; 1 + Window::COUNT];

/// A frame is coalesced to the last before it where it is for so many subscribers at least, up to so
/// many bytes: then a burst costs one run of bytes for each, where otherwise each frame would cost the
/// kernel a look of its own. Joining copies, which pays for itself where several get it.
pub const COALESCE_MIN_SUBSCRIBERS: usize = 4;
const COALESCED_BYTES_MAX: usize = 4096;

/// A frame in the forms in which subscribers get it. Each is made when the first of them needs it,
/// once.
#[derive(Debug)]
pub struct Variants {
    plain: Rc<Frame>,
    made: [Option<Variant>; 1 + Window::COUNT],
    last_frames: LastFrames,
}

/// One of them.
#[derive(Debug)]
pub struct Variant {
    frame: Rc<Frame>,
    // The last that it may be coalesced to, and what comes of that.
    coalesced: Option<(Rc<Frame>, Rc<Frame>)>,
    // Whether it was, for somebody.
    is_coalesced: bool,
    // Of the frame alone.
    bytes: usize,
}

impl Variants {
    /// None is made yet.
    pub fn of(frame: Frame, last_frames: LastFrames) -> Self {
        Self { plain: Rc::new(frame), made: Default::default(), last_frames }
    }

    /// The frame as it came.
    pub fn plain(&self) -> &Frame {
        &self.plain
    }

    /// The one for a subscriber who agreed on this window, or on none.
    #[inline]
    pub fn get(
        &mut self,
        window: Option<Window>,
        deflater: &mut Deflater,
        counters: &mut Counters,
    ) -> &mut Variant {
        let place = window.map_or(0, |window| 1 + window as usize);
        let Self { plain, made, last_frames } = self;
        // Made for the first subscriber, found by all others.
        made[place].get_or_insert_with(|| {
            Variant::made(plain, window, last_frames[place].take(), deflater, counters)
        })
    }

    /// What the next publish finds behind all that waits.
    pub fn into_last_frames(self) -> LastFrames {
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

    /// The length of the frame alone.
    pub fn frame_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the frame to what waits for a subscriber.
    #[inline]
    pub fn push(&mut self, outbound: &mut Outbound, buffer_pool: &mut BufferPool) {
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
