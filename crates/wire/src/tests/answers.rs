//! Negotiation, base64 answers and error bodies.

use proptest::prelude::*;

use crate::{
    Answer, Dtype, Encoding, Negotiated, Parameters, TensorHeader, WireError, base64_file, base64_tensor,
    error_body, error_message, negotiate, negotiate_encode, parse_base64_tensor,
};

#[test]
fn negotiation_by_client() {
    use Answer::{Jpeg, Mp4, PartialTensor, Png, Tensor, UnitTensor};
    use Encoding::{Base64, Binary};
    let any = Some("*/*");
    let tensor = Some("tensor/binary");
    let base64 = Some("tensor/base64");
    for (text, accept, answer, encoding) in [
        // v2 always states format, output type and partial
        ("image_format=jpg&output_type=pil&partial_postprocess=False", Some("image/jpeg"), Jpeg, Binary),
        ("image_format=png&output_type=pil&partial_postprocess=False", Some("image/png"), Png, Binary),
        ("image_format=jpg&output_type=pil&partial_postprocess=True", Some("image/jpeg"), Jpeg, Binary),
        ("image_format=jpg&output_type=pil&partial_postprocess=False", tensor, UnitTensor, Binary),
        ("image_format=png&output_type=pil&partial_postprocess=True", tensor, UnitTensor, Binary),
        ("image_format=jpg&output_type=pt&partial_postprocess=False", tensor, Tensor, Binary),
        ("image_format=jpg&output_type=pt&partial_postprocess=True", tensor, PartialTensor, Binary),
        ("image_format=jpg&output_type=mp4&partial_postprocess=False", Some("text/plain"), Mp4, Binary),
        // v1 has no image_format
        ("output_type=pil&partial_postprocess=False", Some("image/jpeg"), Jpeg, Binary),
        ("output_type=pil&partial_postprocess=False", Some("image/png"), Png, Binary),
        ("output_type=pil&partial_postprocess=False", base64, UnitTensor, Base64),
        ("output_type=pt&partial_postprocess=False", base64, Tensor, Base64),
        ("output_type=pt&partial_postprocess=True", base64, PartialTensor, Base64),
        // v1.5 sends no headers of its own
        ("image_format=jpg&output_type=pil", any, Jpeg, Binary),
        ("image_format=png&output_type=pil", None, Png, Binary),
        ("image_format=png&output_type=pt", any, Tensor, Binary),
        ("output_type=pt&partial_postprocess=True", None, PartialTensor, Binary),
        ("output_type=mp4", any, Mp4, Binary),
        // v0
        ("", Some("image/jpeg"), Jpeg, Binary),
        ("", Some("application/json"), Jpeg, Base64),
        // SD.Next raw, png, jpg
        ("output_type=pt&partial_postprocess=False&output_tensor_type=binary", tensor, Tensor, Binary),
        ("output_type=pil&image_format=png", Some("image/png"), Png, Binary),
        ("output_type=pil&image_format=jpg", Some("image/jpeg"), Jpeg, Binary),
        // the header wins where the two disagree
        ("output_type=pil&image_format=png", Some("image/jpeg"), Jpeg, Binary),
        ("output_type=pil&image_format=jpg", Some("image/png"), Png, Binary),
        ("output_type=pt", Some("image/png"), Png, Binary),
        ("output_type=mp4", tensor, Tensor, Binary),
        ("output_type=pil&image_format=png", Some("image/jpg"), Jpeg, Binary),
        // by hand
        ("", None, Jpeg, Binary),
        ("image_format=png", any, Png, Binary),
        ("partial_postprocess=True", any, PartialTensor, Binary),
        ("", tensor, Tensor, Binary),
        ("partial_postprocess=1", tensor, PartialTensor, Binary),
        ("output_type=pt", Some("application/json"), Tensor, Base64),
        ("output_type=pil&image_format=png", Some("application/json"), Png, Base64),
        ("output_type=pil&image_format=png", Some("text/plain"), Png, Binary),
        ("output_type=pil&image_format=png", Some("image/*"), Png, Binary),
    ] {
        let parameters = Parameters::from_query(text).unwrap_or_default();
        assert_eq!(
            negotiate(&parameters, accept),
            Negotiated { answer, encoding, float: Dtype::Float16 },
            "{text} {accept:?}"
        );
    }
}

#[test]
fn accept_lists() {
    use Answer::{Jpeg, Png, Tensor};
    for (accept, answer, encoding) in [
        ("image/png, image/jpeg", Png, Encoding::Binary),
        ("image/png;q=0.5, image/jpeg", Jpeg, Encoding::Binary),
        ("image/png ; Q=0.5 , image/jpeg; q=0.4", Png, Encoding::Binary),
        ("image/jpeg;q=0, image/png", Png, Encoding::Binary),
        ("IMAGE/PNG", Png, Encoding::Binary),
        ("image/webp", Answer::Webp, Encoding::Binary),
        ("video/mp4, */*", Answer::Mp4, Encoding::Binary),
        ("text/html,application/xhtml+xml,image/avif,image/webp,image/png,*/*;q=0.8", Png, Encoding::Binary),
        ("application/json, text/plain, */*", Jpeg, Encoding::Binary),
        ("*/*, application/json", Jpeg, Encoding::Binary),
        ("application/json, */*;q=0.5", Jpeg, Encoding::Base64),
        ("*/*, tensor/binary", Tensor, Encoding::Binary),
        ("text/html", Jpeg, Encoding::Binary),
        ("image/png;q=x", Jpeg, Encoding::Binary),
        (",;,;q=1,,", Jpeg, Encoding::Binary),
    ] {
        let negotiated = negotiate(&Parameters::default(), Some(accept));
        assert_eq!(negotiated, Negotiated { answer, encoding, float: Dtype::Float16 }, "{accept}");
    }
}

#[test]
fn encode_answers_are_latents() {
    for (accept, encoding) in [
        (None, Encoding::Binary),
        (Some("*/*"), Encoding::Binary),
        (Some("image/png"), Encoding::Binary),
        (Some("tensor/binary"), Encoding::Binary),
        (Some("tensor/base64"), Encoding::Base64),
        (Some("application/json"), Encoding::Base64),
    ] {
        assert_eq!(
            negotiate_encode(&Parameters::default(), accept),
            Negotiated { answer: Answer::Tensor, encoding, float: Dtype::Float16 },
            "{accept:?}"
        );
    }
}

#[test]
fn floats_of_answers_are_of_the_dtype_that_was_asked_for() {
    for (query, float) in [
        ("", Some(Dtype::Float16)),
        ("output_dtype=float16", Some(Dtype::Float16)),
        ("output_dtype=float32", Some(Dtype::Float32)),
        ("output_dtype=bfloat16", None),
        ("output_dtype=uint8", None),
        ("output_dtype=", None),
    ] {
        let parameters = Parameters::from_query(query);
        let found = parameters.as_ref().ok().map(|parameters| {
            let encoded = negotiate_encode(parameters, None);
            assert_eq!(negotiate(parameters, Some("tensor/binary")).float, encoded.float);
            encoded.float
        });
        assert_eq!(found, float, "{query} {parameters:?}");
    }
}

#[test]
fn content_types_of_answers() {
    for (answer, binary, base64) in [
        (Answer::Jpeg, "image/jpeg", "application/json"),
        (Answer::Png, "image/png", "application/json"),
        (Answer::Webp, "image/webp", "application/json"),
        (Answer::Tensor, "tensor/binary", "tensor/base64"),
        (Answer::PartialTensor, "tensor/binary", "tensor/base64"),
        (Answer::UnitTensor, "tensor/binary", "tensor/base64"),
        (Answer::Mp4, "text/plain; charset=utf-8", "application/json"),
    ] {
        assert_eq!(
            Negotiated { answer, encoding: Encoding::Binary, float: Dtype::Float16 }.content_type(),
            binary
        );
        assert_eq!(
            Negotiated { answer, encoding: Encoding::Base64, float: Dtype::Float16 }.content_type(),
            base64
        );
    }
}

#[test]
fn base64_answers() {
    let header = TensorHeader { shape: vec![1, 3], dtype: Dtype::Uint8 };
    let text = base64_tensor(&header, &[1, 2, 3]);
    assert_eq!(text, r#"{"inputs":"AQID","parameters":{"shape":[1,3],"dtype":"uint8"}}"#);
    assert_eq!(parse_base64_tensor(text.as_bytes()), Ok((header.clone(), vec![1, 2, 3])));
    assert_eq!(base64_file(&[0xff, 0xd8, 0xff]), "\"/9j/\"");
    let short = base64_tensor(&header, &[1, 2]);
    assert!(matches!(parse_base64_tensor(short.as_bytes()), Err(WireError::BodyLength { .. })));
}

#[test]
fn errors_are_json() {
    assert_eq!(error_body("a \"b\"\n"), r#"{"error":"a \"b\"\n"}"#);
    assert_eq!(error_message(error_body("no ü").as_bytes()).as_deref(), Some("no ü"));
    assert_eq!(error_message(br#"{"error":["x"]}"#).as_deref(), Some(r#"["x"]"#));
    for other in [&b""[..], b"[]", b"{}", b"<html>"] {
        assert_eq!(error_message(other), None);
    }
}

proptest! {
    #[test]
    fn any_accept_is_read(accept in ".{0,100}", list in "[a-z*/,;=q0-9. ]{0,60}") {
        let _ = negotiate(&Parameters::default(), Some(&accept));
        let _ = negotiate_encode(&Parameters::default(), Some(&list));
    }

    #[test]
    fn any_answer_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = parse_base64_tensor(&body);
        let _ = error_message(&body);
    }

    #[test]
    fn any_message_survives(message in ".{0,100}") {
        prop_assert_eq!(error_message(error_body(&message).as_bytes()), Some(message));
    }
}
