//! Pages (AIP-158). A token says which query it belongs to and after which row to go on, so rows that are inserted or
//! removed meanwhile neither repeat nor hide others.

use std::hash::{DefaultHasher, Hash, Hasher};

use snapshot_core::{Error, Reason};

const DEFAULT_SIZE: usize = 100;
const MAX_SIZE: usize = 1000;

/// Which rows to fetch.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// How many.
    pub size: usize,
    /// The key of the last row of the page before.
    pub after: Option<String>,
    query: u64,
}

impl Page {
    /// Reads the size and token of a request. `query` is everything else that decides which rows there are.
    pub fn parse(page_size: i32, page_token: &str, query: impl Hash) -> Result<Self, Error> {
        let size = match usize::try_from(page_size) {
            Err(_) => return Err(Error::invalid("page_size", "is negative")),
            Ok(0) => DEFAULT_SIZE,
            Ok(size) => size.min(MAX_SIZE),
        };
        let mut hasher = DefaultHasher::new();
        query.hash(&mut hasher);
        let query = hasher.finish();
        let after = if page_token.is_empty() { None } else { Some(decode(page_token, query)?) };
        Ok(Self { size, after, query })
    }

    /// Cuts one row more than the page holds down to the page, and makes the token of the next where there is one.
    pub fn cut<T>(&self, rows: &mut Vec<T>, key: impl FnOnce(&T) -> String) -> String {
        if rows.len() <= self.size {
            return String::new();
        }
        rows.truncate(self.size);
        rows.last().map(|row| self.token(&key(row))).unwrap_or_default()
    }

    /// The token of the page after the row with this key.
    pub fn token(&self, key: &str) -> String {
        format!("{:016x}.{key}", self.query)
    }

    /// How many rows to ask for, to know whether there is a next page.
    pub fn fetch(&self) -> usize {
        self.size + 1
    }

    /// The key, in its type.
    pub fn after<T: std::str::FromStr>(&self) -> Result<Option<T>, Error> {
        self.after.as_deref().map(|key| key.parse().map_err(|_| bad_token())).transpose()
    }
}

fn decode(token: &str, query: u64) -> Result<String, Error> {
    let (prefix, key) = token.split_once('.').ok_or_else(bad_token)?;
    if prefix == format!("{query:016x}") { Ok(key.to_owned()) } else { Err(bad_token()) }
}

fn bad_token() -> Error {
    Error::new(Reason::InvalidPageToken, "page_token was not made for this query").with("field", "page_token")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_where_the_page_ended_and_only_for_its_query() {
        let first = Page::parse(2, "", ("list", "a")).unwrap();
        let mut rows = vec![1, 2, 3];
        let token = first.cut(&mut rows, ToString::to_string);
        assert_eq!(rows, [1, 2]);
        let next = Page::parse(2, &token, ("list", "a")).unwrap();
        assert_eq!(next.after::<i64>().unwrap(), Some(2));
        for (token, query) in [(token.as_str(), "b"), ("", "a"), ("x", "a"), ("0.2", "a"), (".", "a")] {
            let result = Page::parse(2, token, ("list", query));
            assert_eq!(result.is_ok(), token.is_empty(), "{token}");
        }
        assert_eq!(next.cut(&mut vec![3, 4], ToString::to_string), "");
    }

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(Page::parse(0, "", ()).unwrap().size, 100);
        assert_eq!(Page::parse(i32::MAX, "", ()).unwrap().size, 1000);
        assert!(Page::parse(-1, "", ()).is_err());
    }
}
