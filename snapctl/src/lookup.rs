//! What a person calls a machine, a snapshot, an operation: to the API's names.

use proto::v1;
use uuid::Uuid;

use crate::connection::Service;
use crate::failure::Failure;

/// The most of anything on a page; the service has its own bound below.
const PAGE: i32 = 1000;

/// `vms/{uuid}` of a machine by that, by its UUID, or by its name.
pub(crate) async fn vm(service: &Service, called: &str) -> Result<String, Failure> {
    let bare = called.strip_prefix("vms/").unwrap_or(called);
    if let Ok(uuid) = Uuid::parse_str(bare) {
        return Ok(format!("vms/{uuid}"));
    }
    let all = vms(service, String::new()).await?.vms;
    let found: Vec<&v1::Vm> = all.iter().filter(|vm| vm.display_name == called).collect();
    match found.as_slice() {
        [vm] => Ok(vm.name.clone()),
        [] => Err(Failure::usage(format!("there is no machine {called:?} that the token is for"))),
        several => {
            let names: Vec<String> = several.iter().map(|vm| format!("{} on {}", vm.name, vm.host)).collect();
            Err(Failure::usage(format!("several machines are called {called:?}: {}", names.join(", "))))
        }
    }
}

/// All machines, or those of a host.
pub(crate) async fn vms(service: &Service, host: String) -> Result<v1::ListVmsResponse, Failure> {
    let mut request = v1::ListVmsRequest { page_size: PAGE, host, ..Default::default() };
    let mut all = v1::ListVmsResponse::default();
    loop {
        let page = service.snapshots.clone().list_vms(request.clone()).await?.into_inner();
        all.vms.extend(page.vms);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

/// All snapshots of `vms/{uuid}`.
pub(crate) async fn snapshots(service: &Service, vm: &str) -> Result<v1::ListSnapshotsResponse, Failure> {
    let mut request = v1::ListSnapshotsRequest { parent: vm.to_owned(), page_size: PAGE, ..Default::default() };
    let mut all = v1::ListSnapshotsResponse::default();
    loop {
        let page = service.snapshots.clone().list_snapshots(request.clone()).await?.into_inner();
        all.snapshots.extend(page.snapshots);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

/// A snapshot of `vms/{uuid}` by its id, or by its name where only one has it.
pub(crate) async fn snapshot(service: &Service, vm: &str, called: &str) -> Result<v1::Snapshot, Failure> {
    choose(snapshots(service, vm).await?.snapshots, called)
}

fn choose(all: Vec<v1::Snapshot>, called: &str) -> Result<v1::Snapshot, Failure> {
    if let Some(found) = all.iter().find(|it| it.name == called || id(&it.name) == called) {
        return Ok(found.clone());
    }
    let mut named: Vec<v1::Snapshot> = all.into_iter().filter(|it| it.display_name == called).collect();
    match (named.len(), named.pop()) {
        (1, Some(one)) => Ok(one),
        (_, Some(last)) => {
            let ids: Vec<&str> = named.iter().chain([&last]).map(|it| id(&it.name)).collect();
            Err(Failure::usage(format!("several snapshots are called {called:?}; take an id: {}", ids.join(", "))))
        }
        (_, None) => Err(Failure::usage(format!("the machine has no snapshot {called:?}"))),
    }
}

/// `operations/{uuid}` by that or by its id.
pub(crate) fn operation(called: &str) -> String {
    format!("operations/{}", called.strip_prefix("operations/").unwrap_or(called))
}

/// The last part of a resource name.
pub(crate) fn id(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(id: &str, display_name: &str) -> v1::Snapshot {
        v1::Snapshot {
            name: format!("vms/1/snapshots/{id}"),
            display_name: display_name.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_snapshot_is_found_by_id_and_by_a_name_that_is_its_alone() {
        let all = || vec![named("snap-1", "exam"), named("snap-2", "exam"), named("snap-3", "snap-1"), named("x", "y")];
        let found = |called: &str| choose(all(), called).map(|it| id(&it.name).to_owned());
        assert_eq!(found("snap-1").unwrap(), "snap-1", "an id goes before a name");
        assert_eq!(found("vms/1/snapshots/snap-2").unwrap(), "snap-2");
        assert_eq!(found("y").unwrap(), "x");
        let told = found("exam").unwrap_err().to_string();
        assert!(told.contains("snap-1") && told.contains("snap-2"), "{told}");
        assert_eq!(found("z").unwrap_err().exit_code(), 2);
    }
}
