//! The elements and attributes of a definition that are understood, as the tables beside this file list them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The tables: `<domain>`, its disks, its other devices.
const SOURCES: [&str; 3] = [include_str!("domain.txt"), include_str!("disks.txt"), include_str!("devices.txt")];

/// What is understood.
pub(super) static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(SOURCES));

/// One element that is understood, or a group of what several elements share.
#[derive(Debug, Default)]
pub(super) struct Entry {
    name: &'static str,
    /// Each with the values that are understood; `None` for any value.
    attributes: Vec<(&'static str, Option<Vec<&'static str>>)>,
    children: Vec<usize>,
    groups: Vec<&'static str>,
    /// Any attributes and any children.
    any: bool,
}

/// How an attribute is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Understood {
    Yes,
    /// The attribute is, and not with this value.
    NotTheValue,
    No,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Entry>,
    groups: BTreeMap<&'static str, usize>,
}

impl Table {
    pub(super) fn parse(sources: impl IntoIterator<Item = &'static str>) -> Self {
        let mut table = Self::default();
        for source in sources {
            // The entries that the line is in, by their depth.
            let mut open: Vec<usize> = Vec::new();
            for line in source.lines() {
                let words = line.trim_start();
                if words.is_empty() || words.starts_with('#') {
                    continue;
                }
                open.truncate((line.len() - words.len()) / 2);
                if let (Some(group), Some(parent)) = (words.strip_prefix('+'), open.last()) {
                    table.entries[*parent].groups.push(group);
                    continue;
                }
                let place = table.entries.len();
                let entry = Entry::parse(words);
                match (open.last(), entry.name.strip_prefix('$')) {
                    (Some(parent), _) => table.entries[*parent].children.push(place),
                    (None, Some(group)) => drop(table.groups.insert(group, place)),
                    (None, None) => drop(table.groups.insert(entry.name, place)),
                }
                table.entries.push(entry);
                open.push(place);
            }
        }
        table
    }

    /// The outermost element.
    pub(super) fn domain(&self) -> Option<&Entry> {
        self.group("domain")
    }

    fn group(&self, name: &str) -> Option<&Entry> {
        self.groups.get(name).map(|place| &self.entries[*place])
    }

    fn groups<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = &'a Entry> {
        entry.groups.iter().filter_map(|name| self.group(name))
    }

    /// The entry of an element within another; an entry of which anything is understood stands for all within it.
    pub(super) fn child<'a>(&'a self, entry: &'a Entry, name: &str) -> Option<&'a Entry> {
        if entry.any {
            return Some(entry);
        }
        let own = entry.children.iter().map(|place| &self.entries[*place]).find(|child| child.name == name);
        own.or_else(|| self.groups(entry).find_map(|group| self.child(group, name)))
    }

    pub(super) fn attribute(&self, entry: &Entry, name: &str, value: &str) -> Understood {
        if entry.any {
            return Understood::Yes;
        }
        match entry.attributes.iter().find(|(own, _)| *own == name) {
            Some((_, Some(values))) if !values.contains(&value) => Understood::NotTheValue,
            Some(_) => Understood::Yes,
            None => {
                let mut of_groups = self.groups(entry).map(|group| self.attribute(group, name, value));
                of_groups.find(|understood| *understood != Understood::No).unwrap_or(Understood::No)
            }
        }
    }

    /// The groups that are included and not defined.
    #[cfg(test)]
    pub(super) fn missing_groups(&self) -> Vec<&'static str> {
        let included = self.entries.iter().flat_map(|entry| &entry.groups);
        included.copied().filter(|name| !self.groups.contains_key(name)).collect()
    }

    /// The path of each entry, groups resolved, for tests that go through all of them.
    #[cfg(test)]
    pub(super) fn paths(&self) -> Vec<Vec<&'static str>> {
        let mut paths = Vec::new();
        if let Some(domain) = self.domain() {
            self.collect(domain, &mut Vec::new(), &mut paths);
        }
        paths
    }

    #[cfg(test)]
    fn collect(&self, entry: &Entry, path: &mut Vec<&'static str>, paths: &mut Vec<Vec<&'static str>>) {
        for child in entry.children.iter().map(|place| &self.entries[*place]) {
            // A chain of backing files is described as deep as it is.
            if path.contains(&child.name) && child.name == "backingStore" {
                continue;
            }
            path.push(child.name);
            if !child.any {
                paths.push(path.clone());
            }
            self.collect(child, path, paths);
            path.pop();
        }
        for group in self.groups(entry) {
            self.collect(group, path, paths);
        }
    }
}

impl Entry {
    fn parse(words: &'static str) -> Self {
        let mut words = words.split_whitespace();
        let mut entry = Self { name: words.next().unwrap_or_default(), ..Self::default() };
        for word in words {
            match (word, word.split_once('=')) {
                ("*", _) => entry.any = true,
                (_, Some((name, values))) => entry.attributes.push((name, Some(values.split('|').collect()))),
                (name, None) => entry.attributes.push((name, None)),
            }
        }
        entry
    }
}
