//! Tensors as safetensors files, in and out: bodies that say themselves what shape and type they have.

use std::collections::HashMap;
use std::ops::Range;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use remote_vae_wire::{Dtype, HEADER_DTYPE, HEADER_SHAPE, Parameters, TensorHeader, shortened};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::error::Refusal;
use crate::state::Shared;

/// The media type.
pub(crate) const SAFETENSORS: &str = "application/x-safetensors";
/// Names and sizes take many times their text in memory, and a request names few tensors.
const LARGEST_HEADER: u64 = 1 << 20;

/// Whether one of the types in a header's value is safetensors.
pub(crate) fn is_named(value: Option<&str>) -> bool {
    let is_ours = |part: &str| {
        part.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(SAFETENSORS))
    };
    value.is_some_and(|value| value.split(',').any(is_ours))
}

/// Takes the tensor `latents`, `pixels`, or the only one, out of a file, in place; its shape and type go into the parameters.
pub(crate) fn unwrap(mut file: Vec<u8>, parameters: &mut Parameters) -> Result<Vec<u8>, Refusal> {
    let data = find(&file, parameters)?;
    file.truncate(data.end);
    file.drain(..data.start);
    // A small tensor does not keep a large file in memory.
    if file.len() < file.capacity() / 2 {
        file.shrink_to_fit();
    }
    Ok(file)
}

/// Where the tensor's bytes are in the file.
fn find(file: &[u8], parameters: &mut Parameters) -> Result<Range<usize>, Refusal> {
    let wrong =
        |message: String| Refusal::bad_request(format!("The body is no usable safetensors file: {message}."));
    let length = file.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    if length > LARGEST_HEADER {
        return Err(wrong(format!("expected a header of at most {LARGEST_HEADER} bytes, got {length}")));
    }
    let tensors = SafeTensors::deserialize(file).map_err(|error| wrong(shortened(&error.to_string())))?;
    let names = tensors.names();
    let name = ["latents", "pixels"].into_iter().find(|name| names.contains(name));
    let name = match (name, &names[..]) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => {
            return Err(wrong(format!("expected a tensor `latents` or `pixels` among {}", names.len())));
        }
    };
    let tensor = tensors.tensor(name).map_err(|error| wrong(shortened(&error.to_string())))?;
    let dtype = match tensor.dtype() {
        safetensors::Dtype::F16 => Dtype::Float16,
        safetensors::Dtype::F32 => Dtype::Float32,
        safetensors::Dtype::BF16 => Dtype::BFloat16,
        safetensors::Dtype::U8 => Dtype::Uint8,
        other => return Err(wrong(format!("expected F16, F32, BF16 or U8, got {other:?}"))),
    };
    parameters.shape = Some(tensor.shape().to_vec());
    parameters.dtype = Some(dtype);
    let before = tensor.data().as_ptr().addr() - file.as_ptr().addr();
    Ok(before..before + tensor.data().len())
}

/// What a tensor's headers say; none of other answers.
fn header_of(headers: &HeaderMap) -> Option<TensorHeader> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    TensorHeader::parse(text(HEADER_SHAPE)?, text(HEADER_DTYPE)?).ok()
}

/// The whole of an answer's body: as it is if it comes in one piece, else put together as the pieces come, each of which goes
/// then. In the end it takes memory for its length alone; while pieces come whose length was not told, up to twice that.
pub(crate) async fn whole(mut body: Body) -> Result<Bytes, Refusal> {
    let length = body.size_hint().exact().and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
    let (mut first, mut all) = (Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if all.is_empty() && first.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve_exact(length.max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    // Where the length was not told, room was made for more.
    all.shrink_to_fit();
    Ok(if all.is_empty() { first } else { all.into() })
}

/// Makes a file with the tensor `name` of an answer that is a tensor; other answers stay as they are, and all do without a
/// name. The file is written beside the event loop.
pub(crate) async fn wrap(
    shared: &Shared,
    name: Option<&'static str>,
    response: Response,
) -> Result<Response, Refusal> {
    let Some(name) = name else { return Ok(response) };
    let Some(TensorHeader { shape, dtype }) = header_of(response.headers()) else { return Ok(response) };
    let (mut head, body) = response.into_parts();
    let failed = || Refusal::internal("The answer could not be written as a safetensors file.");
    let bytes = whole(body).await?;
    let dtype = match dtype {
        Dtype::Float16 => safetensors::Dtype::F16,
        Dtype::Float32 => safetensors::Dtype::F32,
        Dtype::BFloat16 => safetensors::Dtype::BF16,
        Dtype::Uint8 => safetensors::Dtype::U8,
    };
    let writing = move || {
        let view = TensorView::new(dtype, shape, &bytes)?;
        safetensors::serialize(HashMap::from([(name, view)]), None)
    };
    let file = shared.blocking(writing).await?.map_err(|_| failed())?;
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(SAFETENSORS));
    Ok(Response::from_parts(head, Body::from(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_refused_in_words() {
        let bytes = [0_u8; 16];
        let view = TensorView::new(safetensors::Dtype::F32, vec![1, 4, 1, 1], &bytes).unwrap();
        let file = safetensors::serialize(HashMap::from([("x", view)]), None).unwrap();
        let mut parameters = Parameters::default();
        assert_eq!(unwrap(file.clone(), &mut parameters).unwrap(), bytes);
        assert_eq!((parameters.shape, parameters.dtype), (Some(vec![1, 4, 1, 1]), Some(Dtype::Float32)));
        for length in 0..file.len() {
            assert_eq!(unwrap(file[..length].to_vec(), &mut Parameters::default()).unwrap_err().status, 400);
        }
        let view = TensorView::new(safetensors::Dtype::I64, vec![2], &bytes).unwrap();
        let file = safetensors::serialize(HashMap::from([("latents", view)]), None).unwrap();
        assert!(unwrap(file, &mut Parameters::default()).unwrap_err().message.contains("I64"));
        assert!(unwrap(vec![255; 64], &mut Parameters::default()).is_err());
        let mut file = (LARGEST_HEADER + 1).to_le_bytes().to_vec();
        file.resize(file.len() + LARGEST_HEADER as usize + 1, b' ');
        let refusal = unwrap(file, &mut Parameters::default()).unwrap_err();
        assert!(refusal.message.contains("at most 1048576 bytes, got 1048577"), "{}", refusal.message);
    }

    #[tokio::test]
    async fn a_body_in_one_piece_is_not_copied_and_pieces_are_put_together() {
        let piece = Bytes::from(vec![7; 100]);
        let found = whole(Body::from(piece.clone())).await.unwrap();
        assert_eq!((found.as_ptr(), found.len()), (piece.as_ptr(), 100));
        let pieces = [1, 2, 3].map(|byte| Ok::<_, std::io::Error>(Bytes::from(vec![byte; byte as usize])));
        let found = whole(Body::from_stream(futures_util::stream::iter(pieces))).await.unwrap();
        assert_eq!(found[..], [1, 2, 2, 3, 3, 3]);
        // Nothing is held beside the bytes that count.
        let pieces = (0..100).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![7; 999])));
        let found = whole(Body::from_stream(futures_util::stream::iter(pieces))).await.unwrap();
        assert_eq!((found.len(), Vec::from(found).capacity()), (99_900, 99_900));
        assert!(whole(Body::empty()).await.unwrap().is_empty());
    }

    #[test]
    fn media_types_are_compared_without_case_and_parameters() {
        assert!(is_named(Some("text/plain, Application/X-Safetensors;q=1")));
        assert!(!is_named(Some("application/x-safetensors-no")) && !is_named(None));
    }
}
