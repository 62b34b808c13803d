//! The resources that the process uses, and the certificates that the node shows.

use std::sync::atomic::{AtomicU64, Ordering};

/// The resources that a process uses. 0: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// CPU time in user and system mode, in microseconds.
    pub cpu_us: u64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// Virtual memory, in bytes.
    pub virtual_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// The limit of open file descriptors. `u64::MAX`: unlimited.
    pub max_fds: u64,
    /// The start of the process, in Unix milliseconds.
    pub start_unix_ms: u64,
}

/// The latest sample of the resources. The runtime writes it, and the first shard reads it for `/metrics`
/// without a system call. The fields of one reading may stem from two successive samples.
#[derive(Debug, Default)]
pub struct SharedUsage {
    cpu_us: AtomicU64,
    resident_bytes: AtomicU64,
    virtual_bytes: AtomicU64,
    open_fds: AtomicU64,
    max_fds: AtomicU64,
    start_unix_ms: AtomicU64,
}

impl SharedUsage {
    /// Replaces the sample.
    pub fn set(&self, usage: ProcessUsage) {
        let store = |to: &AtomicU64, value| to.store(value, Ordering::Relaxed);
        store(&self.cpu_us, usage.cpu_us);
        store(&self.resident_bytes, usage.resident_bytes);
        store(&self.virtual_bytes, usage.virtual_bytes);
        store(&self.open_fds, usage.open_fds);
        store(&self.max_fds, usage.max_fds);
        store(&self.start_unix_ms, usage.start_unix_ms);
    }

    /// Returns the latest sample.
    pub fn usage(&self) -> ProcessUsage {
        let load = |from: &AtomicU64| from.load(Ordering::Relaxed);
        ProcessUsage {
            cpu_us: load(&self.cpu_us),
            resident_bytes: load(&self.resident_bytes),
            virtual_bytes: load(&self.virtual_bytes),
            open_fds: load(&self.open_fds),
            max_fds: load(&self.max_fds),
            start_unix_ms: load(&self.start_unix_ms),
        }
    }
}

/// When a certificate that the node shows expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// The listener that shows the certificate: `api`, `mesh`, or the configured address of an edge.
    pub listener: String,
    /// The path of the file.
    pub file: String,
    /// When the certificate, or one of its chain, expires, in Unix seconds: the earliest of them.
    pub expires_unix_s: i64,
}
