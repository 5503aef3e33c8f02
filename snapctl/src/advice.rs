//! What to do about a reason: the table of docs/errors.md, which is built in, so that there is one text.

const TABLE: &str = include_str!("../../docs/errors.md");

/// What happened and who does what about it, by a reason such as `VM_BUSY`; `None` for one that the table does not have.
pub(crate) fn advice(reason: &str) -> Option<&'static str> {
    let row = TABLE.lines().find(|line| {
        let name = line.strip_prefix("| `").and_then(|rest| rest.split_once('`'));
        name.is_some_and(|(name, _)| name == reason)
    })?;
    row.trim_end_matches(['|', ' ']).rsplit_once(" | ").map(|(_, advice)| advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table_can_be_found() {
        let rows = TABLE.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let reasons: Vec<&str> = rows.map(|(reason, _)| reason).collect();
        assert!(reasons.len() > 40, "{reasons:?}");
        for reason in reasons {
            let advice = advice(reason).unwrap_or_default();
            assert!(advice.ends_with('.') && advice.len() > 10, "{reason}: {advice:?}");
        }
        assert!(advice("TOKEN_EXPIRED").is_some_and(|text| text.contains("gets a new one")));
        assert_eq!(advice("NO_SUCH_REASON"), None);
    }
}
