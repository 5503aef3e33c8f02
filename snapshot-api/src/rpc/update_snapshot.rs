//! UpdateSnapshot: changes the name, description or protection of a snapshot.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Action;
use snapshot_core::description::Label;
use snapshot_core::operation::Request;
use snapshot_core::text::{Description, DisplayName};

use crate::app::{App, Call};
use crate::mutation::{Options, fingerprint, mutate, replayed};

pub async fn call(app: &App, call: Call<v1::UpdateSnapshotRequest>) -> Result<v1::Operation, Error> {
    let request = &call.message;
    let wanted = request.snapshot.as_ref().ok_or_else(|| Error::invalid("snapshot", "is required"))?;
    let (vm, id) = names::parse_snapshot("snapshot.name", &wanted.name)?;
    let permit = call.authorize(vm, Action::Update)?;
    let paths = request.update_mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
    let fields = Fields::parse(paths)?;
    let same = v1::UpdateSnapshotRequest { request_id: String::new(), validate_only: false, ..request.clone() };
    let options = Options {
        request_id: &request.request_id,
        request_id_required: false,
        validate_only: request.validate_only,
        etag: &wanted.etag,
        fingerprint: fingerprint("UpdateSnapshot", &same),
    };
    if let Some(first) = replayed(app, &call, &permit, &options)? {
        return Ok(first);
    }
    app.store.vm(vm)?;
    let label = fields.apply(wanted, app.store.snapshot(vm, &id)?.facts.label)?;
    let update = Request::Update {
        snapshot: id,
        display_name: label.display_name,
        description: label.description,
        protected: label.protected,
    };
    mutate(app, &call, permit, options, update).await
}

/// Which fields to set (AIP-134).
#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    display_name: bool,
    description: bool,
    protected: bool,
}

impl Fields {
    fn parse(paths: &[String]) -> Result<Self, Error> {
        if paths.is_empty() {
            return Ok(Self { display_name: true, description: true, protected: true });
        }
        let mut fields = Self::default();
        for path in paths {
            match path.as_str() {
                "*" => fields = Self::parse(&[])?,
                "display_name" => fields.display_name = true,
                "description" => fields.description = true,
                "protected" => fields.protected = true,
                other => {
                    return Err(Error::invalid("update_mask", format!("{other:?} is not a field that can be changed")));
                }
            }
        }
        Ok(fields)
    }

    fn apply(&self, wanted: &v1::Snapshot, mut label: Label) -> Result<Label, Error> {
        if self.display_name {
            label.display_name = DisplayName::parse(&wanted.display_name)?;
        }
        if self.description {
            label.description = Description::parse(&wanted.description)?;
        }
        if self.protected {
            label.protected = wanted.protected;
        }
        Ok(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_names_fields_that_can_be_changed() {
        let parse = |paths: &[&str]| Fields::parse(&paths.iter().map(ToString::to_string).collect::<Vec<_>>());
        let all = Fields { display_name: true, description: true, protected: true };
        assert_eq!(parse(&[]).unwrap(), all);
        assert_eq!(parse(&["*"]).unwrap(), all);
        assert_eq!(parse(&["protected"]).unwrap(), Fields { protected: true, ..Fields::default() });
        for wrong in ["name", "create_time", "", "display_name.x"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }
}
