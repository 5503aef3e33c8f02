//! `snapshot-gateway`: reads its configuration and serves until it is told to stop.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use gateway::arguments::{Arguments, Command};
use gateway::config::{Config, LogFormat};
use gateway::{Gateway, from_channel, server, telemetry};
use mtls::client::ClientTimeouts;
use mtls::expiry::Expiry;
use mtls::server::{Acceptor, ServerTls};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use traces::Export;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A caller is told within a second that the API cannot be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Doctor { config, json }) = arguments.command {
        return gateway::doctor::run(&config, json).await;
    }
    let sealed = mtls::forbid_core_dumps();
    let config = Config::load(&arguments.config.unwrap_or_default());
    let json = config.as_ref().is_ok_and(|config| config.log_format == LogFormat::Json);
    let telemetry = config.as_ref().ok().and_then(|config| config.telemetry.as_ref());
    let export = telemetry.map(|telemetry| Export::new(telemetry, "snapshot-gateway"));
    traces::log(json, export.as_ref());
    let result = match config {
        Ok(_) if sealed.is_err() => Err("core dumps cannot be forbidden".into()),
        Ok(config) => run(config, export).await,
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the gateway cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config, export: Option<Export>) -> Result<(), Error> {
    let exporting = export.map(Export::begin).transpose()?;
    let stopping = CancellationToken::new();
    stop_on_signal(stopping.clone())?;
    tokio::spawn(supervised::Reloads::begin()?.each(mtls::look_again));
    if let Some(address) = config.metrics {
        telemetry::serve_metrics(address)?;
    }
    tokio::spawn(Expiry::of(&config.api.tls)?.watch(unix_now));
    if let Some(files) = &config.tls {
        tokio::spawn(Expiry::of_server(files)?.watch(unix_now));
    }
    let timeouts = ClientTimeouts { connect: CONNECT_TIMEOUT, ..ClientTimeouts::default() };
    let api = &config.api;
    let channel = mtls::client::channel(&api.uri, api.tls.clone(), api.peer.clone(), timeouts)?;
    let gateway = Gateway::new(&config, from_channel(channel), stopping.clone())?;
    let acceptor = match config.tls.clone() {
        Some(files) => Some(Acceptor::new(ServerTls::ServerOnly { files, http1: true })?),
        None => None,
    };
    if acceptor.is_none() && !config.listen.ip().is_loopback() {
        tracing::warn!("callers connect in plain text: tokens can be read on the way unless a proxy in front does TLS");
    }
    let listener = TcpListener::bind(config.listen).await.map_err(|error| format!("{}: {error}", config.listen))?;
    tracing::info!(address = %listener.local_addr()?, tls = acceptor.is_some(), api = config.api.uri, "serving");
    supervised::ready();
    tokio::spawn(supervised::watchdog(|| std::future::ready(true)));
    server::serve(listener, acceptor, &config, gateway, stopping).await;
    if let Some(exporting) = exporting {
        exporting.end().await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// The wall clock, which certificates are held against.
fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn stop_on_signal(stopping: CancellationToken) -> Result<(), Error> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping");
        supervised::stopping();
        stopping.cancel();
    });
    Ok(())
}
