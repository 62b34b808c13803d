//! Which seeds are run, and how one that failed is seen again.

/// Says how a failure is seen again.
pub struct Replay {
    pub seed: u64,
    pub test: &'static str,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, test } = self;
            eprintln!("seed {seed}: GRIDCAST_SEED={seed} cargo test --test {test}");
        }
    }
}

/// Returns the number in an environment variable, if it is set.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// The seeds that are asked for; without a wish, the first so many.
pub fn asked_for(usual: u64) -> std::ops::Range<u64> {
    let first = number("GRIDCAST_FIRST_SEED").unwrap_or(0);
    first..first + number("GRIDCAST_SEEDS").unwrap_or(usual)
}
