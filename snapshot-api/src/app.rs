//! What every RPC works with.

use std::sync::Arc;

use capability::Verifier;
use snapshot_core::authority::{self, Action, AdminPermit, Caller, Permit};
use snapshot_core::ids::{HostId, VmId};
use snapshot_core::quota;
use snapshot_core::{Error, Reason};
use tokio_util::sync::CancellationToken;
use tonic::Request;

use crate::agents::Agent;
use crate::audit::{Audit, Trail};
use crate::clock::Clock;
use crate::hosts::Hosts;
use crate::limits::Limits;
use crate::store::Store;

/// The service's parts; clones share them.
#[derive(Clone)]
pub struct App {
    /// The catalogue.
    pub store: Store,
    /// The hosts that are configured now.
    pub hosts: Arc<Hosts>,
    /// Checks tokens.
    pub verifier: Arc<Verifier>,
    /// What callers may use.
    pub limits: Arc<Limits>,
    /// Writes down who asked for what.
    pub audit: Audit,
    /// How much each user may keep.
    pub user_quota: quota::Limits,
    /// What time it is.
    pub clock: Clock,
    /// Cancelled when the service stops.
    pub stopping: CancellationToken,
}

/// A request, with who made it.
pub struct Call<T> {
    /// Who.
    pub caller: Caller,
    /// Their token, to be shown to the agent. The secret that came with it is not kept: no agent may see it.
    pub token: String,
    /// What follows the call through the processes.
    pub request_id: String,
    /// What is known of the call, for the audit trail.
    pub trail: Trail,
    /// What is asked.
    pub message: T,
}

impl<T> Call<T> {
    /// The permit for an action, or the refusal.
    pub fn authorize(&self, vm: VmId, action: Action) -> Result<Permit, Error> {
        self.trail.about(vm);
        authority::authorize(&self.caller, vm, action).map_err(|denied| {
            self.trail.denied(action);
            denied.about(vm)
        })
    }

    /// The permit to look after hosts, or the refusal.
    pub fn authorize_admin(&self) -> Result<AdminPermit, Error> {
        authority::authorize_admin(&self.caller).map_err(|denied| {
            self.trail.denied(Action::Admin);
            denied.over_hosts()
        })
    }
}

impl App {
    /// Finds out who makes a request.
    pub fn authenticate<T>(&self, request: Request<T>, request_id: String, trail: Trail) -> Result<Call<T>, Error> {
        let credential = capability::bearer(request.metadata().as_ref())?;
        let verified = self.verifier.verify_credential(credential, self.clock.now_s());
        if let Some(header) = request.metadata().as_ref().get(http::header::AUTHORIZATION) {
            // By the whole credential: a token without its secret is not known by it.
            self.limits.found(header.as_bytes(), verified.is_ok());
        }
        let (caller, token) = verified?;
        trail.by(caller.actor());
        Ok(Call { caller, token, request_id, trail, message: request.into_inner() })
    }

    /// The agent of a host.
    pub fn agent(&self, host: &HostId) -> Result<Agent, Error> {
        self.hosts.get(host).ok_or_else(|| {
            let name = proto::names::host(host);
            Error::new(Reason::HostUnreachable, format!("{name} is not configured any more")).with("host", name)
        })
    }
}
