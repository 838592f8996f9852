//! HTTP/1.1 by hand: bytes out as they are given, answers in one at a time.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than any answer of these tests takes, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// An answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    /// Of an answer in chunks these, as they came.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(found, _)| found.eq_ignore_ascii_case(name));
        all.next().map(|(_, value)| value.as_str())
    }

    /// Whether the server lets go of the connection.
    pub(crate) fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The message of a refusal, which must be the protocol's JSON.
    #[track_caller]
    pub(crate) fn refusal(&self) -> String {
        assert!(self.status >= 400, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["error"].as_str().unwrap().to_owned()
    }
}

/// A connection that can carry several requests.
pub(crate) struct Connection {
    stream: TcpStream,
    /// Received but not read yet.
    rest: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), rest: Vec::new() }
    }

    /// Sends a request and reads its answer; none if the server closes instead. More than [`PATIENCE`] is a hang.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Option<Answer> {
        let exchange = async {
            self.send(request).await;
            self.answer().await
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("the server is silent")
    }

    /// Sends bytes; a server may refuse and close before all are sent.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Says that nothing more will be sent.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    async fn answer(&mut self) -> Option<Answer> {
        let head = loop {
            if let Some(end) = self.rest.windows(4).position(|window| window == b"\r\n\r\n") {
                break self.rest.drain(..end + 4).collect::<Vec<u8>>();
            }
            self.receive().await?;
        };
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.trim_end().split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line}")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut answer = Answer { status, headers, body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            while !answer.body.ends_with(b"\r\n0\r\n\r\n") {
                self.receive().await?;
                answer.body.append(&mut self.rest);
            }
            return Some(answer);
        }
        let length: usize =
            answer.header("content-length").unwrap_or_else(|| panic!("{head}")).parse().unwrap();
        while self.rest.len() < length {
            self.receive().await?;
        }
        answer.body = self.rest.drain(..length).collect();
        Some(answer)
    }

    async fn receive(&mut self) -> Option<()> {
        let count = self.stream.read_buf(&mut self.rest).await.ok()?;
        (count > 0).then_some(())
    }
}
