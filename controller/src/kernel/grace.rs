//! How long the kernel waits when programs are attached: each TCX link waits for an RCU grace period, 10 to 40 ms on a busy node, unless grace periods
//! are hurried (`rcu_expedited`, kernel/ksysfs.c). With 50 pods that is seconds.

use std::fs;

const PATH: &str = "/sys/kernel/rcu_expedited";

/// Grace periods are hurried while this lives. Where the setting cannot be written all works as well, only slower.
#[derive(Debug)]
pub struct Hurried {
    before: String,
}

impl Hurried {
    /// Begins to hurry; `before` is what to go back to, if an earlier agent died in between.
    #[must_use]
    pub fn begin(before: Option<&str>) -> Self {
        let before = before.map_or_else(present, str::to_owned);
        if let Err(error) = fs::write(PATH, "1") {
            tracing::warn!(%error, "{PATH} cannot be written: programs are attached as well, but some 30 ms later for each interface");
        }
        Self { before }
    }
}

impl Drop for Hurried {
    fn drop(&mut self) {
        if !self.before.is_empty() {
            let _ = fs::write(PATH, &self.before);
        }
    }
}

/// The setting; empty where there is none.
#[must_use]
pub fn present() -> String {
    fs::read_to_string(PATH).map(|text| text.trim().to_owned()).unwrap_or_default()
}
