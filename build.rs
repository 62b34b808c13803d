//! Compresses the files of the console, so that a node never does: `OUT_DIR/console/NAME.gz`.

use std::env;
use std::error::Error;
use std::fs;
use std::path::Path;

use zlib_rs::crc32::crc32;
use zlib_rs::{Deflate, DeflateFlush};

/// The folder of the files.
const FOLDER: &str = "src/console/page";

/// The best compression, and the largest window.
const LEVEL: i32 = 9;
const WINDOW_BITS: u8 = 15;

/// The head of a gzip file (RFC 1952, section 2.3) with the slowest compression, no name and no time, so that every
/// build gives the same bytes.
const HEAD: [u8; 10] = [0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 2, 0xFF];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={FOLDER}");
    let to = Path::new(&env::var("OUT_DIR")?).join("console");
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(FOLDER)? {
        let path = entry?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).ok_or("a file without a name")?;
        let text = fs::read_to_string(&path)?;
        if name == "index.html" {
            // The page tells whether the API has users: see `console::page`.
            for has_users in ["true", "false"] {
                let page = text.replace("{{users}}", has_users);
                fs::write(to.join(format!("index-{has_users}.html.gz")), gzip(page.as_bytes())?)?;
            }
        } else {
            fs::write(to.join(format!("{name}.gz")), gzip(text.as_bytes())?)?;
        }
    }
    Ok(())
}

/// Returns `text` as a gzip file.
fn gzip(text: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut body = vec![0; text.len() + 1024];
    let mut compressor = Deflate::new(LEVEL, false, WINDOW_BITS);
    let compressed = compressor.compress(text, &mut body, DeflateFlush::Finish);
    compressed.map_err(|error| format!("{error:?}"))?;
    body.truncate(usize::try_from(compressor.total_out())?);
    let checksum = crc32(0, text).to_le_bytes();
    let length = u32::try_from(text.len())?.to_le_bytes();
    Ok([&HEAD[..], &body, &checksum, &length].concat())
}
