//! A frame in the forms in which subscribers get it, joined to what a burst put before it.

use std::rc::Rc;

use crate::metrics::Counters;
use crate::protocol::deflate::{Deflater, Window};
use crate::protocol::frame::Frame;
use crate::shard::connection::{Outbound, Spare};

/// What the publish to a channel that ended last put behind what waited for its subscribers, in each
/// form: plain, and for each window. A subscriber whose last waiting run is a tail itself, not only
/// its like, has got nothing since. While a tail is held here its address is no other's.
pub type Tails = [Option<Rc<Frame>>; 1 + Window::COUNT];

/// A frame is joined to the tail before it where it is for so many subscribers at least, up to so
/// many bytes: then a burst costs one run of bytes for each, where otherwise each frame would cost the
/// kernel a look of its own. Joining copies, which pays for itself where several get it.
pub const JOINED_FOR: usize = 4;
const JOINED_BYTES: usize = 4096;

/// A frame in the forms in which subscribers get it. Each is made when the first of them needs it,
/// once.
#[derive(Debug)]
pub struct Forms {
    plain: Rc<Frame>,
    made: [Option<Form>; 1 + Window::COUNT],
    tails: Tails,
}

/// One of them.
#[derive(Debug)]
pub struct Form {
    frame: Rc<Frame>,
    // The tail that it may be joined to, and what comes of that.
    joined: Option<(Rc<Frame>, Rc<Frame>)>,
    // Whether it was, for somebody.
    is_joined: bool,
    // Of the frame alone.
    bytes: usize,
}

impl Forms {
    /// None is made yet.
    pub fn of(frame: Frame, tails: Tails) -> Self {
        Self { plain: Rc::new(frame), made: Default::default(), tails }
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
    ) -> &mut Form {
        let place = window.map_or(0, |window| 1 + window as usize);
        let Self { plain, made, tails } = self;
        // Made for the first subscriber, found by all others.
        made[place].get_or_insert_with(|| {
            Form::made(plain, window, tails[place].take(), deflater, counters)
        })
    }

    /// What the next publish finds behind all that waits.
    pub fn into_tails(self) -> Tails {
        self.made.map(|form| form.map(Form::into_tail))
    }
}

impl Form {
    #[cold]
    #[inline(never)]
    fn made(
        plain: &Rc<Frame>,
        window: Option<Window>,
        tail: Option<Rc<Frame>>,
        deflater: &mut Deflater,
        counters: &mut Counters,
    ) -> Self {
        let body = deflater.body(window, plain.kind(), plain.payload());
        counters.compressions += u64::from(body.is_deflated);
        let frame = match body.is_deflated {
            true => Rc::new(Frame::of(&body)),
            false => plain.clone(),
        };
        Self::of(frame, tail)
    }

    fn of(frame: Rc<Frame>, tail: Option<Rc<Frame>>) -> Self {
        let is_short = |tail: &Rc<Frame>| tail.bytes().len() + frame.bytes().len() <= JOINED_BYTES;
        let joined = tail.filter(is_short).map(|tail| {
            let joined = Rc::new(tail.followed_by(&frame));
            (tail, joined)
        });
        let bytes = frame.bytes().len();
        Self { frame, joined, is_joined: false, bytes }
    }

    /// The length of the frame alone.
    pub fn frame_bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the frame to what waits for a subscriber.
    #[inline]
    pub fn push(&mut self, outbound: &mut Outbound, spare: &mut Spare) {
        match &self.joined {
            Some((tail, joined)) if outbound.join(tail, joined, self.bytes) => {
                self.is_joined = true;
            }
            _ => outbound.push_shared(spare, self.frame.clone()),
        }
    }

    fn into_tail(self) -> Rc<Frame> {
        match self.joined {
            Some((_, joined)) if self.is_joined => joined,
            _ => self.frame,
        }
    }
}
