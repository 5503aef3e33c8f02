//! What would be done and lost.

use proto::v1;

use super::{clean, duration, size};

/// A plan in sentences.
pub(crate) fn plan(plan: &v1::OperationPlan) -> String {
    let mut text = String::from("This would be done:\n");
    for step in &plan.steps {
        text += &format!("  - {}\n", clean(&step.description));
    }
    if plan.bytes_written > 0 {
        text += &format!("  About {} would be written.\n", size(plan.bytes_written));
    }
    if plan.pauses {
        let long = plan.predicted_pause.as_ref().map(|pause| format!(", for about {}", duration(pause)));
        text += &format!("  The machine stands still meanwhile{}.\n", long.unwrap_or_default());
    }
    text + &losses(plan)
}

fn losses(plan: &v1::OperationPlan) -> String {
    if plan.losses.is_empty() {
        return "Nothing would be lost.\n".to_owned();
    }
    let lines = plan.losses.iter().map(|loss| format!("  - {}\n", clean(loss)));
    std::iter::once("This would be lost for good:\n".to_owned()).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_and_so_is_that_nothing_is() {
        let nothing = plan(&v1::OperationPlan::default());
        assert!(nothing.ends_with("Nothing would be lost.\n"), "{nothing}");
        let losses = vec!["all that was written".to_owned()];
        let told = plan(&v1::OperationPlan { losses, bytes_written: 2048, pauses: true, ..Default::default() });
        assert!(told.contains("lost for good:\n  - all that was written") && told.contains("2.0 KiB"), "{told}");
    }
}
