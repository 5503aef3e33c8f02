//! The page's headers, and who may call from elsewhere.

use http::{Method, StatusCode};

use crate::support::{GET_VM, World};

#[tokio::test]
async fn everything_of_the_page_comes_with_a_strict_policy() {
    let world = World::start().await;
    for path in ["/", "/app.js", "/nothing.png", "/ravada.snapshot.v1.SnapshotService/Nothing"] {
        let answer = world.get(path).await;
        let policy = answer.headers["content-security-policy"].to_str().expect("text");
        assert_eq!(
            policy,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
             font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["referrer-policy"], "no-referrer");
        assert!(!answer.headers.contains_key("access-control-allow-origin"));
    }
    assert_eq!(world.get("/../../Cargo.toml").await.status, StatusCode::NOT_FOUND);
    let head = world.send(Method::HEAD, "/", &[], b"").await;
    assert!(head.body.is_empty());
}

async fn preflight(world: &World, origin: &str) -> Option<String> {
    let headers = [("origin", origin), ("access-control-request-method", "POST")];
    let answer = world.send(Method::OPTIONS, GET_VM, &headers, b"").await;
    answer.headers.get("access-control-allow-origin").map(|value| value.to_str().expect("text").to_owned())
}

#[tokio::test]
async fn another_origin_may_call_only_where_it_is_named() {
    let named = "https://ravada.example.org";
    assert_eq!(preflight(&World::start().await, named).await, None);
    let world = World::with(&format!("allowed_origins = [{named:?}]")).await;
    assert_eq!(preflight(&world, named).await.as_deref(), Some(named));
    assert_eq!(preflight(&world, "https://evil.example.org").await, None);
}
