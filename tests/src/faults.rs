//! A campaign of faults against a whole system, and a checker that knows nothing of it.
//!
//! Real guests on a private libvirt daemon, real gateway, API and agent. Each machine is driven by a lane ([`lane`]) of
//! acts that a seed decides ([`script`]), while processes are killed and stopped, ways are cut and file systems fill
//! ([`strike`]). In rooms beside them ([`foreign`]) administrators and users are at work on many small VMs. The model ([`model`]) knows only what was asked, what was answered and what the guests were made to write;
//! when everything is quiet again, what is to be seen ([`check`]) is judged by it ([`judge`]). [`campaign`] does rounds of
//! that, and keeps the history and the logs of one that found something.
//!
//! The same seed gives the same sequence of acts and of faults. When each of them happens hangs on the machine's speed,
//! so a violation may take several replays to come again.

pub mod ask;
pub mod calm;
pub mod campaign;
pub mod check;
pub mod files;
pub mod foreign;
pub mod history;
pub mod judge;
pub mod lane;
pub mod model;
pub mod proxy;
pub mod rng;
pub mod sabotage;
pub mod script;
pub mod space;
pub mod strike;
pub mod world;
