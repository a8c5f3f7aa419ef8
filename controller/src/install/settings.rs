//! Kernel settings of the host and the underlay: set with the reason in the log, and written down first.

use super::Record;
use crate::{
    disk::DiskError,
    kernel::sysctl::{self, Sysctl, SysctlError},
};

/// Why settings are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The kernel refuses.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The change could not be written down, so it was not made.
    #[error("a kernel setting is not changed, for `shunt cleanup` would not know to put it back")]
    Record(#[from] DiskError),
}

/// Brings settings to what they should be. Each change is written down before it is made, and logged.
///
/// # Errors
/// The first that could not be changed, or written down.
pub fn apply(settings: &[Sysctl], record: &Record) -> Result<(), SettingsError> {
    for setting in settings {
        // One by one: `ip_forward` changes others with it.
        for (setting, before) in sysctl::differing(std::slice::from_ref(setting))? {
            record.note_setting(&setting.key, &before, setting.value)?;
            sysctl::set(setting)?;
            tracing::info!("net/{} is set to {} (it was {before}): {}", setting.key, setting.value, setting.reason);
        }
    }
    Ok(())
}
