//! JSON in place of the empty answers that the HTTP library makes itself: a malformed request (400), a URL that is too
//! long (414) and headers that are too large (431) never reach a handler, yet clients read a JSON body of every error.
//!
//! The library writes such an answer as one head without a body. Our own answers to errors always have a body, so the
//! head is recognised by its status and `content-length: 0`.

use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use remote_vae_wire::{content_type, error_body};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose bodiless refusals are replaced on their way out.
pub(crate) struct JsonErrors<S> {
    inner: S,
    /// What is written instead, and how far that has come.
    replacement: Option<(Vec<u8>, usize)>,
}

impl<S> JsonErrors<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, replacement: None }
    }
}

/// The answer to write instead of `head`, if `head` is one of the library's own.
fn replacement(head: &[u8]) -> Option<Vec<u8>> {
    const STATUSES: [(&[u8], &str); 3] = [
        (b"HTTP/1.1 400 ", "The request is not well-formed HTTP."),
        (b"HTTP/1.1 414 ", "The URL is too long."),
        (
            b"HTTP/1.1 431 ",
            "The request's headers are too large or too many, or announce a body that is too large.",
        ),
    ];
    let (_, message) = STATUSES.into_iter().find(|(status, _)| head.starts_with(status))?;
    let text = std::str::from_utf8(head).ok()?;
    let (first, _) = text.split_once("\r\n")?;
    if !text.ends_with("\r\n\r\n") || !text.to_ascii_lowercase().contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let body = error_body(message);
    let length = body.len();
    let kind = content_type::JSON;
    let answer = format!(
        "{first}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    Some(answer.into_bytes())
}

impl<S: AsyncWrite + Unpin> JsonErrors<S> {
    /// Writes the replacement of a head of `length` bytes, once one has begun or `head` asks for one.
    fn poll_replace(
        &mut self,
        context: &mut Context<'_>,
        head: &[u8],
        length: usize,
    ) -> Option<Poll<Result<usize>>> {
        if self.replacement.is_none() {
            self.replacement = Some((replacement(head)?, 0));
        }
        let (bytes, written) = self.replacement.as_mut()?;
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.inner).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => return Some(Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(count)) => *written += count,
                other => return Some(other),
            }
        }
        self.replacement = None;
        Some(Poll::Ready(Ok(length)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for JsonErrors<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for JsonErrors<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        match this.poll_replace(context, bytes, bytes.len()) {
            Some(poll) => poll,
            None => Pin::new(&mut this.inner).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let mut filled = slices.iter().filter(|slice| !slice.is_empty());
        if let (Some(only), None) = (filled.next(), filled.next())
            && let Some(poll) = this.poll_replace(context, only, only.len())
        {
            return poll;
        }
        Pin::new(&mut this.inner).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if this.replacement.is_some() {
            let unfinished = this.poll_replace(context, &[], 0);
            if let Some(poll) = unfinished {
                ready!(poll)?;
            }
        }
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_empty_refusals_are_replaced() {
        let head =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let answer = String::from_utf8(replacement(head).unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 ") && answer.ends_with("\"}"), "{answer}");
        for other in [
            &b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 12\r\n\r\n",
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nbody",
            b"",
        ] {
            assert_eq!(replacement(other), None);
        }
    }
}
