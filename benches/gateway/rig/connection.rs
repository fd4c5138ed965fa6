//! A minimal HTTP/1.1 client for an MCP endpoint: one request at a time, bodies with a length or in chunks, event
//! streams.

use std::net::SocketAddr;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Result;

/// A keep-alive connection.
pub struct HttpConnection {
    stream: TcpStream,
    buffer: BytesMut,
}

/// A complete response.
pub struct HttpResponse {
    pub status: u16,
    pub body: Bytes,
    head: Bytes,
}

impl HttpResponse {
    /// Returns a header by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

impl HttpConnection {
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::with_capacity(8192) })
    }

    /// Sends a request and reads the complete response.
    pub async fn send(&mut self, request: &[u8]) -> Result<HttpResponse> {
        self.stream.write_all(request).await?;
        let (status, head) = self.read_head().await?;
        let body = if header(&head, "transfer-encoding").is_some() {
            let mut body = BytesMut::new();
            while let Some(chunk) = self.read_chunk().await? {
                body.extend_from_slice(&chunk);
            }
            body.freeze()
        } else if let Some(length) = header(&head, "content-length") {
            let length = length.parse()?;
            self.fill_to(length).await?;
            self.buffer.split_to(length).freeze()
        } else {
            Bytes::new()
        };
        Ok(HttpResponse { status, body, head })
    }

    /// Sends a request whose response is an event stream.
    pub async fn open_events(mut self, request: &[u8]) -> Result<EventStream> {
        self.stream.write_all(request).await?;
        let (status, head) = self.read_head().await?;
        let kind = header(&head, "content-type").unwrap_or_default();
        if status != 200 || !kind.starts_with("text/event-stream") {
            return Err(format!("no event stream: HTTP {status}, content type {kind:?}").into());
        }
        Ok(EventStream { connection: self, text: BytesMut::new() })
    }

    async fn read_head(&mut self) -> Result<(u16, Bytes)> {
        let end = self.read_until(b"\r\n\r\n").await?;
        let head = self.buffer.split_to(end + 4).freeze();
        let status = head.get(9..12).ok_or("short status line")?;
        Ok((std::str::from_utf8(status)?.parse()?, head))
    }

    /// Reads the next chunk. Returns `None` after the last one.
    async fn read_chunk(&mut self) -> Result<Option<Bytes>> {
        let end = self.read_until(b"\r\n").await?;
        let line = self.buffer.split_to(end + 2).freeze();
        let digits = line.split(|byte| matches!(byte, b';' | b'\r')).next().unwrap_or_default();
        let length = usize::from_str_radix(std::str::from_utf8(digits)?, 16)?;
        self.fill_to(length + 2).await?;
        let chunk = self.buffer.split_to(length).freeze();
        self.buffer.advance(2);
        Ok((length > 0).then_some(chunk))
    }

    async fn read_until(&mut self, pattern: &[u8]) -> Result<usize> {
        loop {
            if let Some(at) = position(&self.buffer, pattern) {
                return Ok(at);
            }
            self.fill().await?;
        }
    }

    async fn fill_to(&mut self, length: usize) -> Result<()> {
        while self.buffer.len() < length {
            self.fill().await?;
        }
        Ok(())
    }

    async fn fill(&mut self) -> Result<()> {
        self.buffer.reserve(8192);
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err("the connection was closed".into()),
            _ => Ok(()),
        }
    }
}

/// A stream of events that stays open.
pub struct EventStream {
    connection: HttpConnection,
    text: BytesMut,
}

impl EventStream {
    /// Returns the data of the next event that has data.
    pub async fn next(&mut self) -> Result<String> {
        loop {
            while let Some(end) = position(&self.text, b"\n\n") {
                let event = self.text.split_to(end + 2);
                let data: String = std::str::from_utf8(&event)?
                    .lines()
                    .filter_map(|line| line.strip_prefix("data:"))
                    .map(str::trim_start)
                    .collect();
                if !data.is_empty() {
                    return Ok(data);
                }
            }
            let chunk = self.connection.read_chunk().await?.ok_or("the event stream has ended")?;
            self.text.extend_from_slice(&chunk);
        }
    }
}

fn position(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a str> {
    std::str::from_utf8(head).ok()?.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
