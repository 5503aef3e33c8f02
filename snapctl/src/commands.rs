//! What each command does. Those that only read are here; [`changes`] has the others.

mod changes;
mod doctor;
mod orphans;

use std::process::ExitCode;

use proto::v1;

use crate::arguments::{Arguments, Command, Operations};
use crate::connection::{self, Service};
use crate::failure::Failure;
use crate::out::Out;
use crate::settings::Settings;
use crate::{follow, lookup, show};

/// The most operations that the service gives on one page.
const PAGE: i32 = 1000;

/// Carries a command out.
pub(crate) async fn run(arguments: Arguments, out: &Out) -> Result<ExitCode, Failure> {
    if matches!(arguments.command, Command::Doctor) {
        return doctor::run(&arguments.common, out).await;
    }
    carry_out(arguments, out).await.map(|()| ExitCode::SUCCESS)
}

async fn carry_out(arguments: Arguments, out: &Out) -> Result<(), Failure> {
    let settings = Settings::gather(&arguments.common)?;
    let service = connection::open(&settings).await?;
    match arguments.command {
        Command::Doctor => Ok(()),
        Command::Hosts => hosts(&service, out).await,
        Command::Vms { host } => {
            let host = host.map(|host| host_name(&host)).unwrap_or_default();
            out.answer("ListVmsResponse", &lookup::vms(&service, host).await?, show::vms)
        }
        Command::Snapshots(machine) => {
            let vm = lookup::vm(&service, &machine.vm).await?;
            out.answer("ListSnapshotsResponse", &lookup::snapshots(&service, &vm).await?, show::tree)
        }
        Command::Operations(which) => operations(&service, out, which).await,
        Command::Reconcile { host } => {
            let request = v1::ReconcileHostRequest { name: host_name(&host) };
            let answer = service.hosts.clone().reconcile_host(request).await?.into_inner();
            out.answer("ReconcileHostResponse", &answer, show::reconciled)
        }
        Command::Create(it) => changes::create(&service, out, it).await,
        Command::Revert(it) => changes::revert(&service, out, it).await,
        Command::Remove(it) => changes::remove(&service, out, it).await,
        Command::Edit(it) => changes::edit(&service, out, it).await,
        Command::Purge(it) => changes::purge(&service, out, it).await,
        Command::Orphans { host } => orphans::list(&service, out, host).await,
        Command::DeleteOrphan(it) => orphans::delete(&service, out, it).await,
        Command::Cancel { operation } => {
            let request = v1::CancelOperationRequest { name: lookup::operation(&operation) };
            let answer = service.operations.clone().cancel_operation(request).await?.into_inner();
            out.answer("Operation", &answer, show::operation)
        }
    }
}

fn host_name(called: &str) -> String {
    format!("hosts/{}", called.strip_prefix("hosts/").unwrap_or(called))
}

async fn hosts(service: &Service, out: &Out) -> Result<(), Failure> {
    out.answer("ListHostsResponse", &all_hosts(service).await?, show::hosts)
}

async fn all_hosts(service: &Service) -> Result<v1::ListHostsResponse, Failure> {
    let mut request = v1::ListHostsRequest { page_size: PAGE, ..Default::default() };
    let mut all = v1::ListHostsResponse::default();
    loop {
        let page = service.hosts.clone().list_hosts(request.clone()).await?.into_inner();
        all.hosts.extend(page.hosts);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

async fn operations(service: &Service, out: &Out, which: Operations) -> Result<(), Failure> {
    if let Some(called) = &which.operation {
        let name = lookup::operation(called);
        if which.follow {
            let ended = follow::to_the_end(service, &name, out).await?;
            return follow::end(out, ended, show::operation);
        }
        let request = v1::GetOperationRequest { name };
        let operation = service.operations.clone().get_operation(request).await?.into_inner();
        return out.answer("Operation", &operation, show::operation);
    }
    let vm = match &which.vm {
        Some(called) => lookup::vm(service, called).await?,
        None => String::new(),
    };
    let most = usize::try_from(which.most).unwrap_or(usize::MAX);
    let page_size = i32::try_from(which.most).unwrap_or(PAGE).min(PAGE);
    let mut request = v1::ListOperationsRequest { page_size, vm, active_only: which.active, ..Default::default() };
    let mut all = v1::ListOperationsResponse::default();
    loop {
        let page = service.operations.clone().list_operations(request.clone()).await?.into_inner();
        all.operations.extend(page.operations);
        if page.next_page_token.is_empty() || all.operations.len() >= most {
            all.operations.truncate(most);
            return out.answer("ListOperationsResponse", &all, show::operations);
        }
        request.page_token = page.next_page_token;
    }
}
