//! What the lower parts have to tell those who watch the server; `admin/metrics.rs` has the page they go onto.

use std::path::Path;
use std::sync::Arc;

use super::DATABASE;
use crate::admin::{Gauges, MetricsText};
use crate::feed::Feed;
use crate::http::HttpServer;
use crate::http::tls::Certificate;
use crate::media::{Media, ScanCounts};
use crate::remote::Remote;
use crate::store::{Status, Store};

/// The parts that are asked.
pub struct Watched<'a> {
    pub folder: &'a Path,
    pub store: &'a Store,
    pub feed: &'a Feed,
    pub remote: &'a Remote,
    pub media: &'a Media,
    pub door: &'a Arc<HttpServer>,
    /// With the name of each.
    pub certificates: Vec<(&'static str, Arc<Certificate>)>,
}

pub fn gauges(watched: Watched<'_>) -> Vec<Gauges> {
    let Watched { folder, store, feed, remote, media, door, certificates } = watched;
    let (database, store) = (folder.join(DATABASE), store.clone());
    let (feed, remote, media, door) = (feed.clone(), remote.clone(), media.clone(), Arc::downgrade(door));
    vec![
        Box::new(move |text| of_store(&store, &database, text)),
        Box::new(move |text| {
            text.gauge("snug_syncs_waiting", "Requests that wait for news").is(&[], feed.waiters());
            if let Some(door) = door.upgrade() {
                text.gauge("snug_connections_open", "Open connections").is(&[], door.connections_open());
            }
        }),
        Box::new(move |text| of_remote(&remote, text)),
        Box::new(move |text| of_scanner(&media, text)),
        Box::new(move |text| {
            text.gauge("snug_certificate_end_timestamp_seconds", "When a certificate ends, in Unix time");
            for (name, certificate) in &certificates {
                if let Some((_, until_ms)) = certificate.validity_ms() {
                    text.is(&[("certificate", name)], until_ms / 1000);
                }
            }
        }),
    ]
}

fn of_store(store: &Store, database: &Path, text: &mut MetricsText) {
    let bytes = std::fs::metadata(database).map_or(0, |found| found.len());
    text.gauge("snug_database_bytes", "The size of the database file").is(&[], bytes);
    text.gauge("snug_disk_free_bytes", "What is free on the disk of the data folder").is(&[], store.free_bytes());
    text.gauge("snug_disk_spare_bytes", "What of it other servers' data and files may still take")
        .is(&[], store.spare_bytes());
    text.gauge("snug_disk_total_bytes", "The disk of the data folder").is(&[], store.total_bytes());
    let works = u8::from(store.status() == Status::Working);
    text.gauge("snug_database_writable", "Whether the database can store something").is(&[], works);
    text.counter("snug_database_reopened", "How often the disk failed and the database was opened again")
        .total(&[], store.reopened());
}

fn of_scanner(media: &Media, text: &mut MetricsText) {
    if !media.is_scanned() {
        return;
    }
    let is_there = u8::from(media.scanner_away().is_none());
    text.gauge("snug_scanner_there", "Whether the scanner for files answered when it was last asked").is(&[], is_there);
    let ScanCounts { clean, harmful, unjudged } = media.scan_counts();
    text.counter("snug_files_scanned", "Files sent to the scanner, by what it said");
    for (verdict, count) in [("clean", clean), ("harmful", harmful), ("unjudged", unjudged)] {
        text.total(&[("verdict", verdict)], count);
    }
}

fn of_remote(remote: &Remote, text: &mut MetricsText) {
    let reached = remote.backoff().reached();
    let is_there = u8::from(reached.gone_since_ms.is_none());
    text.gauge("snug_internet_there", "Whether other servers can be reached at all").is(&[], is_there);
    text.gauge("snug_servers_answering", "Servers that people here have to do with and that answered last time")
        .is(&[], reached.well);
    text.gauge("snug_servers_failing", "Those that failed three times in a row or more").is(&[], reached.failing);
}
