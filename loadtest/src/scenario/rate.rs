//! The rates that scenarios take as an option.

use clap::builder::RangedI64ValueParser;
use clap::value_parser;

/// A parser of rates: 1 to 1,000,000 per second.
pub fn parser() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=1_000_000)
}
