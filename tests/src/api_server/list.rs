//! Lists, whole or in pages of one snapshot.

use bytes::{BufMut as _, Bytes, BytesMut};
use serde_json::json;

use super::{
    paging::Continue,
    resource::Resource,
    selector::Selector,
    status::Status,
    store::{Objects, Store},
};

/// What a list is to hold.
#[derive(Clone, Debug)]
pub(super) struct Page<'a> {
    pub(super) resource: Resource,
    pub(super) selector: &'a Selector,
    /// No more than so many; 0 for all.
    pub(super) limit: usize,
    /// Where the page before ended; empty to begin.
    pub(super) resume: &'a str,
    /// At least, or exactly, this version.
    pub(super) version: Option<u64>,
    pub(super) exact: bool,
}

impl Store {
    pub(super) fn list(&self, page: &Page<'_>) -> Result<Bytes, Status> {
        let resume = if page.resume.is_empty() { None } else { Some(Continue::read(page.resume)?) };
        let (version, objects) = self.version_of(page, resume.as_ref())?;
        let rest = objects.values().filter(|object| page.selector.takes(object));
        let rest: Vec<_> =
            rest.filter(|object| resume.as_ref().is_none_or(|last| !last.is_past(&object.key.0, &object.key.1))).collect();
        let count = if page.limit == 0 { rest.len() } else { page.limit.min(rest.len()) };
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if let Some(last) = rest[..count].last()
            && count < rest.len()
        {
            metadata["continue"] = json!(Continue::after(Some(version), &last.key.0, &last.key.1).token());
            if !page.selector.has_terms() {
                metadata["remainingItemCount"] = json!(rest.len() - count);
            }
        }
        let mut text = BytesMut::new();
        let (kind, api_version) = (page.resource.kind(), page.resource.api_version());
        text.put_slice(
            format!("{{\"kind\":\"{kind}List\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[")
                .as_bytes(),
        );
        for (place, object) in rest[..count].iter().enumerate() {
            if place > 0 {
                text.put_u8(b',');
            }
            object.write_item(&mut text);
        }
        text.put_slice(b"]}\n");
        Ok(text.freeze())
    }

    /// Which state of the cluster a page shows.
    fn version_of(&self, page: &Page<'_>, resume: Option<&Continue>) -> Result<(u64, Objects), Status> {
        let now = || (self.version(), self.snapshot(page.resource, self.version()).unwrap_or_default());
        let Some(resume) = resume else {
            return match page.version {
                Some(version) if version > self.version() => Err(Status::too_large(version, self.version())),
                Some(version) if page.exact && version > 0 => {
                    let objects = self.snapshot(page.resource, version);
                    Ok((version, objects.ok_or_else(|| Status::too_old(version, self.forgotten()))?))
                }
                _ => Ok(now()),
            };
        };
        let Some(version) = resume.version() else { return Ok(now()) };
        match self.snapshot(page.resource, version) {
            Some(objects) => Ok((version, objects)),
            None => Err(Status::continue_too_old(resume.inconsistent().token())),
        }
    }
}
