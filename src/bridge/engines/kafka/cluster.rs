//! The brokers of a cluster, and connections to them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{MetadataResponseBroker, MetadataResponseTopic};
use kafka_protocol::messages::{MetadataRequest, TopicName};

use super::connection::{BrokerConnection, check, text};
use super::layout::AnswerPart::{self, Array, Fixed, Text};
use crate::protocol::sink::{KAFKA_CONNECTIONS, KafkaBroker, KafkaCluster};

/// The time for the list of the brokers and partitions.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The version of the request. Brokers from Kafka 1.0 on know it.
const METADATA: i16 = 4;

/// The answer: a time, the brokers, the cluster, its controller, and the topics.
const METADATA_ANSWER: &[AnswerPart] = &[Fixed(4), Array(BROKER), Text, Fixed(4), Array(TOPIC)];

/// A broker: number, host, port and rack.
const BROKER: &[AnswerPart] = &[Fixed(4), Text, Fixed(4), Text];

/// A topic: error, name, whether it is internal, and partitions.
const TOPIC: &[AnswerPart] = &[Fixed(2), Text, Fixed(1), Array(PARTITION)];

/// A partition: error, number and leader, then replicas and those in sync.
const PARTITION: &[AnswerPart] = &[Fixed(10), Array(&[Fixed(4)]), Array(&[Fixed(4)])];

/// The number of a broker in its cluster.
pub(super) type BrokerId = i32;

/// A topic of a cluster as it was at one time, and connections to the brokers.
pub(super) struct Cluster {
    pub(super) settings: Arc<KafkaCluster>,
    brokers: HashMap<BrokerId, KafkaBroker>,
    // Connections without a request: at most `KAFKA_CONNECTIONS`.
    idle: HashMap<BrokerId, BrokerConnection>,
    // The broker that leads each partition. `None`: none does at this time.
    leaders: Vec<Option<BrokerId>>,
}

impl Cluster {
    /// Asks the first broker that answers for the partitions of a topic, which has to exist.
    pub(super) async fn find(settings: Arc<KafkaCluster>, topic: &str) -> Result<Self, String> {
        let mut failure = "no brokers".to_owned();
        for broker in &*settings.brokers {
            match describe(&settings, broker, topic).await {
                Ok((brokers, leaders)) => {
                    return Ok(Self {
                        settings: settings.clone(),
                        brokers,
                        idle: HashMap::new(),
                        leaders,
                    });
                }
                Err(why) => failure = why,
            }
        }
        Err(failure)
    }

    /// The number of partitions. At least one.
    pub(super) fn partitions(&self) -> usize {
        self.leaders.len()
    }

    /// Returns the broker that leads a partition.
    pub(super) fn leader_of(&self, partition: i32) -> Result<BrokerId, String> {
        let leader = usize::try_from(partition).ok().and_then(|at| *self.leaders.get(at)?);
        leader.ok_or_else(|| format!("partition {partition} has no leader"))
    }

    /// Takes the connection to a broker, or what is needed to make one.
    pub(super) fn take(&mut self, broker: BrokerId) -> Result<BrokerLink, String> {
        if let Some(connection) = self.idle.remove(&broker) {
            return Ok(BrokerLink::Open(connection));
        }
        let address = self.brokers.get(&broker);
        let address = address.ok_or_else(|| format!("broker {broker} has no address"))?;
        Ok(BrokerLink::Closed(self.settings.clone(), address.clone()))
    }

    /// Keeps a connection whose requests are all answered.
    pub(super) fn put_back(&mut self, broker: BrokerId, connection: BrokerConnection) {
        if self.idle.len() < KAFKA_CONNECTIONS {
            self.idle.insert(broker, connection);
        }
    }

    /// Closes connections until so many more are within the bound.
    pub(super) fn make_room(&mut self, connections: usize) {
        let most = KAFKA_CONNECTIONS.saturating_sub(connections);
        let surplus = self.idle.len().saturating_sub(most);
        let closed: Vec<BrokerId> = self.idle.keys().copied().take(surplus).collect();
        closed.iter().for_each(|broker| drop(self.idle.remove(broker)));
    }
}

/// A connection, or how to make it.
pub(super) enum BrokerLink {
    Open(BrokerConnection),
    Closed(Arc<KafkaCluster>, KafkaBroker),
}

impl BrokerLink {
    /// Connects unless that is done.
    pub(super) async fn open(self) -> Result<BrokerConnection, String> {
        match self {
            Self::Open(connection) => Ok(connection),
            Self::Closed(settings, broker) => BrokerConnection::open(&settings, &broker).await,
        }
    }
}

type Description = (HashMap<BrokerId, KafkaBroker>, Vec<Option<BrokerId>>);

async fn describe(
    settings: &KafkaCluster,
    broker: &KafkaBroker,
    topic: &str,
) -> Result<Description, String> {
    let mut connection = BrokerConnection::open(settings, broker).await?;
    let name = MetadataRequestTopic::default().with_name(Some(TopicName(text(topic))));
    let request = MetadataRequest::default()
        .with_topics(Some(vec![name]))
        .with_allow_auto_topic_creation(false);
    let answer = connection.request(METADATA, &request, METADATA_ANSWER, ANSWER_MAX).await;
    let answer = answer.map_err(|why| format!("broker {broker}: {why}"))?;
    let brokers = answer.brokers.iter().filter_map(address_of).collect();
    let [found] = &answer.topics[..] else { return Err("no answer about the topic".to_owned()) };
    let leaders = leaders_of(found).map_err(|why| format!("topic {topic:?}: {why}"))?;
    Ok((brokers, leaders))
}

fn address_of(broker: &MetadataResponseBroker) -> Option<(BrokerId, KafkaBroker)> {
    let port = u16::try_from(broker.port).ok()?;
    Some((broker.node_id.0, KafkaBroker { host: (&*broker.host).into(), port }))
}

/// Returns the leaders of the partitions, in their order.
fn leaders_of(topic: &MetadataResponseTopic) -> Result<Vec<Option<BrokerId>>, String> {
    check(topic.error_code)?;
    let mut leaders = vec![None; topic.partitions.len()];
    for partition in &topic.partitions {
        let at = usize::try_from(partition.partition_index).ok();
        let leader = at.and_then(|at| leaders.get_mut(at)).ok_or("its partitions make no sense")?;
        *leader = Some(partition.leader_id.0).filter(|leader| *leader >= 0);
    }
    match leaders.is_empty() {
        true => Err("it has no partitions".to_owned()),
        false => Ok(leaders),
    }
}
