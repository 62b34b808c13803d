//! The settings of shards and of the bridge, made from the checked configuration.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::HashMap;

use super::mesh::advertised;
use crate::address::NodeId;
use crate::address::listen::ListenAddress;
use crate::channel::ChannelPolicy;
use crate::config::{self, Config, Handler, SlowClient, Store, TlsFiles};
use crate::message::BridgeSettings;
use crate::protocol::credentials::FingerprintKey;
use crate::protocol::http;
use crate::protocol::sink::Sink;
use crate::protocol::token::KeySource;
use crate::queue::Bounds;
use crate::queue::topic::Policy;
use crate::runtime::Listening;
use crate::shard::rate::Rate;
use crate::shard::settings::{
    AddressLimits, ApiSettings, ChannelRule, ChannelSettings, EdgeSettings, Endpoint, Endpoints,
    LimitSettings, PresenceRule, Process, ProxyMethod, ProxySettings, QueueSettings, RouteSettings,
    Settings, TopicRules,
};

/// The addresses that the listeners of a node were bound to.
pub(super) struct Bound {
    pub(super) api: ListenAddress,
    // In the order of the configuration.
    pub(super) edges: Vec<ListenAddress>,
}

/// Returns the settings of all shards.
pub(super) fn shard_settings(
    config: &Config,
    fingerprint_key: FingerprintKey,
    bound: &Bound,
) -> Settings {
    let config::Limits { head_bytes, headers, .. } = config.limits;
    Settings {
        node: NodeId::new(config.node.id).expect("the configuration was checked"),
        shards: config.node.cores.len(),
        has_mesh: config.mesh.is_some(),
        api: ApiSettings {
            advertise: advertised_api(config.api.advertise, &bound.api),
            origins: config.api.origins.clone(),
            users: config.api.users.clone().into(),
            fingerprint_key,
            proxy: proxy_of(&config.api.proxy),
            http: http::RequestLimits {
                head_bytes,
                headers,
                body_bytes: config.limits.api_message_bytes,
            },
        },
        edges: config
            .edges
            .iter()
            .zip(&bound.edges)
            .map(|(edge, address)| EdgeSettings {
                port: address.port(),
                routes: edge.routes.iter().map(|route| Arc::new(route_of(route))).collect(),
                proxy: proxy_of(&edge.proxy),
            })
            .collect(),
        queue: QueueSettings {
            bounds: Bounds {
                messages: config.queue.topic_messages,
                bytes: config.queue.topic_bytes,
            },
            when_full: config.queue.when_full,
            topics: config.queue.topics,
            rules: Arc::new(config.topics.iter().map(topic_rules).collect()),
            sinks: Arc::new(sinks_of_topics(&config.sinks)),
        },
        channels: channels(config),
        limits: limits(&config.limits),
        has_access_log: config.log.access,
        process: Process::default(),
    }
}

/// Returns the address of the API to tell others.
fn advertised_api(configured: Option<SocketAddr>, bound: &ListenAddress) -> ListenAddress {
    match (configured, bound) {
        (Some(configured), _) => configured.into(),
        (None, ListenAddress::Tcp(bound)) => advertised(*bound, *bound, &[]).into(),
        (None, ListenAddress::Unix(_)) => bound.clone(),
    }
}

fn topic_rules(topic: &config::TopicConfig) -> (Box<str>, TopicRules) {
    let rules = TopicRules {
        groups: topic.groups.iter().map(|group| Arc::from(&group[..])).collect(),
        default_group: topic.default_group,
        bounds: Bounds { messages: topic.messages, bytes: topic.bytes },
        when_full: topic.when_full,
        policy: Policy {
            ack_us: topic.ack_s * 1_000_000,
            tries: topic.tries,
            age_max_us: topic.max_age_s * 1_000_000,
        },
        dead: topic.dead.as_deref().map(Arc::from),
        is_on_disk: topic.store == Store::Disk,
    };
    (topic.name.as_str().into(), rules)
}

fn channels(config: &Config) -> ChannelSettings {
    let rule = |channel: &config::ChannelConfig| ChannelRule {
        pattern: channel.r#match.as_str().into(),
        history: (channel.history > 0).then_some(ChannelPolicy {
            messages: channel.history,
            bytes: usize::MAX,
            keep_ms: channel.history_s * 1000,
            copies: 1,
        }),
        presence: channel.presence.then(|| PresenceRule {
            grace_ms: channel.presence_grace_s * 1000,
            topic: channel.topic.as_deref().map(Arc::from),
        }),
    };
    ChannelSettings {
        rules: config.channels.iter().map(rule).collect(),
        history_bytes: config.limits.history_bytes / config.node.cores.len(),
        presence_bytes: config.limits.presence_bytes / config.node.cores.len(),
    }
}

fn sinks_of_topics(sinks: &[Arc<Sink>]) -> HashMap<Arc<str>, Vec<Arc<str>>> {
    let mut topics: HashMap<Arc<str>, Vec<Arc<str>>> = HashMap::new();
    for sink in sinks {
        topics.entry(sink.topic.clone()).or_default().push(sink.name.clone());
    }
    topics
}

fn proxy_of(proxy: &Option<config::Proxy>) -> Option<Arc<ProxySettings>> {
    let config::Proxy { from, protocol, .. } = proxy.as_ref()?;
    let method = if *protocol { ProxyMethod::Protocol } else { ProxyMethod::Forwarded };
    Some(Arc::new(ProxySettings { from: from.iter().copied().collect(), method }))
}

fn route_of(route: &config::Route) -> RouteSettings {
    RouteSettings {
        path: route.path.clone(),
        is_removed: false,
        topic: route.topic.as_deref().map(Arc::from),
        tells_open: route.events.open,
        tells_message: route.events.message,
        tells_close: route.events.close,
        subscribe: route.subscribe.clone(),
        hold_until: route.hold_until.as_deref().map(Box::from),
        origins: route.origins.clone(),
        token: route.token.clone(),
        admit: route.admit.clone(),
        echo: route.handler == Some(Handler::Echo),
        subprotocols: route.subprotocols.clone(),
        compression: route.compression,
        message_bytes: route.message_bytes,
        outbound_bytes: route.outbound_bytes,
        messages: Rate::new(route.messages_per_s),
    }
}

fn limits(limits: &config::Limits) -> LimitSettings {
    let config::Limits { head_bytes, headers, .. } = *limits;
    LimitSettings {
        // A handshake has no body.
        edge_http: http::RequestLimits { head_bytes, headers, body_bytes: 0 },
        api_message_bytes: limits.api_message_bytes,
        outbound_bytes: limits.outbound_bytes,
        close_slow_clients: limits.slow_client == SlowClient::Close,
        channels_per_client: limits.channels_per_client,
        addresses: AddressLimits {
            connections: NonZeroU32::new(limits.connections_per_address),
            handshakes: Rate::new(limits.handshakes_per_address_s),
        },
        handshake_ms: limits.handshake_ms,
        ping_ms: limits.ping_ms,
        idle_ms: limits.idle_ms,
        answer_ms: limits.answer_ms,
    }
}

/// Returns the part of the settings that the bridge needs.
pub(super) fn bridge_settings(config: &Config) -> BridgeSettings {
    BridgeSettings {
        key_sources: key_sources(config),
        sinks: config.sinks.clone(),
        call_sources: config.call_sources.clone(),
    }
}

/// Returns the sources from which the keys of routes are fetched.
fn key_sources(config: &Config) -> Vec<Arc<KeySource>> {
    let routes = config.edges.iter().flat_map(|edge| &edge.routes);
    let rules = routes.filter_map(|route| route.token.as_ref());
    rules.filter_map(|rule| rule.key_source().cloned()).collect()
}

/// Returns the listeners as a console shows them.
pub(super) fn endpoints(config: &Config, api: &Listening, edges: &[Listening]) -> Endpoints {
    let of = |listening: &Listening, tls: &Option<TlsFiles>| Endpoint {
        address: listening.address.clone(),
        has_tls: tls.is_some(),
    };
    let edges = config.edges.iter().zip(edges);
    Endpoints {
        api: of(api, &config.api.tls),
        edges: edges.map(|(edge, listening)| of(listening, &edge.tls)).collect(),
    }
}
