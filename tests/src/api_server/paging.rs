//! Continue tokens of paged lists, in the shape that the API server gives them (apiserver/pkg/storage/continue.go).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::status::Status;

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Continue {
    #[serde(rename = "v")]
    format: String,
    /// The snapshot that is listed; -1 for whatever is there.
    #[serde(rename = "rv")]
    version: i64,
    /// The first name that is not listed yet: `/NAMESPACE/NAME` with a zero byte, so that the one named is left out.
    start: String,
}

const FORMAT: &str = "meta.k8s.io/v1";

impl Continue {
    /// After an object; from a snapshot, or from what is there by then.
    pub(super) fn after(version: Option<u64>, namespace: &str, name: &str) -> Self {
        let version = version.map_or(-1, |version| version.cast_signed());
        Self { format: FORMAT.to_owned(), version, start: format!("/{namespace}/{name}\0") }
    }

    pub(super) fn token(&self) -> String {
        // Texts and numbers always become JSON; a `Value` would not keep the fields in order.
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_string(self).unwrap_or_default())
    }

    pub(super) fn read(token: &str) -> Result<Self, Status> {
        let bad = |why: &dyn std::fmt::Display| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let text = BASE64_URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).map_err(|error| bad(&error))?;
        let read: Self = serde_json::from_slice(&text).map_err(|error| bad(&error))?;
        if read.format != FORMAT || read.parts().is_none() {
            return Err(bad(&"server does not recognize this encoded version"));
        }
        Ok(read)
    }

    /// The snapshot; `None` for whatever is there.
    pub(super) fn version(&self) -> Option<u64> {
        u64::try_from(self.version).ok()
    }

    fn parts(&self) -> Option<(&str, &str)> {
        self.start.strip_prefix('/')?.trim_end_matches('\0').split_once('/')
    }

    /// Whether an object has been listed already.
    pub(super) fn is_past(&self, namespace: &str, name: &str) -> bool {
        self.parts().is_some_and(|last| (namespace, name) <= last)
    }

    /// The same place, whatever is there by then.
    pub(super) fn inconsistent(&self) -> Self {
        Self { version: -1, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_a_real_server_is_understood() {
        let token = "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6NTY5LCJzdGFydCI6Ii9kZWZhdWx0L25vYm9keVx1MDAwMCJ9";
        let read = Continue::read(token).unwrap();
        assert_eq!(read, Continue::after(Some(569), "default", "nobody"));
        assert!(read.is_past("default", "nobody") && !read.is_past("default", "web") && !read.is_past("kube-system", "a"));
        assert_eq!(Continue::read(&read.token()), Ok(read));
    }

    #[test]
    fn rubbish_is_no_token() {
        for token in ["bogus", "!", "", "e30", "bnVsbA"] {
            assert_eq!(Continue::read(token).map_err(|status| status.code), Err(400), "{token}");
        }
    }
}
