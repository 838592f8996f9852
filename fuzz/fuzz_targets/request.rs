//! Query, content type, accept header and body of a request: read, classified and negotiated without a panic; what is
//! written of the parameters is read back the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remote_vae_wire::{BodyKind, Parameters, classify, negotiate, unwrap_json_body};

fuzz_target!(|input: (&str, Option<&str>, Option<&str>, &[u8])| {
    let (query, content_type, accept, body) = input;
    let kind = BodyKind::from_content_type(content_type);
    let Ok(mut parameters) = Parameters::from_query(query) else {
        let _ = unwrap_json_body(body, &mut Parameters::default());
        return;
    };
    let again = Parameters::from_query(&parameters.to_query());
    assert_eq!(again.as_ref().ok(), Some(&parameters));
    let _ = negotiate(&parameters, accept);
    let _ = classify(&parameters, kind, body);
    let _ = parameters.scaling();
    if let Ok(header) = parameters.tensor_header() {
        let _ = header.check_body(body.len());
    }
    if let Ok(bytes) = unwrap_json_body(body, &mut parameters) {
        let _ = classify(&parameters, kind, &bytes);
    }
});
