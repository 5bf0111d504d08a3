//! DNS look-ups.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::address::is_private;
use super::lookup::{Boxed, Miss, Names, Service};

/// The real world: one DNS client with a bounded cache, rebuilt when `/etc/resolv.conf` changes.
pub struct Dns {
    current: Mutex<Option<(Arc<hickory_resolver::TokioResolver>, Option<std::time::SystemTime>)>>,
    entries_max: u64,
}

impl Dns {
    pub fn new(entries_max: u64) -> Dns {
        Dns { current: Mutex::new(None), entries_max }
    }

    /// A board often starts before its network does: the first client would then know no name server for ever.
    fn client(&self) -> Result<Arc<hickory_resolver::TokioResolver>, Miss> {
        let changed = std::fs::metadata("/etc/resolv.conf").and_then(|meta| meta.modified()).ok();
        let mut current = self.current.lock();
        if let Some((client, seen)) = current.as_ref()
            && *seen == changed
        {
            return Ok(client.clone());
        }
        let client = Arc::new(
            self.build().map_err(|error| Miss::Silent(format!("the DNS resolver cannot be started: {error}")))?,
        );
        *current = Some((client.clone(), changed));
        Ok(client)
    }

    fn build(&self) -> Result<hickory_resolver::TokioResolver, hickory_resolver::net::NetError> {
        use hickory_resolver::config::LookupIpStrategy;
        let mut builder = hickory_resolver::TokioResolver::builder_tokio()?;
        let options = builder.options_mut();
        options.cache_size = self.entries_max;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = Duration::from_secs(2);
        options.attempts = 2;
        // Small routers suffer from lookup storms: a name is asked for at most once a minute, whatever its TTL says.
        options.positive_min_ttl = Some(Duration::from_secs(60));
        options.positive_max_ttl = Some(Duration::from_secs(24 * 3600));
        options.negative_min_ttl = Some(Duration::from_secs(60));
        options.negative_max_ttl = Some(Duration::from_secs(600));
        builder.build()
    }

    /// As [`Names::all_addresses`]; without `allow_private`, machines in a home or company network have no address.
    pub async fn addresses(&self, host: &str, allow_private: bool) -> Result<Vec<IpAddr>, Miss> {
        let found = self.find(host).await?;
        let reachable: Vec<IpAddr> =
            found.into_iter().filter(|address| allow_private || !is_private(*address)).collect();
        if reachable.is_empty() { Err(kept_out(host)) } else { Ok(reachable) }
    }

    async fn find(&self, host: &str) -> Result<Vec<IpAddr>, Miss> {
        let found = self.client()?.lookup_ip(complete(host)).await.map_err(|error| miss(host, &error))?;
        let found: Vec<IpAddr> = found.iter().take(ADDRESSES_MAX).collect();
        if found.is_empty() {
            return Err(Miss::Absent(format!("{host} has no address")));
        }
        Ok(found)
    }

    /// Whether any name server answers, for a name that none has in its cache. Asked twice: one packet may be lost.
    pub async fn has_name_server(&self, random: [u64; 2]) -> bool {
        use hickory_resolver::proto::rr::RecordType;
        let answers = async |random: u64| {
            // One question, for A: some routers never answer those for AAAA, and a look-up of both would wait for it.
            let name = format!("snug-{random:016x}.example.com");
            let Ok(client) = self.client() else { return false };
            let found = client.lookup(complete(&name), RecordType::A).await;
            !matches!(found.map_err(|error| miss(&name, &error)), Err(Miss::Silent(_)))
        };
        let (mut one, mut other) = (pin!(answers(random[0])), pin!(answers(random[1])));
        tokio::select! {
            yes = &mut one => yes || other.await,
            yes = &mut other => yes || one.await,
        }
    }

    pub async fn services(&self, name: &str) -> Result<Vec<Service>, Miss> {
        use hickory_resolver::proto::rr::{RData, RecordType};
        let found = self.client()?.lookup(complete(name), RecordType::SRV).await.map_err(|error| miss(name, &error))?;
        let services = found.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Service {
                priority: srv.priority,
                weight: srv.weight,
                host: srv.target.to_utf8().trim_end_matches('.').to_owned(),
                port: srv.port,
            }),
            _ => None,
        });
        Ok(services.take(32).collect())
    }
}

impl Names for Dns {
    fn all_addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Vec<IpAddr>, Miss>> {
        Box::pin(self.find(host))
    }
}

pub fn kept_out(host: &str) -> Miss {
    Miss::Absent(format!("{host} is at a private address, which federation.allow_private_addresses does not allow"))
}

/// A name with a dot is complete; a bare one (`nas`) may be finished by the local network's search list.
fn complete(host: &str) -> String {
    if host.contains('.') && !host.ends_with('.') { format!("{host}.") } else { host.to_owned() }
}

pub fn miss(name: &str, error: &hickory_resolver::net::NetError) -> Miss {
    if error.is_no_records_found() {
        Miss::Absent(format!("the DNS has no record for {name}"))
    } else {
        Miss::Silent(format!("DNS gave no answer for {name}: {error}"))
    }
}

/// Addresses worth trying for one server: four services of two addresses each.
pub const ADDRESSES_MAX: usize = 8;
