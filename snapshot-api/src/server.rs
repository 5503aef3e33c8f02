//! The process: opens the catalogue, follows the hosts, serves two listeners, and stops in order.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use capability::Verifier;
use mtls::expiry::Expiry;
use mtls::server::{Acceptor, ServerTls, incoming};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tower::util::MapResponseLayer;
use traces::Export;

use crate::app::App;
use crate::audit::Audit;
use crate::clock::Clock;
use crate::config::{Config, LogFormat};
use crate::health::{self, Health};
use crate::hosts::reload::Following;
use crate::limits::Limits;
use crate::own_tokens::OwnTokens;
use crate::service::{Services, too_large};
use crate::store::Store;
use crate::{public, telemetry, upkeep};

/// How long calls that run when the service is told to stop may still take.
const GRACE: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(20);
/// How long the writer may take for what waits when the service stops. One that hangs does not keep the process.
const CLOSE: Duration = Duration::from_secs(20);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Serves until the process is told to stop. `path` is where the configuration is from: its list of hosts is read again on request.
pub async fn serve(path: PathBuf, config: Config) -> Result<(), BoxError> {
    let export = config.telemetry.as_ref().map(|telemetry| Export::new(telemetry, "snapshot-api"));
    traces::log(config.log_format == LogFormat::Json, export.as_ref());
    let exporting = export.map(Export::begin).transpose()?;
    // First of all: a second process on the same catalogue is to say so, and not that a port is in use.
    let store = Store::open(&config.database.path)?;
    if let Some(address) = config.listen.metrics {
        telemetry::metrics(address)?;
    }
    let stopping = CancellationToken::new();
    let reloads = supervised::Reloads::begin()?;
    let (app, mut following) = assemble(&config, path, store, &stopping)?;
    following.begin(&app, &config.hosts).await?;
    let (reporter, server) = tonic_health::server::health_reporter();
    let health = Health::begin(app.store.clone(), &config.database.path, reporter.clone()).await;
    let routes = routes(&app, server)?;
    let mut internal = listen(
        config.listen.internal,
        ServerTls::Mutual { files: config.tls.clone(), allow: config.peers.clone() },
        routes.clone(),
        stopping.clone(),
    )
    .await?;
    let mut public = match config.listen.public {
        None => None,
        Some(address) => {
            Some(public::listen(address, &config, routes, Arc::clone(&app.limits), GRACE, stopping.clone()).await?)
        }
    };
    let limits = Arc::clone(&app.limits);
    tokio::spawn(async move { limits.forget().await });
    let clock = app.clock.clone();
    tokio::spawn(Expiry::of(&config.tls)?.watch(move || clock.now_s()));
    let upkeep = tokio::spawn(upkeep::run(app.store.clone(), config.database.retention()));
    let trail = tokio::spawn(app.audit.clone().run(config.database.audit_retention()));
    supervise(&app, following, &health, reloads);
    let health = tokio::spawn(health.follow());
    tracing::info!(internal = %config.listen.internal, public = ?config.listen.public, "serving");
    let end = tokio::select! {
        told = stop_signal() => told.map_err(BoxError::from),
        part = lost(&app.store, &mut internal, public.as_mut()) => Err(part.into()),
    };
    tracing::info!("stopping");
    supervised::stopping();
    // It tells nothing any more once it was waited for.
    health.abort();
    let _ = health.await;
    health::tell(&reporter, false).await;
    stopping.cancel();
    let servers = async {
        finished(internal).await;
        if let Some(public) = public {
            finished(public).await;
        }
    };
    if tokio::time::timeout(GRACE, servers).await.is_err() {
        tracing::warn!("calls were still running and have been cut off");
    }
    upkeep.abort();
    trail.abort();
    if tokio::time::timeout(CLOSE, close(&app)).await.is_err() {
        tracing::warn!("the catalogue's writer does not answer; what still waited for it is not written");
    }
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    end
}

/// Returns when the service has lost a part without which it must not go on, and says which.
async fn lost(store: &Store, internal: &mut JoinHandle<()>, public: Option<&mut JoinHandle<()>>) -> &'static str {
    let public = async {
        match public {
            Some(public) => public.await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = store.ended() => "the catalogue's writer has ended, so nothing can be written",
        _ = internal => "the internal listener has ended",
        _ = public => "the public listener has ended",
    }
}

/// Waits for a listener that may have been waited for already.
async fn finished(listener: JoinHandle<()>) {
    if !listener.is_finished() {
        listener.await.ok();
    }
}

/// Writes what waits, and closes the file. The thread that joins the writer is no task's: the process may end before it does.
async fn close(app: &App) {
    app.audit.flush().await;
    app.audit.note(&mut None);
    let (store, (closed, closing)) = (app.store.clone(), tokio::sync::oneshot::channel());
    std::thread::spawn(move || {
        store.close();
        closed.send(()).ok();
    });
    closing.await.ok();
}

/// Tells the service manager that it serves, and from now on that it is alive: that the catalogue can be read, and that its writer
/// answers. A disk that is full does not count, because reading goes on then.
fn supervise(app: &App, mut following: Following, health: &Health, mut reloads: supervised::Reloads) {
    let (verifier, store, alive) = (Arc::clone(&app.verifier), app.store.clone(), health.alive());
    let reloaded = app.clone();
    tokio::spawn(async move {
        while reloads.next().await {
            mtls::look_again();
            verifier.reload();
            following.reload(&reloaded).await;
            supervised::ready();
        }
    });
    tokio::spawn(supervised::watchdog(move || {
        let (store, alive) = (store.clone(), alive.clone());
        async move { alive() && matches!(tokio::task::spawn_blocking(move || store.audit_head()).await, Ok(Ok(_))) }
    }));
    supervised::ready();
}

fn assemble(
    config: &Config,
    path: PathBuf,
    store: Store,
    stopping: &CancellationToken,
) -> Result<(App, Following), BoxError> {
    let clock = Clock::system();
    let own = &config.own_issuer;
    let own = Arc::new(OwnTokens::load(&own.key, &own.kid, &own.name, own.lifetime(), clock.clone())?);
    let following = Following::new(path, config.tls.clone(), own);
    let verifier = Arc::new(Verifier::load(config.issuers.clone())?);
    let limits = Arc::new(Limits::new(&config.limits));
    let (audit, user_quota) = (Audit::new(store.clone(), clock.clone()), config.quotas.of_a_user());
    let stopping = stopping.clone();
    Ok((App { store, hosts: Arc::default(), verifier, limits, audit, user_quota, clock, stopping }, following))
}

fn routes(
    app: &App,
    health: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>,
) -> Result<Routes, BoxError> {
    let services = Services::new(app.clone());
    // Older clients, the packaged grpcurl among them, speak v1alpha only.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::PUBLIC_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            // So that grpcurl shows the details of an error and not their bytes.
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(services.snapshots())
        .add_service(services.operations())
        .add_service(services.hosts())
        .add_service(services.audit())
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

/// The listener for the gateway. It has one connection for all users, on which one would wait for another if calls were
/// limited by connection; the gateway has bounds of its own.
async fn listen(
    address: std::net::SocketAddr,
    tls: ServerTls,
    routes: Routes,
    stopping: CancellationToken,
) -> Result<JoinHandle<()>, BoxError> {
    let listener = TcpListener::bind(address).await.map_err(|error| format!("{address}: {error}"))?;
    let connections = incoming(listener, Acceptor::new(tls)?);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(MapResponseLayer::new(too_large::typed))
        .add_routes(routes)
        .serve_with_incoming_shutdown(connections, async move { stopping.cancelled().await });
    Ok(tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, %address, "the listener failed");
        }
    }))
}

async fn stop_signal() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service that has lost one of its parts ends, and its manager starts it again.
    #[tokio::test]
    async fn a_part_that_has_ended_ends_the_service() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
        let runs = || tokio::spawn(std::future::pending::<()>());
        let ended = || tokio::spawn(std::future::ready(()));
        assert!(lost(&store, &mut ended(), Some(&mut runs())).await.contains("internal listener"));
        assert!(lost(&store, &mut runs(), Some(&mut ended())).await.contains("public listener"));
        let (mut internal, serving) = (runs(), store.clone());
        let waiting = tokio::spawn(async move { lost(&serving, &mut internal, None).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "nothing has ended");
        store.close();
        assert!(waiting.await.unwrap().contains("writer"));
    }
}
