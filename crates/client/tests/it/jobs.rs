//! Jobs: the same answers as without, events, previews, and that a cancelled job is gone.

use std::time::Duration;

use remote_vae_client::{
    Client, ClientError, DecodeOptions, EncodeOptions, JobEvent, JobState, Output, Source, Tensor, blocking,
};
use remote_vae_media as media;
use remote_vae_server::ApiKey;
use remote_vae_wire::Dtype;

use crate::serve::{png, serve};

#[allow(dead_code)] // `main` is for those who run it as a program
#[path = "../../examples/job.rs"]
mod job;

/// Latents of a batch that takes the engine a good while.
fn long() -> Tensor {
    let values: Vec<f32> = (0..16 * 4 * 64 * 64).map(|index| (index as f32 * 0.37).sin()).collect();
    Tensor::from_f32(vec![16, 4, 64, 64], Dtype::Float16, &values).unwrap()
}

fn short() -> Tensor {
    let values: Vec<f32> = (0..2 * 4 * 6 * 8).map(|index| (index as f32 * 0.37).sin()).collect();
    Tensor::from_f32(vec![2, 4, 6, 8], Dtype::Float16, &values).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gives_what_the_direct_way_gives() {
    let (url, _handle) = serve(vec![ApiKey::new("right")]).await;
    let client = Client::builder(format!("{url}/small")).bearer_key("right").build().unwrap();
    for output in [Output::Float16, Output::Uint8, Output::Png] {
        let options = DecodeOptions::new(output).scaled_by_model();
        let direct = client.decode(&short(), &options).await.unwrap();
        let job = client.submit_decode(&short(), &options).await.unwrap();
        let mut told = Vec::new();
        let reply = job.wait(|status| told.push(status.clone())).await.unwrap();
        assert_eq!((reply.content, reply.engine), (direct.content, direct.engine));
        let last = told.last().unwrap();
        assert_eq!((last.state, last.progress, last.model.as_str()), (JobState::Done, 1.0, "small"));
        assert!(last.has_preview && last.expires_in.unwrap() > Duration::from_secs(500));
        let preview = job.preview().await.unwrap().unwrap();
        let limits = media::DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 24 };
        let preview = media::decode_image(&preview, &limits).unwrap();
        assert_eq!((preview.width, preview.height), (8, 6));
        // Once more, by its name and with the key that it was made with only.
        assert!(client.job(job.id()).result().await.is_ok());
        let other = Client::builder(&url).bearer_key("wrong").build().unwrap();
        assert_eq!(other.job(job.id()).status().await.unwrap_err().status(), Some(401));
        job.cancel().await.unwrap();
        assert_eq!(job.status().await.unwrap_err().status(), Some(404));
    }
    let encoding = EncodeOptions::default().scaled_by_model();
    let direct = client.encode(Source::file(png()), &encoding).await.unwrap();
    let job = client.submit_encode(Source::file(png()), &encoding).await.unwrap();
    assert_eq!(job.wait(|_| {}).await.unwrap().content, direct.content);
    assert_eq!(job.preview().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_what_happens_and_cancelling_ends_them() {
    let (url, _handle) = serve(vec![]).await;
    let client = Client::new(&url).unwrap();
    let job = client.submit_decode(&long(), &DecodeOptions::default()).await.unwrap();
    assert_eq!(job.result().await.unwrap_err().status(), Some(409));
    let mut events = job.events().await.unwrap();
    let Some(Ok(JobEvent::Preview(preview))) = events.next().await else { panic!("the preview comes first") };
    assert_eq!(Some(preview), job.preview().await.unwrap());
    let mut shares = Vec::new();
    while shares.len() < 3 {
        match events.next().await.unwrap().unwrap() {
            JobEvent::Status(status) => {
                assert!(!status.state.is_over(), "{status:?}");
                shares.push(status.progress);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(shares.is_sorted() && shares[2] > shares[0], "{shares:?}");
    job.cancel().await.unwrap();
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event.unwrap());
    }
    assert_eq!(last, Some(JobEvent::Deleted));
    // What waits for a job that is gone is told so.
    assert_eq!(job.wait(|_| {}).await.unwrap_err().status(), Some(404));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_decode_refuses_is_refused_at_once() {
    let (url, _handle) = serve(vec![]).await;
    let wrong = Tensor::from_f32(vec![1, 5, 1, 1], Dtype::Float32, &[0.0; 5]).unwrap();
    let client = Client::new(&url).unwrap();
    let error = client.submit_decode(&wrong, &DecodeOptions::default()).await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused { status: 400, .. }), "{error}");
    let client = Client::new(format!("{url}/other")).unwrap();
    let error = client.submit_decode(&short(), &DecodeOptions::default()).await.unwrap_err();
    assert!(error.status() == Some(404) && error.to_string().contains("one of small"), "{error}");
}

#[test]
fn the_blocking_face_has_jobs() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, handle) = runtime.block_on(serve(vec![]));
    let client = blocking::Client::new(&url).unwrap();
    let options = DecodeOptions::new(Output::Uint8);
    let direct = client.decode(&short(), &options).unwrap();
    let job = client.submit_decode(&short(), &options).unwrap();
    let events: Vec<JobEvent> = job.events().unwrap().map(Result::unwrap).collect();
    assert!(matches!(events.last(), Some(JobEvent::Status(status)) if status.state == JobState::Done));
    assert_eq!(job.result().unwrap().content, direct.content);
    assert_eq!(client.job(job.id()).status().unwrap().progress, 1.0);
    assert_eq!(job.preview().unwrap().is_some(), job.status().unwrap().has_preview);
    job.cancel().unwrap();
    assert_eq!(job.status().unwrap_err().status(), Some(404));
    let job = client.submit_encode(Source::file(png()), &EncodeOptions::default()).unwrap();
    assert_eq!(job.wait(|_| {}).unwrap().tensor().unwrap().shape, [1, 4, 6, 8]);
    assert!(client.metrics().unwrap().contains("rvae_requests_total"));
    handle.shutdown();
}

#[test]
fn the_example_shows_a_preview_and_a_picture() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, handle) = runtime.block_on(serve(vec![]));
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("photo.png"), folder.path().join("out.png"));
    std::fs::write(&input, png()).unwrap();
    runtime.block_on(job::run(&url, &input, &output)).unwrap();
    for (name, side) in [("out.png", 64), ("out.preview.png", 8)] {
        let limits = media::DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 24 };
        let made = std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(media::decode_image(&made, &limits).unwrap().width, side, "{name}");
    }
    handle.shutdown();
}
