//! Page tokens, etags and resume tokens.
//!
//! Only what was made for a query is taken by it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshot_api::fuzzing::{Page, etag};

fuzz_target!(|data: (i32, &str, &str)| {
    let (size, token, query) = data;
    if let Some((revision, again)) = etag("epoch", token) {
        assert_eq!(etag("epoch", &again), Some((revision, again)), "an etag of ours");
    }
    let Ok(page) = Page::parse(size, token, query) else { return };
    assert!((1..=1000).contains(&page.size) && page.fetch() == page.size + 1);
    let _ = (page.after::<i64>(), page.after::<String>());
    let mut rows: Vec<usize> = (0..page.fetch()).collect();
    let next = page.cut(&mut rows, ToString::to_string);
    let next_page = Page::parse(size, &next, query).expect("our own token");
    assert_eq!(next_page.after::<usize>().expect("our own key"), Some(page.size - 1));
    assert!(Page::parse(size, &next, (query, "another")).is_err(), "a token of another query");
});
