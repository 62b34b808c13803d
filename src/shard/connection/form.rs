//! The form in which messages are sent to a client.

use crate::protocol::deflate::Window;

/// The form in which messages are sent to a client: as they are or in the envelope of the device protocol, and
/// compressed or not. A set of plain variants, so that it is an index that needs no check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageForm {
    /// As they are.
    #[default]
    Plain,
    /// Compressed with the small window.
    Small,
    /// Compressed with the large window.
    Large,
    /// In envelopes.
    Enveloped,
    /// In envelopes, compressed with the small window.
    EnvelopedSmall,
    /// In envelopes, compressed with the large window.
    EnvelopedLarge,
}

impl MessageForm {
    /// The number of forms.
    pub const COUNT: usize = 2 * (1 + Window::COUNT);

    /// Returns the form for a client that agreed on this compression window, and on the device protocol or not.
    pub fn new(window: Option<Window>, is_enveloped: bool) -> Self {
        match (window, is_enveloped) {
            (None, false) => Self::Plain,
            (Some(Window::Small), false) => Self::Small,
            (Some(Window::Large), false) => Self::Large,
            (None, true) => Self::Enveloped,
            (Some(Window::Small), true) => Self::EnvelopedSmall,
            (Some(Window::Large), true) => Self::EnvelopedLarge,
        }
    }

    /// Returns the compression window. `None`: messages are not compressed.
    pub fn window(self) -> Option<Window> {
        match self {
            Self::Plain | Self::Enveloped => None,
            Self::Small | Self::EnvelopedSmall => Some(Window::Small),
            Self::Large | Self::EnvelopedLarge => Some(Window::Large),
        }
    }

    /// Returns the index of the form among all but [`Self::Plain`]. `None`: this is the plain one.
    #[inline]
    pub fn place_beside_plain(self) -> Option<usize> {
        (self as usize).checked_sub(1)
    }

    /// Whether the client speaks the device protocol: messages are in envelopes, and what the client sends are calls.
    #[inline]
    pub fn is_enveloped(self) -> bool {
        matches!(self, Self::Enveloped | Self::EnvelopedSmall | Self::EnvelopedLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_the_window_and_the_protocol_that_it_was_made_of() {
        let mut indices = Vec::new();
        for is_enveloped in [false, true] {
            for window in [None, Some(Window::Small), Some(Window::Large)] {
                let form = MessageForm::new(window, is_enveloped);
                assert_eq!((form.window(), form.is_enveloped()), (window, is_enveloped));
                indices.push(form as usize);
            }
        }
        assert_eq!(indices, (0..MessageForm::COUNT).collect::<Vec<_>>());
        assert_eq!(MessageForm::default(), MessageForm::Plain);
        assert_eq!(MessageForm::Plain.place_beside_plain(), None);
        assert_eq!(MessageForm::EnvelopedLarge.place_beside_plain(), Some(MessageForm::COUNT - 2));
    }
}
