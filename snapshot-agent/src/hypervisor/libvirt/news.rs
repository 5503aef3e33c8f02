//! Events: what libvirt tells without being asked.
//!
//! A thread holds a connection of its own, registers for every event that can change what is told of a machine, and
//! waits until the connection is lost; then it opens another. Each event puts the machine into the [`Inbox`]; the event
//! itself is not looked at.
//!
//! There is no event for a snapshot taken or deleted by another tool: those are found by looking.

use std::ffi::{c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use snapshot_core::ids::VmId;
use uuid::Uuid;
use virt::connect::Connect;
use virt_sys as sys;

use super::super::Failure;
use super::super::inbox::Inbox;
use super::link;

/// How often to look whether the connection is there, besides being told when it is lost.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How long to wait before a connection is opened again.
const REOPEN_PAUSE: Duration = Duration::from_millis(500);

/// The thread that events arrive on; it ends when this is dropped.
pub(super) struct News(Arc<Shared>);

struct Shared {
    uri: String,
    inbox: Arc<Inbox>,
    stopping: AtomicBool,
    closed: Mutex<bool>,
    woken: Condvar,
}

impl News {
    pub(super) fn start(uri: &str, inbox: Arc<Inbox>) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            uri: uri.to_owned(),
            inbox,
            stopping: AtomicBool::new(false),
            closed: Mutex::new(false),
            woken: Condvar::new(),
        });
        let thread = Arc::clone(&shared);
        thread::Builder::new().name("libvirt-news".to_owned()).spawn(move || thread.run())?;
        Ok(Self(shared))
    }
}

impl Drop for News {
    fn drop(&mut self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        self.0.close();
    }
}

impl Shared {
    fn run(&self) {
        while !self.stopping.load(Ordering::Relaxed) {
            // `virt` panics where libvirt refuses to release something; the thread has to outlive that.
            match catch_unwind(AssertUnwindSafe(|| self.follow())) {
                Ok(Ok(())) => {}
                Ok(Err(failure)) => tracing::debug!(%failure, "no connection for events"),
                Err(_) => tracing::warn!("the libvirt binding panicked on the connection for events"),
            }
            self.set_connected(false);
            thread::sleep(REOPEN_PAUSE);
        }
    }

    /// Opens a connection and stays until it is lost.
    fn follow(&self) -> Result<(), Failure> {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = false;
        let connection = link::open(&self.uri)?;
        let registered = Registered::new(&connection, self)?;
        self.set_connected(true);
        tracing::info!(uri = self.uri, "connected to libvirt");
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        while !*closed && link::is_alive(&connection) {
            (closed, _) = self.woken.wait_timeout(closed, CHECK_INTERVAL).unwrap_or_else(PoisonError::into_inner);
        }
        drop(closed);
        if !self.stopping.load(Ordering::Relaxed) {
            tracing::warn!(uri = self.uri, "the connection to libvirt is lost");
        }
        drop(registered);
        Ok(())
    }

    fn set_connected(&self, connected: bool) {
        metrics::gauge!("snapshot_agent_libvirt_connected").set(f64::from(u8::from(connected)));
        self.inbox.set_connected(connected);
    }

    fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_all();
    }
}

type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);

/// Callbacks on a connection, until this is dropped.
struct Registered<'a> {
    connection: &'a Connect,
    ids: Vec<c_int>,
    /// Kept alive for the close callback, which is handed a pointer to it.
    shared: &'a Shared,
}

impl<'a> Registered<'a> {
    fn new(connection: &'a Connect, shared: &'a Shared) -> Result<Self, Failure> {
        let mut registered = Self { connection, ids: Vec::new(), shared };
        registered.on_close();
        // SAFETY: libvirt calls back with the signature that belongs to the kind of event, whatever the type it is
        // handed through, and each of these functions has the signature of its kind
        // (virConnectDomainEventCallback and its sisters in libvirt-domain.h).
        let kinds: [(u32, Generic); 5] = unsafe {
            [
                (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, std::mem::transmute::<Lifecycle, Generic>(lifecycle)),
                (sys::VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, std::mem::transmute::<BlockJob, Generic>(block_job)),
                (sys::VIR_DOMAIN_EVENT_ID_TRAY_CHANGE, std::mem::transmute::<Tray, Generic>(tray)),
                (sys::VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, std::mem::transmute::<Device, Generic>(device)),
                (sys::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, std::mem::transmute::<Device, Generic>(device)),
            ]
        };
        for (kind, callback) in kinds {
            registered.register(kind, callback)?;
        }
        Ok(registered)
    }

    fn register(&mut self, kind: u32, callback: Generic) -> Result<(), Failure> {
        let inbox = Arc::into_raw(Arc::clone(&self.shared.inbox)).cast_mut().cast::<c_void>();
        let kind = c_int::try_from(kind).unwrap_or(c_int::MAX);
        // SAFETY: the connection is open; a null domain means all of them; `inbox` is a counted reference that libvirt
        // gives back through `release_inbox` when the callback is deregistered, and only then.
        let id = unsafe {
            sys::virConnectDomainEventRegisterAny(
                self.connection.as_ptr(),
                ptr::null_mut(),
                kind,
                Some(callback),
                inbox,
                Some(release_inbox),
            )
        };
        if id < 0 {
            let error = virt::error::Error::last_error();
            // SAFETY: libvirt did not take the reference over, so it is still ours to release, once.
            unsafe { release_inbox(inbox) };
            return Err(error.into());
        }
        self.ids.push(id);
        Ok(())
    }

    /// Asks to be told when the connection is lost. The embedded driver cannot tell, and is never lost.
    fn on_close(&self) {
        let shared = ptr::from_ref(self.shared).cast_mut().cast::<c_void>();
        // SAFETY: the connection is open, and `shared` outlives the registration, which `drop` ends.
        let result =
            unsafe { sys::virConnectRegisterCloseCallback(self.connection.as_ptr(), Some(closed), shared, None) };
        if result < 0 {
            tracing::debug!("libvirt does not tell when this connection is lost");
        }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // SAFETY: the connection is still open on our side, and the ids came from it. On a lost connection libvirt
        // forgets the callbacks all the same; there is nobody to tell about a failure.
        unsafe {
            for id in &self.ids {
                sys::virConnectDomainEventDeregisterAny(self.connection.as_ptr(), *id);
            }
            sys::virConnectUnregisterCloseCallback(self.connection.as_ptr(), Some(closed));
        }
    }
}

unsafe extern "C" fn release_inbox(opaque: *mut c_void) {
    // SAFETY: called once for each pointer that `register` made out of a counted reference.
    drop(unsafe { Arc::from_raw(opaque.cast::<Inbox>()) });
}

unsafe extern "C" fn closed(_: sys::virConnectPtr, _: c_int, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `Shared` that `on_close` was given, which outlives the registration.
    unsafe { &*opaque.cast::<Shared>() }.close();
}

type Lifecycle = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type BlockJob = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, c_int, c_int, *mut c_void);
type Tray = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, c_int, *mut c_void);
type Device = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *const c_char, *mut c_void);

unsafe extern "C" fn lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _event: c_int,
    _detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: as in `tell`, whose requirements libvirt meets for the length of the call.
    unsafe { tell(domain, opaque) };
    0
}

unsafe extern "C" fn block_job(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _disk: *const c_char,
    _kind: c_int,
    _status: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as in `tell`, whose requirements libvirt meets for the length of the call.
    unsafe { tell(domain, opaque) };
}

unsafe extern "C" fn tray(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as in `tell`, whose requirements libvirt meets for the length of the call.
    unsafe { tell(domain, opaque) };
}

unsafe extern "C" fn device(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: as in `tell`, whose requirements libvirt meets for the length of the call.
    unsafe { tell(domain, opaque) };
}

/// Puts the machine of an event into the inbox.
///
/// # Safety
/// `domain` is a domain of libvirt's, and `opaque` the inbox that the callback was registered with; both live as long
/// as this call.
unsafe fn tell(domain: sys::virDomainPtr, opaque: *mut c_void) {
    let mut uuid = [0; sys::VIR_UUID_BUFLEN as usize];
    // SAFETY: the caller vouches for the domain, and the buffer has the length that libvirt writes.
    let result = unsafe { sys::virDomainGetUUID(domain, uuid.as_mut_ptr()) };
    // SAFETY: the caller vouches for the inbox.
    let inbox = unsafe { &*opaque.cast::<Inbox>() };
    if result == 0 {
        inbox.tell(VmId::from_uuid(Uuid::from_bytes(uuid)));
    }
}
