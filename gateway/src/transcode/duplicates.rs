//! Keys that are in a JSON object twice.
//!
//! Which of two values counts depends on who reads them: a proxy that checks the first and a gateway that takes the last do not
//! speak of the same request. Two spellings of one field (`request_id`, `requestId`) are one key.

use std::collections::HashSet;
use std::fmt;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The path of the first key that is there twice, such as `snapshot.display_name` or `paths[2]`. What is no JSON has none: it is
/// refused for that by who reads it next.
pub(super) fn find(json: &[u8], message: &MessageDescriptor) -> Option<String> {
    let mut found = None;
    let mut reader = serde_json::Deserializer::from_slice(json);
    let walk = Walk { shape: Shape::of(message), path: String::new(), found: &mut found };
    // The error is that of the key, or of what is no JSON.
    let _ = walk.deserialize(&mut reader);
    found
}

/// What the keys of an object are.
#[derive(Clone)]
enum Shape {
    /// Fields of a message.
    Message(MessageDescriptor),
    /// Keys of a map, with values of this field's kind.
    Map(FieldDescriptor),
    /// A value of which no descriptor is known, or none is needed.
    Plain,
}

impl Shape {
    fn of(message: &MessageDescriptor) -> Self {
        // Those have forms of their own in JSON.
        if message.package_name() == "google.protobuf" { Self::Plain } else { Self::Message(message.clone()) }
    }

    fn of_field(field: &FieldDescriptor) -> Self {
        match field.kind() {
            Kind::Message(entry) if entry.is_map_entry() => Self::Map(entry.map_entry_value_field()),
            Kind::Message(message) => Self::of(&message),
            _ => Self::Plain,
        }
    }

    /// What a key is called whatever its spelling, and what is below it.
    fn below(&self, key: &str) -> (String, Self) {
        match self {
            Self::Message(message) => {
                let field = message.get_field_by_json_name(key).or_else(|| message.get_field_by_name(key));
                field.map_or_else(
                    || (key.to_owned(), Self::Plain),
                    |field| (field.name().to_owned(), Self::of_field(&field)),
                )
            }
            Self::Map(value) => (key.to_owned(), Self::of_field(value)),
            Self::Plain => (key.to_owned(), Self::Plain),
        }
    }
}

struct Walk<'a> {
    shape: Shape,
    path: String,
    found: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            let (name, shape) = self.shape.below(&key);
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            if !seen.insert(name) {
                *self.found = Some(path);
                return Err(A::Error::custom("a key is there twice"));
            }
            map.next_value_seed(Walk { shape, path, found: &mut *self.found })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        for index in 0_usize.. {
            let path = format!("{}[{index}]", self.path);
            let item = Walk { shape: self.shape.clone(), path, found: &mut *self.found };
            if items.next_element_seed(item)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::Methods;

    fn input(method: &str) -> MessageDescriptor {
        let methods = Methods::load().expect("the built-in descriptors");
        methods.get(&format!("ravada.snapshot.v1.{method}")).expect("the method").input.clone()
    }

    #[test]
    fn a_key_that_is_there_twice_is_found_with_its_path() {
        let create = input("SnapshotService/CreateSnapshot");
        for (json, path) in [
            (r#"{"parent":"vms/1","parent":"vms/2"}"#, "parent"),
            (r#"{"requestId":"a","request_id":"b"}"#, "request_id"),
            (r#"{"request_id":null,"requestId":"b"}"#, "request_id"),
            (r#"{"snapshot":{"displayName":"a","display_name":"a"}}"#, "snapshot.display_name"),
            (r#"{"snapshot":{"protected":true},"snapshot":{}}"#, "snapshot"),
            (r#"{"p\u0061rent":"vms/1","parent":"vms/2"}"#, "parent"),
            (r#"{"unknown":{"a":[{},{"b":1,"b":2}]}}"#, "unknown.a[1].b"),
            // Found, although the rest cannot be read.
            (r#"{"parent":"vms/1","parent":"vms/2""#, "parent"),
        ] {
            assert_eq!(find(json.as_bytes(), &create).as_deref(), Some(path), "{json}");
        }
        for json in [
            r#"{"parent":"vms/1","requestId":"a","snapshot":{"displayName":"parent","description":"parent"}}"#,
            r#"[{"parent":1},{"parent":2}]"#,
            r#"{"parent":[1,-2,3.5,true,null,"x"]}"#,
            "{",
            "",
            "\u{ff}",
        ] {
            assert_eq!(find(json.as_bytes(), &create), None, "{json}");
        }
    }

    /// Every field of every request, under both of its names.
    #[test]
    fn both_spellings_of_every_field_of_every_request_are_one_key() {
        let methods = Methods::load().expect("the built-in descriptors");
        let mut spellings = 0;
        for method in methods.iter() {
            for field in method.input.fields() {
                let (name, json) = (field.name(), field.json_name());
                spellings += usize::from(name != json);
                let twice = format!("{{\"{json}\":null,\"{name}\":null}}");
                assert_eq!(find(twice.as_bytes(), &method.input).as_deref(), Some(name), "{}", method.name);
            }
        }
        assert!(spellings > 20, "{spellings}");
    }

    #[test]
    fn nesting_has_a_bound() {
        let deep = format!("{}{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        assert_eq!(find(deep.as_bytes(), &input("SnapshotService/GetVm")), None);
    }
}
