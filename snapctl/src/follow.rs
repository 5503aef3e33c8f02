//! Waiting for an operation's end, with a bar where somebody looks.
//!
//! A watch that breaks off (the service was restarted, the network was away) is opened again: the operation goes on
//! meanwhile. Ctrl-C ends the command and not the operation.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use proto::v1;
use tonic::{Code, Status};

use crate::connection::Service;
use crate::failure::Failure;
use crate::out::Out;

/// How often a watch is opened again before the command gives up, and the first wait; each is twice the last.
const ATTEMPTS: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Waits until an operation has ended and returns it as it is then.
pub(crate) async fn to_the_end(service: &Service, name: &str, out: &Out) -> Result<v1::Operation, Failure> {
    let bar = bar(out)?;
    let mut failed = 0;
    loop {
        match watch(service, name, &bar).await {
            Ok(operation) => {
                bar.finish_and_clear();
                return Ok(operation);
            }
            Err(status) if status.code() == Code::Unavailable && failed < ATTEMPTS => {
                bar.set_message("connection lost, trying again");
                tokio::time::sleep(FIRST_WAIT * 2_u32.pow(failed)).await;
                failed += 1;
            }
            Err(status) => {
                bar.finish_and_clear();
                out.aside(&format!("{name} goes on: look at it with `snapctl operations {name}`\n"));
                return Err(status.into());
            }
        }
    }
}

async fn watch(service: &Service, name: &str, bar: &ProgressBar) -> Result<v1::Operation, Status> {
    let request = v1::WatchOperationRequest { name: name.to_owned() };
    let mut stream = service.operations.clone().watch_operation(request).await?.into_inner();
    while let Some(answer) = stream.message().await? {
        let Some(operation) = answer.operation else { continue };
        if has_ended(&operation) {
            return Ok(operation);
        }
        let progress = operation.progress.unwrap_or_default();
        bar.set_position(u64::try_from(progress.percent).unwrap_or(0));
        bar.set_message(progress.phase);
    }
    Err(Status::unavailable("the watch ended before the operation did"))
}

/// Whether nothing more will come of it.
pub(crate) fn has_ended(operation: &v1::Operation) -> bool {
    !matches!(operation.state(), v1::OperationState::Pending | v1::OperationState::Running)
}

/// Prints an operation that has ended; one that did not succeed is a failure.
pub(crate) fn end(
    out: &Out,
    operation: v1::Operation,
    show: impl FnOnce(&v1::Operation) -> String,
) -> Result<(), Failure> {
    let succeeded = operation.state() == v1::OperationState::Succeeded;
    if succeeded || out.is_json() {
        out.answer("Operation", &operation, show)?;
    }
    if succeeded { Ok(()) } else { Err(Failure::Ended(Box::new(operation))) }
}

/// On standard error, and only on a terminal: `indicatif` sees to that.
fn bar(out: &Out) -> Result<ProgressBar, Failure> {
    let target = if out.is_json() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(100), target);
    let style = ProgressStyle::with_template("{bar:30} {percent:>3} %  {elapsed}  {msg}");
    bar.set_style(style.map_err(|error| Failure::Answer(format!("the bar: {error}")))?);
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}
