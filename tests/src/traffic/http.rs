//! Questions over HTTP, by hand: what comes back is looked at to the last byte.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result};

use crate::{netns::Netns, service::SOON};

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub code: u16,
    /// The status line and headers.
    pub head: String,
    /// All after the headers.
    pub body: String,
}

impl Answer {
    /// The value of a header, its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.to_lowercase() == name).map(|(_, value)| value)
    }
}

/// Asks from within a namespace, with headers of which each ends in `\r\n`.
///
/// # Errors
/// Nobody answers, or not in HTTP.
pub fn get(netns: &Netns, server: SocketAddr, path: &str, headers: &str) -> Result<Answer> {
    let mut stream = netns.inside(|| TcpStream::connect_timeout(&server, SOON))?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).with_context(|| head.to_owned())?;
    Ok(Answer { code, head: head.to_owned(), body: body.to_owned() })
}
