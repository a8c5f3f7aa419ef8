//! Drop events: the one reader of the ring buffer `EVENTS`. Programs write to it only while `LISTENERS` says that somebody listens.

use std::{io, path::Path};

use aya::maps::{Map, MapData, RingBuf};
use shunt_common::{event::Event, maps};
use tokio::io::unix::AsyncFd;

use super::{
    pins::PinDir,
    table::{Table, TableError},
};

/// How programs learn whether anybody listens.
#[derive(Debug)]
pub struct Listeners {
    table: Table<u32, u32>,
}

impl Listeners {
    /// Over the pinned map, which an earlier agent may have left at any number.
    ///
    /// # Errors
    /// The map is missing, or of another layout.
    pub fn adopt(dir: &PinDir) -> Result<Self, TableError> {
        Ok(Self { table: Table::open(&maps::LISTENERS, &dir.map(&maps::LISTENERS))? })
    }

    /// Tells programs how many listen.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set(&self, count: u32) -> Result<(), TableError> {
        self.table.put(&0, &count, || "the number of listeners".to_owned())
    }
}

/// Hands every event to `deliver`, which says whether anybody listens still; programs are told when nobody does. Ends only with an
/// error or with its task.
///
/// # Errors
/// The buffer cannot be opened or polled.
pub async fn run(events: &Path, listeners: &Listeners, mut deliver: impl FnMut(Event) -> bool) -> Result<(), TableError> {
    let failed = |source: io::Error| TableError::Io { name: maps::EVENTS.name, action: "be read", source };
    let ring = MapData::from_pin(events).and_then(Map::from_map_data).and_then(RingBuf::try_from);
    let ring = ring.map_err(|error| failed(io::Error::other(error)))?;
    // SAFETY: `ring` owns its descriptor, which stays the same and open until the registration that owns `ring` is dropped.
    let mut ring = unsafe { AsyncFd::register(ring) }.map_err(|error| failed(error.into()))?;
    loop {
        let mut ready = ring.readable_mut().await.map_err(failed)?;
        let mut heard = true;
        while let Some(item) = ready.get_inner_mut().next() {
            if let Some(event) = parse(&item) {
                heard = deliver(event);
            }
        }
        if !heard {
            listeners.set(0)?;
        }
        ready.clear_ready();
    }
}

/// A record as the programs write it.
fn parse(bytes: &[u8]) -> Option<Event> {
    fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
        let (head, rest) = bytes.split_first_chunk::<N>()?;
        *bytes = rest;
        Some(*head)
    }
    let mut rest = bytes;
    let rest = &mut rest;
    Some(Event {
        time: u64::from_ne_bytes(take(rest)?),
        reason: u32::from_ne_bytes(take(rest)?),
        ifindex: u32::from_ne_bytes(take(rest)?),
        len: u32::from_ne_bytes(take(rest)?),
        src: take(rest)?,
        dst: take(rest)?,
        sport: take(rest)?,
        dport: take(rest)?,
        ethertype: u16::from_ne_bytes(take(rest)?),
        proto: u8::from_ne_bytes(take(rest)?),
        program: u8::from_ne_bytes(take(rest)?),
        reserved: u32::from_ne_bytes(take(rest)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_field_by_field_and_a_short_one_refused() {
        let bytes: Vec<u8> = (0..size_of::<Event>() as u8).collect();
        let event = parse(&bytes).unwrap();
        assert_eq!(event.time, u64::from_ne_bytes([0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(event.reason, u32::from_ne_bytes([8, 9, 10, 11]));
        assert_eq!(event.src[0], 20);
        assert_eq!(event.dst[0], 36);
        assert_eq!((event.sport, event.dport), ([52, 53], [54, 55]));
        assert_eq!((event.proto, event.program), (58, 59));
        assert_eq!(parse(&bytes[..bytes.len() - 1]), None);
    }
}
