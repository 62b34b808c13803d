//! The login at a broker: SASL with PLAIN (RFC 4616) or SCRAM (RFC 5802, RFC 7677).

use std::num::NonZeroU32;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use ring::digest;
use ring::hmac;
use ring::pbkdf2;
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq;

use super::connection::{BrokerConnection, check, text};
use super::layout::AnswerPart::{self, Array, Fixed, Octets, Text};
use crate::bridge::engines::explain;
use crate::protocol::sink::{KafkaLogin, KafkaMechanism};

/// The time for each answer. The whole connection has a limit too.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The version of the first request. Brokers from Kafka 1.0 on know it.
const HANDSHAKE: i16 = 1;

/// The answer: an error, and the mechanisms.
const HANDSHAKE_ANSWER: &[AnswerPart] = &[Fixed(2), Array(&[Text])];

/// The version of the further requests.
const AUTHENTICATE: i16 = 0;

/// The answer to an authentication request: an error code, its text, and the message of the SASL mechanism.
const AUTHENTICATE_ANSWER: &[AnswerPart] = &[Fixed(2), Text, Octets];

/// The most rounds of the hash that a broker may ask for: some 50 ms of the thread. Kafka itself allows 16,384.
const ITERATIONS_MAX: u32 = 65_536;

/// The fewest rounds that are accepted (RFC 7677, section 4).
const ITERATIONS_MIN: u32 = 4096;

/// The random bytes of a nonce.
const NONCE_BYTES: usize = 24;

/// Logs in on a new connection.
pub(super) async fn log_in(
    connection: &mut BrokerConnection,
    login: &KafkaLogin,
) -> Result<(), String> {
    let name = match login.mechanism {
        KafkaMechanism::Plain => "PLAIN",
        KafkaMechanism::ScramSha256 => "SCRAM-SHA-256",
        KafkaMechanism::ScramSha512 => "SCRAM-SHA-512",
    };
    let logged_in = match login.mechanism {
        KafkaMechanism::Plain => plain(connection, name, login).await,
        KafkaMechanism::ScramSha256 => scram(connection, name, &SHA_256, login).await,
        KafkaMechanism::ScramSha512 => scram(connection, name, &SHA_512, login).await,
    };
    logged_in.map_err(|why| format!("login with {name}: {why}"))
}

/// Chooses a mechanism.
async fn begin(connection: &mut BrokerConnection, name: &str) -> Result<(), String> {
    let request = SaslHandshakeRequest::default().with_mechanism(text(name));
    let answer = connection.request(HANDSHAKE, &request, HANDSHAKE_ANSWER, ANSWER_MAX).await?;
    let offered: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
    check(answer.error_code).map_err(|why| format!("{why}; offered: {}", offered.join(", ")))
}

async fn plain(
    connection: &mut BrokerConnection,
    name: &str,
    login: &KafkaLogin,
) -> Result<(), String> {
    begin(connection, name).await?;
    let message = format!("\0{}\0{}", login.user, login.password);
    authenticate(connection, message).await.map(drop)
}

async fn authenticate(
    connection: &mut BrokerConnection,
    message: String,
) -> Result<String, String> {
    let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into_bytes().into());
    let answer =
        connection.request(AUTHENTICATE, &request, AUTHENTICATE_ANSWER, ANSWER_MAX).await?;
    check(answer.error_code).map_err(|why| match answer.error_message.as_deref() {
        Some(message) => explain(format!("{why}: {message}")),
        None => why,
    })?;
    String::from_utf8(answer.auth_bytes.to_vec()).map_err(explain)
}

/// The functions of a hash.
struct Hash {
    digest: &'static digest::Algorithm,
    hmac: hmac::Algorithm,
    pbkdf2: pbkdf2::Algorithm,
}

static SHA_256: Hash =
    Hash { digest: &digest::SHA256, hmac: hmac::HMAC_SHA256, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA256 };

static SHA_512: Hash =
    Hash { digest: &digest::SHA512, hmac: hmac::HMAC_SHA512, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA512 };

async fn scram(
    connection: &mut BrokerConnection,
    name: &str,
    hash: &'static Hash,
    login: &KafkaLogin,
) -> Result<(), String> {
    begin(connection, name).await?;
    let mut nonce = [0; NONCE_BYTES];
    SystemRandom::new().fill(&mut nonce).map_err(|_| "no random bytes".to_owned())?;
    let (user, password) = (&*login.user, &*login.password);
    let exchange = ScramExchange { hash, user, password, nonce: BASE64.encode(nonce) };
    let challenge = authenticate(connection, exchange.first()).await?;
    let (proof, signature) = exchange.answer(&challenge)?;
    let last = authenticate(connection, proof).await?;
    check_signature(&last, signature.as_ref())
}

/// The part of a client in an exchange of SCRAM.
struct ScramExchange<'l> {
    hash: &'static Hash,
    user: &'l str,
    password: &'l str,
    nonce: String,
}

impl ScramExchange<'_> {
    /// The first message, without what precedes it on the wire.
    fn first_bare(&self) -> String {
        // RFC 5802, section 5.1.
        let user = self.user.replace('=', "=3D").replace(',', "=2C");
        format!("n={user},r={}", self.nonce)
    }

    /// The first message.
    fn first(&self) -> String {
        format!("n,,{}", self.first_bare())
    }

    /// Returns the last message, and the signature that the broker has to answer with.
    fn answer(&self, challenge: &str) -> Result<(String, hmac::Tag), String> {
        let mut attributes = challenge.split(',');
        let mut attribute = |name: &str| attributes.next()?.strip_prefix(name);
        let fields = (|| Some((attribute("r=")?, attribute("s=")?, attribute("i=")?)))();
        let (nonce, salt, iterations) = fields.ok_or("the challenge makes no sense")?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err("the challenge is not for this login".to_owned());
        }
        let salt = BASE64.decode(salt).map_err(explain)?;
        let iterations: NonZeroU32 = iterations.parse().map_err(explain)?;
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations.get()) {
            return Err(format!(
                "the broker asks for {iterations} iterations; {ITERATIONS_MIN} to {ITERATIONS_MAX} are \
                 accepted"
            ));
        }
        let Hash { digest, hmac: algorithm, pbkdf2 } = self.hash;
        let mut salted = vec![0; digest.output_len()];
        pbkdf2::derive(*pbkdf2, iterations, &salt, self.password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(*algorithm, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let server_key = hmac::sign(&salted, b"Server Key");
        let stored_key = digest::digest(digest, client_key.as_ref());
        let last = format!("c=biws,r={nonce}");
        let signed = format!("{},{challenge},{last}", self.first_bare());
        let sign = |key: &[u8]| hmac::sign(&hmac::Key::new(*algorithm, key), signed.as_bytes());
        let signature = sign(stored_key.as_ref());
        let proof = client_key.as_ref().iter().zip(signature.as_ref());
        let proof: Vec<u8> = proof.map(|(key, signature)| key ^ signature).collect();
        Ok((format!("{last},p={}", BASE64.encode(proof)), sign(server_key.as_ref())))
    }
}

/// Checks that the broker knows the password too.
fn check_signature(last: &str, expected: &[u8]) -> Result<(), String> {
    let wrong = || "the broker does not know the password".to_owned();
    let first = last.split(',').next().unwrap_or_default();
    if let Some(error) = first.strip_prefix("e=") {
        return Err(explain(format!("refused: {error}")));
    }
    let signature = first.strip_prefix("v=");
    let signature = BASE64.decode(signature.ok_or_else(wrong)?).map_err(|_| wrong())?;
    match bool::from(signature.ct_eq(expected)) {
        true => Ok(()),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677, section 3.
    const CHALLENGE: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                             s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn exchange() -> ScramExchange<'static> {
        let nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
        ScramExchange { hash: &SHA_256, user: "user", password: "pencil", nonce }
    }

    #[test]
    fn an_exchange_is_that_of_the_standard() {
        let exchange = exchange();
        assert_eq!(exchange.first(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let (proof, signature) = exchange.answer(CHALLENGE).expect("a challenge");
        assert_eq!(
            proof,
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
             p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        let last = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(check_signature(last, signature.as_ref()), Ok(()));
        for (wrong, why) in [
            ("", "the broker does not know the password"),
            ("v=", "the broker does not know the password"),
            (
                "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G8=",
                "the broker does not know the password",
            ),
            ("v=!", "the broker does not know the password"),
            ("e=unknown-user", "refused: unknown-user"),
        ] {
            assert_eq!(check_signature(wrong, signature.as_ref()), Err(why.to_owned()), "{wrong}");
        }
    }

    #[test]
    fn a_challenge_that_makes_no_sense_is_refused() {
        for (wrong, why) in [
            ("", "the challenge makes no sense"),
            ("e=other-error", "the challenge makes no sense"),
            ("r=another,s=W22Z,i=4096", "the challenge is not for this login"),
            ("r=rOprNGfwEbeRWgbNEkqO,s=W22Z,i=4096", "the challenge is not for this login"),
        ] {
            assert_eq!(exchange().answer(wrong).expect_err("no challenge"), why, "{wrong}");
        }
        for (iterations, why) in [("1", "asks for 1"), ("65537", "asks for 65537"), ("0", "")] {
            let challenge = CHALLENGE.replace("4096", iterations);
            let refused = exchange().answer(&challenge).expect_err("refused");
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn a_user_may_have_any_name() {
        let exchange = ScramExchange { user: "a=b,c", ..exchange() };
        assert!(exchange.first().starts_with("n,,n=a=3Db=2Cc,r="));
    }
}
