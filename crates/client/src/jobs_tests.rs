//! Jobs against scripted servers: what is sent again after a broken connection, and events in pieces.

use std::sync::{Arc, Mutex};

use remote_vae_wire::Dtype;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const STATUS: &str = r#"{"id":"a1","state":"running","operation":"decode","model":"m","preview":true,
                         "progress":0.5,"expected_seconds":1.5,"age_seconds":2.0}"#;

#[test]
fn events_are_read() {
    let read = |text: &str| event(text.as_bytes());
    let data = STATUS.replace('\n', "");
    let Some(JobEvent::Status(status)) = read(&format!("event: progress\ndata: {data}\n\n")).unwrap() else {
        panic!("no status")
    };
    assert_eq!((status.state, status.progress, status.has_preview), (JobState::Running, 0.5, true));
    assert_eq!(status.time_left, Some(Duration::from_millis(1500)));
    assert_eq!((status.expires_in, status.error.as_deref()), (None, None));
    let preview = "event: preview\ndata: {\"image\":\"data:image/png;base64,AQID\"}\n\n";
    assert_eq!(read(preview).unwrap(), Some(JobEvent::Preview(vec![1, 2, 3])));
    let deleted = "event: end\ndata: {\"state\":\"deleted\"}\n\n";
    assert_eq!(read(deleted).unwrap(), Some(JobEvent::Deleted));
    assert_eq!((read(":\n\n").unwrap(), read("event: later\ndata: 1\n\n").unwrap()), (None, None));
    for wrong in ["event: progress\ndata: {}\n\n", "event: preview\ndata: {\"image\":\"x\"}\n\n"] {
        assert!(matches!(read(wrong), Err(ClientError::Answer { .. })), "{wrong}");
    }
}

#[test]
fn addresses_name_the_model_and_the_job() {
    let jobs = |url: &str| Client::new(url).unwrap().jobs_address("decode").to_string();
    assert_eq!(jobs("http://host:1/"), "http://host:1/v1/jobs?operation=decode");
    assert_eq!(jobs("http://host:1/sdxl/decode"), "http://host:1/v1/jobs?operation=decode&model=sdxl");
    assert_eq!(jobs("http://host:1/predict?t=1"), "http://host:1/v1/jobs?t=1&operation=decode");
    let job = Client::new("http://host:1/sdxl?t=1").unwrap().job("a/b");
    assert_eq!(job.address("/result").to_string(), "http://host:1/v1/jobs/a%2Fb/result?t=1");
    assert_eq!(job.address("").to_string(), "http://host:1/v1/jobs/a%2Fb?t=1");
}

/// Answers one connection after the other with these bytes, and closes each. Tells the first lines of the requests.
async fn scripted(answers: Vec<String>) -> (Client, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&asked);
    tokio::spawn(async move {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            stream.read_exact(&mut body).await.unwrap();
            sink.lock().unwrap().push(head.lines().next().unwrap().split('?').next().unwrap().to_owned());
            for piece in answer.as_bytes().chunks(3) {
                stream.write_all(piece).await.unwrap();
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    (client, asked)
}

fn answered(status: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nretry-after: 0\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Events of a connection that breaks after them.
fn broken(events: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{events}")
}

fn progress(name: &str, state: &str, share: f64) -> String {
    let status = STATUS.replace('\n', "").replace("running", state).replace("0.5", &share.to_string());
    format!(":\n\nevent: {name}\ndata: {status}\n\n")
}

#[tokio::test]
async fn a_job_that_a_server_may_have_is_not_handed_in_again() {
    let latents = Tensor::from_f32(vec![1, 4, 1, 1], Dtype::Float32, &[0.0; 4]).unwrap();
    let options = DecodeOptions::default();
    let (busy, lost) = (answered("429 Too Many Requests", "{}"), String::new());
    let cut_off = broken(STATUS);
    let gateway = answered("502 Bad Gateway", "");
    let taken = answered("202 Accepted", STATUS);
    for (first, is_sent_again) in [(busy, true), (lost, false), (cut_off, false), (gateway, false)] {
        let (client, asked) = scripted(vec![first.clone(), taken.clone()]).await;
        let job = client.submit_decode(&latents, &options).await;
        assert_eq!(asked.lock().unwrap().len(), if is_sent_again { 2 } else { 1 }, "{first}");
        match job {
            Ok(job) => assert!(is_sent_again && job.id() == "a1", "{first}"),
            Err(ClientError::Connection { .. } | ClientError::Refused { status: 502, .. }) => {
                assert!(!is_sent_again, "{first}");
            }
            Err(error) => panic!("{first}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_cancelled_job_that_is_gone_already_is_cancelled() {
    let gone = answered("404 Not Found", "{}");
    let (client, asked) = scripted(vec![String::new(), gone.clone()]).await;
    client.job("a1").cancel().await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["DELETE /v1/jobs/a1 HTTP/1.1"; 2]);
    let (client, _) = scripted(vec![gone]).await;
    assert_eq!(client.job("a1").cancel().await.unwrap_err().status(), Some(404));
}

#[tokio::test]
async fn waiting_goes_on_for_as_long_as_the_job_moves() {
    let at = |share| broken(&progress("progress", "running", share));
    let over = broken(&progress("end", "done", 1.0));
    let file = answered("200 OK", "RIFF0000WEBPVP8L");
    let (mut client, asked) = scripted(vec![at(0.1), at(0.2), at(0.3), over, file]).await;
    client.retries = 1;
    let mut told = Vec::new();
    let reply = client.job("a1").wait(|status| told.push(status.progress)).await.unwrap();
    assert_eq!((told, reply.file().unwrap()), (vec![0.1, 0.2, 0.3, 1.0], b"RIFF0000WEBPVP8L".to_vec()));
    assert_eq!(asked.lock().unwrap().len(), 5);
    // A job that stands still is not asked for again and again.
    let (mut client, asked) = scripted(vec![at(0.1); 9]).await;
    client.retries = 2;
    let error = client.job("a1").wait(|_| {}).await.unwrap_err();
    assert!(matches!(error, ClientError::Connection { .. }), "{error}");
    assert_eq!(asked.lock().unwrap().len(), 3);
}
