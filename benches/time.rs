//! How long things take without a socket: `cargo bench --bench time`, or a part of it by name:
//! `cargo bench --bench time -- fan-out`.

mod cases;

use std::hint::black_box;
use std::time::Duration;

use cases::{
    Crowd, Decoding, EncodingEvent, Fleet, Handshake, Hop, Parsing, Passing, RemotePublishes,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gridcast::protocol::frame::{Frame, Kind};

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    let mut case = Handshake::new();
    group.bench_function("handshake read and checked", |b| b.iter(|| case.run()));
    for bytes in [128, 16_384] {
        let mut case = Decoding::new(bytes);
        group.bench_function(format!("frame of {bytes} B decoded and unmasked"), |b| {
            b.iter(|| case.run());
        });
        let payload = vec![b'x'; bytes];
        group.bench_function(format!("frame of {bytes} B encoded"), |b| {
            b.iter(|| Frame::message(Kind::Text, black_box(&payload)));
        });
        let mut case = Parsing::new(bytes);
        group.bench_function(format!("publish of {bytes} B read"), |b| b.iter(|| case.read()));
        let mut case = EncodingEvent::new(bytes);
        group.bench_function(format!("event of {bytes} B written"), |b| b.iter(|| case.run()));
    }
    let mut case = Parsing::new(0);
    group.bench_function("answer written", |b| b.iter(|| case.answer()));
}

fn mesh(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mesh");
    group.throughput(Throughput::Elements(RemotePublishes::COUNT as u64));
    let mut case = RemotePublishes::new(128);
    group.bench_function("batch of 64 publishes of 128 B encoded", |b| b.iter(|| case.encode()));
    group.bench_function("batch of 64 publishes of 128 B decoded", |b| b.iter(|| case.decode()));
}

fn fan_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fan-out");
    // A large one takes milliseconds: fewer of them tell as much.
    group.sample_size(20).measurement_time(Duration::from_secs(4));
    for (clients, own_channels) in [(1, 0), (1000, 0), (1000, 100), (100_000, 0), (100_000, 10)] {
        let channels = clients * own_channels + 1;
        let mut case = Crowd::new(clients, own_channels, "all");
        assert_eq!(case.publish(), clients + 1, "each client, and the answer");
        group.throughput(Throughput::Elements(clients as u64));
        group.bench_function(format!("to {clients}, {channels} channels"), |b| {
            b.iter(|| case.publish());
        });
    }
    for (clients, channel) in [(0, "nobody's"), (1000, "all"), (100_000, "all")] {
        let mut case = Crowd::new(clients.max(1), 0, channel).in_bursts(16);
        group.throughput(Throughput::Elements(16 * clients.max(1) as u64));
        group.bench_function(format!("16 at once to {clients}, 1 channels"), |b| {
            b.iter(|| case.publish());
        });
    }
    let mut case = Crowd::new(1000, 100, "500-50");
    assert_eq!(case.publish(), 2);
    group.throughput(Throughput::Elements(1));
    group.bench_function("to 1, 100001 channels", |b| b.iter(|| case.publish()));
    let mut case = Crowd::new(1, 0, "nobody's");
    assert_eq!(case.publish(), 1);
    group.bench_function("to 0, 1 channels", |b| b.iter(|| case.publish()));
}

fn passing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("passing");
    // A shard takes no more than 32 of one mailbox in a turn where there are 128.
    for (count, shards) in [(1, 2), (32, 2), (1, 128), (32, 128)] {
        let mut case = Hop::new(shards);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("{count} between two of {shards} shards in a turn"), |b| {
            b.iter(|| case.run(count));
        });
    }
    for shards in [2, 16, 128] {
        let mut case = Hop::new(shards);
        group.throughput(Throughput::Elements(shards as u64 - 1));
        group.bench_function(format!("a question to all of {shards} shards, and answers"), |b| {
            b.iter(|| case.ask_all());
        });
    }
    for clients in [1, 10_000] {
        let mut case = Passing::new(clients);
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("through a topic, of {clients} clients"), |b| {
            b.iter(|| case.run());
        });
    }
}

fn consumers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("consumers");
    group.sample_size(10);
    for (clients, consumers) in [(100, 500), (15_000, 500)] {
        let mut case = Fleet::new(clients, consumers);
        println!("the longest step took {:?}", case.run());
        group.bench_function(format!("{consumers} come and go, {clients} clients wait"), |b| {
            b.iter(|| case.run());
        });
    }
}

criterion_group!(benches, codec, mesh, fan_out, passing, consumers);
criterion_main!(benches);
