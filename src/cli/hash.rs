//! `hash`: hashes a password or token of a user of the API.

use std::io::{self, IsTerminal, Read};

use argon2::{Algorithm, Argon2, Params, PasswordHasher, Version};
use clap::Args;

use super::failure::Failure;
use super::random::random_bytes;
use super::terminal::{Output, ask_password};
use crate::protocol::credentials::{HASH_MEMORY_KIB_MAX, HASH_PASSES_MAX};

/// The longest secret that a configuration takes.
const SECRET_BYTES_MAX: usize = 1024;

/// The bytes of a salt (RFC 9106, section 3.1).
const SALT_BYTES: usize = 16;

/// The arguments of `hash`.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct HashArguments {
    /// Memory that a check takes, in KiB
    #[arg(long, value_name = "KIB", default_value_t = 19_456,
        value_parser = clap::value_parser!(u32).range(8..=i64::from(HASH_MEMORY_KIB_MAX)))]
    memory: u32,

    /// Passes over the memory
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(HASH_PASSES_MAX)))]
    passes: u32,
}

impl HashArguments {
    /// Reads the secret and prints its hash.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let secret = read_secret()?;
        let hash = self.hash(&secret).map_err(Failure::Failed)?;
        let mut output = Output::new();
        output.write(&format!("{hash}\n"))?;
        output.flush()
    }

    /// Hashes a secret with a salt of its own.
    fn hash(&self, secret: &str) -> Result<String, String> {
        let salt = random_bytes::<SALT_BYTES>().map_err(|error| format!("no salt: {error}"))?;
        let params = Params::new(self.memory, self.passes, 1, None);
        let params = params.map_err(|error| error.to_string())?;
        let hasher = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash = hasher.hash_password_with_salt(secret.as_bytes(), &salt);
        hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
    }
}

/// Reads the secret: from the terminal, twice, or the only line of standard input.
fn read_secret() -> Result<String, Failure> {
    let secret = match io::stdin().is_terminal() {
        true => {
            let ask = |prompt| ask_password(prompt).map_err(Failure::Failed);
            let secret = ask("Password or token: ")?;
            if secret != ask("Again: ")? {
                return Err(Failure::Usage("the two are not the same".into()));
            }
            secret
        }
        false => {
            let mut text = String::new();
            // Room for the line end.
            let input = io::stdin().take(SECRET_BYTES_MAX as u64 + 2);
            let read = { input }.read_to_string(&mut text);
            read.map_err(|error| Failure::Failed(format!("standard input: {error}")))?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
    };
    let is_valid =
        (1..=SECRET_BYTES_MAX).contains(&secret.len()) && !secret.contains(char::is_control);
    match is_valid {
        true => Ok(secret),
        false => Err(Failure::Usage(
            "expected one line of 1 to 1024 bytes without control characters".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::credentials::SecretHash;

    #[test]
    fn a_hash_is_one_that_the_configuration_takes() {
        let arguments = HashArguments { memory: 8, passes: 1 };
        let hash = arguments.hash("open sesame").expect("valid parameters");
        assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
        let parsed = SecretHash::parse(&hash).expect("a valid hash");
        assert!(parsed.matches("open sesame"));
        assert!(!parsed.matches("open barley"));
        assert_ne!(arguments.hash("open sesame"), Ok(hash), "each hash has its own salt");
    }
}
