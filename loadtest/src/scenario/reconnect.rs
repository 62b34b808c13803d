//! Devices that lose their connections, come back all at once, and recover what they have missed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant as Moment;

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use tokio::time::Instant;

use crate::back_end::BackEnd;
use crate::client::HANDSHAKES;
use crate::device::{Channel, Device};
use crate::latency::Latencies;
use crate::ledger::Damage;
use crate::machine;
use crate::meter::{Cost, Meter};
use crate::payload::BYTES_MIN;
use crate::publisher::{Destination, Publisher};
use crate::run::Run;
use crate::server::Setup;
use crate::target::Target;
use crate::tasks::{in_parallel, until};

/// The channels of the devices, with a history that holds all that a run publishes while nobody is subscribed.
const CHANNELS: &str = r#"
[[channel]]
match = "again:*"
history = 1024
"#;

/// Publishes in progress at the same time.
const PUBLISHES: u32 = 64;

/// Devices of the subprotocol gridcast.v1 receive messages live, then miss as many and recover them on their open
/// connections, then miss as many again while they are disconnected, and come back all at once.
#[derive(Args, Clone)]
pub struct Reconnect {
    /// Devices, each subscribed to one channel
    #[arg(long, default_value_t = 15_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Channels with history, over which the devices are spread evenly
    #[arg(long, default_value_t = 150, value_parser = value_parser!(u32).range(1..=100_000))]
    pub channels: u32,
    /// Messages that each device misses each time
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(1..=1024))]
    pub missed: u32,
    /// Length of a message in bytes
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=65_536))]
    pub bytes: u32,
}

impl Reconnect {
    pub fn title(&self) -> String {
        let Self { clients, channels, missed, .. } = self;
        format!("reconnect: {clients} devices in {channels} channels, {missed} messages missed")
    }

    pub fn setup(&self) -> Setup {
        Setup { config: CHANNELS, ..Setup::default() }
    }

    /// Runs the scenario. A latency is the time from when a device begins to connect, as all do at the same moment, to
    /// the arrival of the last message that it has missed. Cost is that of all devices' return.
    ///
    /// # Errors
    /// A device was refused, cannot recover, or did not get everything before `deadline`.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        machine::check_descriptors_for(self.clients)?;
        let Some(run) = until(deadline, self.run_to_end(target)).await? else {
            bail!("not all devices had received everything in time");
        };
        Ok(run)
    }

    async fn run_to_end(&self, target: Target) -> Result<Run> {
        let mut back_end = self.open_back_end(target).await?;
        let devices = self.open_devices(target).await?;
        let [live, open, gone] =
            [0, 1, 2].map(|round| round * self.missed..(round + 1) * self.missed);
        let (devices, cost_live) = self.deliver(&mut back_end, devices, live, target).await?;
        let devices =
            each(devices, |mut device| async { device.unsubscribe().await.map(|()| device) });
        let devices = devices.await?;
        self.publish(&mut back_end, open.clone()).await?;
        let (devices, cost_recovered) = recover(devices, open.end, target).await?;
        let devices = devices.into_iter().map(|mut device| {
            device.disconnect();
            device
        });
        let devices = devices.collect();
        self.publish(&mut back_end, gone.clone()).await?;
        let (devices, cost, latencies) = come_back(devices, gone.end, target).await?;
        let damage: Damage = devices.iter().map(|device| device.received.damage(gone.end)).sum();
        let ratio = cost_recovered.cpu().as_secs_f64() / cost_live.cpu().as_secs_f64();
        let per_message = |cost: &Cost| {
            cost.cpu().as_secs_f64() * 1e6 / f64::from(self.missed) / f64::from(self.clients)
        };
        Ok(Run::new(cost, &latencies, damage)
            .with_figure("CPU of a message that is delivered live, µs", per_message(&cost_live))
            .with_figure("CPU of a message that is recovered, µs", per_message(&cost_recovered))
            .with_figure("the latter by the former", ratio))
    }

    async fn open_back_end(&self, target: Target) -> Result<BackEnd> {
        let to = |number| Destination::Channel(name_of_channel(number));
        let destinations: Vec<_> = (0..self.channels).map(to).collect();
        let publisher = Publisher::open(target, &destinations[0], false).await?;
        Ok(BackEnd::new(publisher, destinations, 0, self.bytes as usize))
    }

    /// Connects the devices, some at a time, and subscribes them.
    async fn open_devices(&self, target: Target) -> Result<Vec<Device>> {
        let names = (0..self.channels).map(name_of_channel).map(Arc::from);
        let channels = names.zip(0..).map(|(name, source)| Channel { name, source });
        let channels: Arc<[_]> = channels.collect();
        let (clients, bytes) = (self.clients, self.bytes);
        let opened = in_parallel(0..HANDSHAKES, |opener| {
            let channels = Arc::clone(&channels);
            async move {
                let mut devices = Vec::new();
                for number in (opener..clients).step_by(HANDSHAKES as usize) {
                    let channel = channels[number as usize % channels.len()].clone();
                    let mut device = Device::new(target, channel, bytes);
                    device.connect().await?;
                    device.subscribe().await?;
                    devices.push(device);
                }
                Ok(devices)
            }
        });
        Ok(opened.await?.into_iter().flatten().collect())
    }

    /// Publishes the messages `numbers` to each channel.
    async fn publish(&self, back_end: &mut BackEnd, numbers: Range<u32>) -> Result<()> {
        let requests = numbers.start * self.channels..numbers.end * self.channels;
        back_end.work(requests, PUBLISHES, &Latencies::default()).await
    }

    /// Publishes the messages `numbers` to each channel, while the devices receive them.
    async fn deliver(
        &self,
        back_end: &mut BackEnd,
        devices: Vec<Device>,
        numbers: Range<u32>,
        target: Target,
    ) -> Result<(Vec<Device>, Cost)> {
        let (meter, end) = (Meter::start(target.pid)?, numbers.end);
        let receiving = each(devices, move |mut device| async move {
            device.receive_until(end).await?;
            Ok(device)
        });
        let (devices, ()) = tokio::try_join!(receiving, self.publish(back_end, numbers))?;
        Ok((devices, meter.stop()?))
    }
}

/// Subscribes the devices again, and has them receive what they have missed.
async fn recover(devices: Vec<Device>, end: u32, target: Target) -> Result<(Vec<Device>, Cost)> {
    let meter = Meter::start(target.pid)?;
    let recovered = each(devices, move |mut device| async move {
        device.subscribe().await?;
        device.receive_until(end).await?;
        Ok(device)
    });
    Ok((recovered.await?, meter.stop()?))
}

/// Connects all devices at the same time, and has them receive what they have missed.
async fn come_back(
    devices: Vec<Device>,
    end: u32,
    target: Target,
) -> Result<(Vec<Device>, Cost, Arc<Latencies>)> {
    let latencies = Arc::<Latencies>::default();
    let (meter, started) = (Meter::start(target.pid)?, Moment::now());
    let back = each(devices, |mut device| {
        let latencies = Arc::clone(&latencies);
        async move {
            device.connect().await?;
            device.subscribe().await?;
            device.receive_until(end).await?;
            latencies.record(started.elapsed());
            Ok(device)
        }
    });
    Ok((back.await?, meter.stop()?, latencies))
}

async fn each<F>(devices: Vec<Device>, work: impl FnMut(Device) -> F) -> Result<Vec<Device>>
where
    F: Future<Output = Result<Device>> + Send + 'static,
{
    in_parallel(devices, work).await
}

fn name_of_channel(number: u32) -> String {
    format!("again:{number}")
}
