//! WatchVm: the state of a machine and its snapshots, then every change of them.

use std::convert::Infallible;

use proto::v1::watch_vm_response::{Event, Reset, Synced};
use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::{Action, Permit};
use snapshot_core::ids::{HostId, VmId};

use crate::app::{App, Call};
use crate::store::{Change, News, VmRow};
use crate::watch::{End, Messages, Watch};
use crate::{etag, view};

pub fn call(app: &App, call: Call<v1::WatchVmRequest>) -> Result<Messages<v1::WatchVmResponse>, Error> {
    let vm = names::parse_vm("name", &call.message.name)?;
    let reader = call.authorize(vm, Action::Read)?;
    let since = etag::decode(app.store.epoch(), &call.message.resume_token);
    // Subscribed before the first read, so that no change falls in between.
    let (mut watch, messages) = Watch::new(app, &call.caller)?;
    let row = app.store.vm(vm)?;
    let app = app.clone();
    tokio::spawn(async move {
        let Err(end) = run(&app, &reader, &mut watch, row, since).await;
        watch.finish(end).await;
    });
    Ok(messages)
}

async fn run(
    app: &App,
    reader: &Permit,
    watch: &mut Watch<v1::WatchVmResponse>,
    row: VmRow,
    mut since: Option<i64>,
) -> Result<Infallible, End> {
    let VmRow { id: vm, mut host, .. } = row;
    let mut reachable = reachability(app, &host);
    let mut first = true;
    loop {
        let mut news = app.store.news(vm, since).map_err(|error| End::Failed(error.into()))?;
        since = Some(news.revision);
        let has_changed = news.vm.is_some();
        // Of one read with the rest of the news where it changed; a machine that is gone ends the watch.
        let row = match news.vm.take() {
            Some(row) => row,
            None => app.store.vm(vm).map_err(|error| End::Failed(error.into()))?,
        };
        // Of the host that it is on now.
        host.clone_from(&row.host);
        let now = reachability(app, &host);
        let machine = first || has_changed || now != reachable;
        reachable = now;
        let machine = machine.then(|| view::with_capabilities(app, &row, reader)).transpose();
        let machine = machine.map_err(|error| End::Failed(error.into()))?;
        tell(app, watch, news, machine, first).await?;
        first = false;
        let concerned = host.clone();
        watch.changed(|change| concerns(change, vm, &concerned)).await?;
    }
}

fn reachability(app: &App, host: &HostId) -> bool {
    app.hosts.is_reachable(host)
}

fn concerns(change: &Change, vm: VmId, host: &HostId) -> bool {
    match change {
        Change::Vm(changed) => *changed == vm,
        Change::Host(changed) => changed == host,
    }
}

/// Only the last message of a batch carries a token to resume from: what comes before it is not the whole of a revision.
async fn tell(
    app: &App,
    watch: &Watch<v1::WatchVmResponse>,
    news: News,
    machine: Option<v1::Vm>,
    first: bool,
) -> Result<(), End> {
    let epoch = app.store.epoch();
    let mut events = Vec::new();
    if news.whole {
        events.push(Event::Reset(Reset {}));
    }
    events.extend(machine.map(Event::Vm));
    events.extend(news.removed.iter().map(|gone| Event::RemovedSnapshot(names::snapshot(news.id, &gone.0))));
    events.extend(news.snapshots.iter().map(|row| Event::Snapshot(view::snapshot(epoch, row))));
    events.extend(news.operations.iter().map(|row| Event::Operation(view::operation(row))));
    if news.whole || first {
        events.push(Event::Synced(Synced {}));
    }
    let last = events.len();
    for (number, event) in (1..).zip(events) {
        let resume_token = if number == last { etag::encode(epoch, news.revision) } else { String::new() };
        watch.send(v1::WatchVmResponse { event: Some(event), resume_token }).await?;
    }
    Ok(())
}
