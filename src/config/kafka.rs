//! Kafka clusters, of sinks and sources.

use std::path::PathBuf;

use super::document::{ConfigError, Section};
use super::shape::{Choice, List, SecretText, Text};
use super::tls::authorities;
use crate::protocol::sink::{
    KafkaBroker, KafkaCluster, KafkaLogin, KafkaMechanism, KafkaTls, is_kafka_topic,
};

const BROKER: &str = "a host and a port such as \"127.0.0.1:9092\"";

pub(super) const BROKERS: List<KafkaBroker> = List {
    expected: BROKER,
    parse: |text| KafkaBroker::parse(text).ok_or_else(|| BROKER.to_owned()),
    empty: Some("Kafka has at least one broker"),
};

pub(super) const KAFKA_TOPIC: Text<String> = Text {
    expected: "a name of 1 to 249 letters, digits, `.`, `_` and `-`",
    parse: |text| is_kafka_topic(text).then(|| text.to_owned()),
};

pub(super) const KAFKA_USER: Text<String> = Text {
    expected: "a name of 1 to 255 bytes without control characters",
    parse: |text| {
        let is_name = (1..=255).contains(&text.len()) && !text.contains(char::is_control);
        is_name.then(|| text.to_owned())
    },
};

const PASSWORD: &str = "a string of 1 to 1024 bytes without control characters";

pub(super) const KAFKA_PASSWORD: SecretText<String> = SecretText {
    expected: PASSWORD,
    parse: |text| {
        let is_password = (1..=1024).contains(&text.len()) && !text.contains(char::is_control);
        is_password.then(|| text.to_owned()).ok_or_else(|| PASSWORD.to_owned())
    },
};

pub(super) const KAFKA_MECHANISM: Choice<KafkaMechanism> = Choice(&[
    ("scram-sha-512", KafkaMechanism::ScramSha512),
    ("scram-sha-256", KafkaMechanism::ScramSha256),
    ("plain", KafkaMechanism::Plain),
]);

/// The keys of a cluster.
pub(super) struct ClusterKeys {
    pub(super) brokers: Vec<KafkaBroker>,
    pub(super) tls: bool,
    pub(super) ca: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) mechanism: KafkaMechanism,
}

/// Returns the cluster of a table.
pub(super) fn cluster(
    section: &Section<'_>,
    keys: ClusterKeys,
) -> Result<KafkaCluster, ConfigError> {
    let ClusterKeys { brokers, tls, ca, user, password, mechanism } = keys;
    let tls = match (tls, ca) {
        (false, None) => None,
        (false, Some(_)) => {
            return Err(section.fault(&["ca"], "has no effect without `tls = true`"));
        }
        (true, None) => Some(KafkaTls { authorities: None }),
        (true, Some(ca)) => {
            let certificates = authorities(section, "ca", &ca)?;
            let authorities = certificates.iter().map(|der| der.to_vec()).collect();
            Some(KafkaTls { authorities: Some(authorities) })
        }
    };
    let login = match (user, password) {
        (None, None) => None,
        (Some(user), Some(password)) => {
            Some(KafkaLogin { user: user.into(), password: password.into(), mechanism })
        }
        (Some(_), None) => {
            return Err(section.fault(&["user"], "a user needs a `password`"));
        }
        (None, Some(_)) => {
            return Err(section.fault(&["password"], "a password needs a `user`"));
        }
    };
    Ok(KafkaCluster { brokers: brokers.into(), tls, login })
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{parse, refused};
    use crate::protocol::sink::{EngineAddress, KafkaMechanism};

    const SINK: &str = "[[sink]]\nname = \"a\"\ntopic = \"t\"\n";

    #[test]
    fn a_cluster_is_neither_encrypted_nor_asks_for_a_login_unless_it_is_said() {
        let kafka = |keys: &str| {
            let keys = format!(
                "{SINK}kafka = {{ brokers = [\"a:1\", \"[::1]:2\"], topic = \"o\"{keys} }}"
            );
            let EngineAddress::Kafka(kafka) = parse(&keys).sinks[0].engine.clone() else {
                panic!("{keys}")
            };
            kafka.cluster
        };
        let plain = kafka("");
        assert_eq!(
            (plain.to_string(), &plain.tls, &plain.login),
            ("a:1,[::1]:2".into(), &None, &None)
        );
        assert_eq!(kafka(", tls = true").tls.map(|tls| tls.authorities), Some(None));
        let login = kafka(", user = \"app\", password = \"hush\"").login.expect("a login");
        assert_eq!((&*login.user, &*login.password), ("app", "hush"));
        assert_eq!(login.mechanism, KafkaMechanism::ScramSha512);
    }

    #[test]
    fn clusters_that_cannot_work_are_refused() {
        let at = "gridcast.toml:4: sink.kafka";
        for (keys, why) in [
            ("topic = \"o\"", ".brokers: missing; Kafka has at least one"),
            ("brokers = [], topic = \"o\"", ".brokers: Kafka has at least one broker"),
            (
                "brokers = [\"a\"], topic = \"o\"",
                ".brokers: expected a host and a port such as \"127.0.0.1:9092\", found \"a\"",
            ),
            (
                "brokers = [\"a:1\"], topic = \"o/p\"",
                ".topic: expected a name of 1 to 249 letters, digits, `.`, `_` and `-`, found \"o/p\"",
            ),
            (
                "brokers = [\"a:1\"], topic = \"o\", ca = \"ca.pem\"",
                ".ca: has no effect without `tls = true`",
            ),
            (
                "brokers = [\"a:1\"], topic = \"o\", user = \"app\"",
                ".user: a user needs a `password`",
            ),
            (
                "brokers = [\"a:1\"], topic = \"o\", password = \"hush\"",
                ".password: a password needs a `user`",
            ),
        ] {
            refused(&format!("{SINK}kafka = {{ {keys} }}"), &format!("{at}{why}"));
        }
    }
}
