//! `snapshot-gateway`: reads its configuration and serves until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use gateway::config::Config;
use gateway::{Gateway, from_channel, server, telemetry};
use mtls::client::ClientTimeouts;
use mtls::expiry::Expiry;
use mtls::server::{Acceptor, ServerTls};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A caller is told within a second that the API cannot be reached.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// gRPC, gRPC-Web and Connect in front of the snapshot API, and the page.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SNAPSHOT_GATEWAY_CONFIG", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is wrong with the gateway on this machine, and what to do about it.
    Doctor {
        /// The configuration file.
        #[arg(long, value_name = "FILE", env = "SNAPSHOT_GATEWAY_CONFIG")]
        config: PathBuf,
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Doctor { config, json }) = arguments.command {
        return gateway::doctor::run(&config, json).await;
    }
    let sealed = mtls::forbid_core_dumps();
    let config = Config::load(&arguments.config.unwrap_or_default());
    telemetry::log(config.as_ref().map(|config| config.log_format).unwrap_or_default());
    let result = match config {
        Ok(_) if sealed.is_err() => Err("core dumps cannot be forbidden".into()),
        Ok(config) => run(config).await,
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

async fn run(config: Config) -> Result<(), Error> {
    let stopping = CancellationToken::new();
    stop_on_signal(stopping.clone())?;
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
    server::serve(listener, acceptor, &config, gateway, stopping).await;
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
        stopping.cancel();
    });
    Ok(())
}
