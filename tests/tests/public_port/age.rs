//! Connections that have reached their maximum age.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tests::client::Client;

use crate::raw::{ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, frame, head};
use crate::{STRANGER, cluster, targets, token};

const WATCH_HEALTH: &str = "/grpc.health.v1.Health/Watch";
const TOLD: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_connection_is_asked_to_go_and_its_calls_go_on() {
    let cluster = cluster("connection_age_seconds = 2", "");
    for target in targets(&cluster) {
        // A stream that has begun, and has no end.
        let mut raw = target.http2(STRANGER).await;
        let begun = Instant::now();
        let call = [frame(HEADERS, END_HEADERS, 1, &head(WATCH_HEALTH)), frame(DATA, END_STREAM, 1, &[0; 5])];
        raw.send(&call.concat()).await.unwrap();
        let (mut told, mut asked) = (false, false);
        while !asked {
            let came = raw.next(TOLD).await.expect("a GOAWAY before the end");
            told |= came.kind == DATA;
            asked = came.kind == GOAWAY;
            assert!(came.kind != GOAWAY || came.payload[4..8] == [0; 4], "{}: NO_ERROR: {came:?}", target.name);
        }
        let age = begun.elapsed();
        assert!(told, "{}: the stream has begun", target.name);
        assert!(age > Duration::from_millis(1500) && age < Duration::from_secs(5), "{}: {age:?}", target.name);
        // The stream is still there: nothing ends it, and the connection goes on answering.
        while begun.elapsed() < Duration::from_secs(5) {
            raw.send(&frame(PING, 0, 0, &[1; 8])).await.unwrap();
            let came = raw.next(TOLD).await.expect("the connection goes on");
            assert!(came.stream != 1 || came.flags & END_STREAM == 0, "{}: {came:?}", target.name);
            if came.kind == PING && came.flags & ACK == 0 {
                raw.send(&frame(PING, ACK, 0, &came.payload)).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Ordinary clients do not notice.
        let client = Client::new(Box::new(target.client(Ipv4Addr::LOCALHOST)), token(&cluster));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            client.vms().await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
