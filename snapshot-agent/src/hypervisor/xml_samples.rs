//! XML as libvirt 11.3 wrote it.

pub(super) const DOMAIN_RUNNING: &str = include_str!("xml_samples/domain_running.xml");
pub(super) const DOMAIN_OFF: &str = include_str!("xml_samples/domain_off.xml");
pub(super) const SNAPSHOT_RUNNING: &str = include_str!("xml_samples/snapshot_running.xml");
pub(super) const SNAPSHOT_OFF: &str = include_str!("xml_samples/snapshot_off.xml");
pub(super) const SNAPSHOT_EXTERNAL: &str = include_str!("xml_samples/snapshot_external.xml");
pub(super) const HARDWARE_SNAPSHOT: &str = include_str!("xml_samples/hardware_snapshot.xml");
pub(super) const HARDWARE_RUNNING: &str = include_str!("xml_samples/hardware_running.xml");
pub(super) const HARDWARE_NEXT_START: &str = include_str!("xml_samples/hardware_next_start.xml");
