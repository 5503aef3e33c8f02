//! `snapshot-agent --config FILE`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use metrics_exporter_prometheus::PrometheusBuilder;
use snapshot_agent::arguments::{Arguments, Command};
use snapshot_agent::beneath::Beneath;
use snapshot_agent::bounded::{self, directories};
use snapshot_agent::config::{Config, LogFormat};
use snapshot_agent::hypervisor::libvirt::Libvirt;
use snapshot_agent::reach::{self, Enforce, List, ReachError, Reached};
use snapshot_agent::server;
use snapshot_agent::shared_storage::SharedStorage;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use traces::Export;

/// The most threads that serve.
const MOST_WORKERS: usize = 4;
/// How long threads that wait for libvirt are waited for in turn: they may wait forever.
const THREADS_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args = Arguments::parse();
    if let Some(Command::Doctor { config, json }) = args.command {
        return snapshot_agent::doctor::run(&config, json);
    }
    let mut config = match Config::load(&args.config.unwrap_or_default()) {
        Ok(config) => config,
        Err(error) => {
            traces::log(false, None);
            tracing::error!("{error}");
            return ExitCode::from(2);
        }
    };
    let export = config.telemetry.as_ref().map(|telemetry| Export::new(telemetry, "snapshot-agent"));
    traces::log(config.log_format == LogFormat::Json, export.as_ref());
    // QEMU under the embedded driver is started by this process, and inherits its limits.
    let is_alone = reach::cannot_be_narrowed(&config.libvirt_uri).is_none();
    if is_alone && let Err(error) = mtls::forbid_core_dumps() {
        tracing::error!("core dumps cannot be forbidden: {error}");
        return ExitCode::FAILURE;
    }
    let unresponsive = leave_out_unresponsive(&mut config);
    let reached = match narrow(&config) {
        Ok(reached) => reached,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    match run(config, reached, export, unresponsive) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Takes the directories whose storage does not respond out of the configuration; returns them.
fn leave_out_unresponsive(config: &mut Config) -> Vec<PathBuf> {
    let all: Vec<PathBuf> = config.image_dirs.iter().chain(&config.read_dirs).cloned().collect();
    let unresponsive = directories::unresponsive(&all);
    for directory in &unresponsive {
        tracing::warn!(
            path = %directory.display(),
            "an image directory does not respond; VMs there are unavailable until it does, and the agent is started again then"
        );
    }
    config.image_dirs.retain(|directory| !unresponsive.contains(directory));
    config.read_dirs.retain(|directory| !unresponsive.contains(directory));
    unresponsive
}

/// Before there is a runtime, because it holds for the threads that are started after it.
fn narrow(config: &Config) -> Result<Reached, ReachError> {
    bounded::prepare();
    let enforce = match (config.reach.enforce, reach::cannot_be_narrowed(&config.libvirt_uri)) {
        (Enforce::Required, Some(why)) => return Err(ReachError::Impossible(why)),
        (Enforce::BestEffort, Some(why)) => {
            tracing::warn!("the agent runs with all of root's power: {why}");
            Enforce::Off
        }
        (Enforce::Off, _) => {
            tracing::warn!("the agent runs with all of root's power: reach.enforce is \"off\"");
            Enforce::Off
        }
        (enforce, None) => enforce,
    };
    let reached = reach::enter(&List::of(config).following_links(config), enforce)?;
    match reached {
        Reached::Narrowed => tracing::info!("the agent's reach is narrowed to what it needs"),
        Reached::Partly => {
            tracing::warn!("the agent's reach is narrowed in part only: this kernel's Landlock is too old")
        }
        Reached::Open => {}
    }
    Ok(reached)
}

/// Returns whether the agent came to its end in order, and is not to be started again.
fn run(
    config: Config,
    reached: Reached,
    export: Option<Export>,
    unresponsive: Vec<PathBuf>,
) -> Result<bool, Box<dyn std::error::Error>> {
    // A host may have a hundred cores; what this does all day is wait for libvirt.
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_WORKERS);
    let runtime = Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let result = runtime.block_on(async {
        if let Some(address) = config.metrics {
            PrometheusBuilder::new().with_http_listener(address).install()?;
            reached.measure();
        }
        let exporting = export.map(Export::begin).transpose()?;
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let reloads = supervised::Reloads::begin()?;
        let uri = config.libvirt_uri.clone();
        let places = match reached {
            Reached::Open => Beneath::everything(),
            Reached::Narrowed | Reached::Partly => Beneath::open(&config.image_dirs, &config.read_dirs),
        };
        let shared = SharedStorage::open(config.host.clone(), &config.state_dir, &config.shared_dirs)?;
        let prepare = move || Libvirt::within(&uri, places.sharing(shared));
        let libvirt = tokio::task::spawn_blocking(prepare).await??;
        let started = server::start(config, Arc::new(libvirt)).await?;
        tokio::spawn(reloads.each(started.reload()));
        // libvirt may be away for long; that this process hangs is another matter, and what is asked here.
        tokio::spawn(supervised::watchdog(|| std::future::ready(true)));
        supervised::ready();
        let is_to_start_again = Arc::new(AtomicBool::new(false));
        let again = Arc::clone(&is_to_start_again);
        let responds = directories::responds(unresponsive);
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                Ok(directory) = responds => {
                    tracing::warn!(path = %directory.display(), "an image directory responds again; ending, to be started again");
                    again.store(true, Ordering::Relaxed);
                }
            }
            supervised::stopping();
        };
        let served = started.serve(shutdown).await;
        if let Some(exporting) = exporting {
            exporting.end().await;
        }
        Ok(served? && !is_to_start_again.load(Ordering::Relaxed))
    });
    runtime.shutdown_timeout(THREADS_WAIT);
    result
}
