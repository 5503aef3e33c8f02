//! ReconcileHost: reads the whole state of a host again and corrects the catalogue by it.

use std::time::Instant;

use proto::convert::duration_millis;
use proto::v1;
use snapshot_core::Error;

use super::get_host::find;
use crate::app::{App, Call};
use crate::view;

pub async fn call(app: &App, call: Call<v1::ReconcileHostRequest>) -> Result<v1::ReconcileHostResponse, Error> {
    call.authorize_admin()?;
    let agent = find(app, &call.message.name)?;
    let begun = Instant::now();
    let corrected = agent.reconcile().await?;
    Ok(v1::ReconcileHostResponse {
        host: Some(view::host::host(app, &agent)?),
        corrected_count: i32::try_from(corrected).unwrap_or(i32::MAX),
        duration: Some(duration_millis(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX))),
    })
}
