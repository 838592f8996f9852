//! The `parameters` member of a JSON body: what the protocol knows is read, everything else is skipped without being
//! kept, so that a body never takes much more memory than its own length.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::error::WireError;
use crate::header::{parse_dimension, parse_dimension_list, push_dimension};
use crate::parameters::Parameters;
use crate::query::SCALAR_KEYS;

/// The parameters found, or the first thing that is wrong with one.
pub(crate) struct Members {
    parameters: Parameters,
    error: Option<WireError>,
}

impl Members {
    /// # Errors
    /// What [`Parameters::from_query`] gives for a parameter.
    pub(crate) fn into_parameters(self) -> Result<Parameters, WireError> {
        self.error.map_or(Ok(self.parameters), Err)
    }

    fn note(&mut self, outcome: Result<(), WireError>) {
        if let Err(error) = outcome {
            self.error.get_or_insert(error);
        }
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Members { parameters: Parameters::default(), error: None };
                while let Some(Key(key)) = map.next_key()? {
                    match key {
                        Known::Other => drop(map.next_value::<IgnoredAny>()?),
                        Known::Scalar(name) => map.next_value_seed(Scalar { name, members: &mut members })?,
                        Known::Shape => map.next_value_seed(Shape { members: &mut members })?,
                    }
                }
                Ok(members)
            }
        }
        from.deserialize_map(Object)
    }
}

enum Known {
    Scalar(&'static str),
    Shape,
    Other,
}

struct Key(Known);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, text: &str) -> Result<Key, E> {
                let scalar = SCALAR_KEYS.into_iter().find(|&name| name == text);
                Ok(Key(match scalar {
                    Some(name) => Known::Scalar(name),
                    None if text == "shape" => Known::Shape,
                    None => Known::Other,
                }))
            }
        }
        from.deserialize_str(Name)
    }
}

/// Skips the rest of an array.
fn skip_sequence<'de, A: SeqAccess<'de>>(mut sequence: A) -> Result<(), A::Error> {
    while sequence.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

/// Skips the rest of an object.
fn skip_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

/// What messages show of a value that has parts.
const LIST: &str = "[…]";
const OBJECT: &str = "{…}";

/// Sets one parameter from the text its value would have in a query; null is absence.
struct Scalar<'a> {
    name: &'static str,
    members: &'a mut Members,
}

impl Scalar<'_> {
    fn set(self, text: &str) {
        let outcome = self.members.parameters.set(self.name, text);
        self.members.note(outcome);
    }
}

impl<'de> DeserializeSeed<'de> for Scalar<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scalar<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.set(if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.set(&value.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.set(&value.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.set(&format!("{value:?}"));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.set(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<(), A::Error> {
        self.set(LIST);
        skip_sequence(sequence)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        self.set(OBJECT);
        skip_map(map)
    }
}

/// Sets the shape from an array of whole numbers, or from one string that holds a list.
struct Shape<'a> {
    members: &'a mut Members,
}

impl Shape<'_> {
    fn refuse<E: de::Error>(self, found: &str) -> Result<(), E> {
        self.members.note(Err(WireError::invalid("shape", found, "a list of whole numbers")));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Shape<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shape<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.refuse(&value.to_string())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.refuse(&value.to_string())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.refuse(&value.to_string())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.refuse(&format!("{value:?}"))
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        let outcome = parse_dimension_list(text.trim()).map(|shape| {
            self.members.parameters.shape = Some(shape);
        });
        self.members.note(outcome);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = sequence.next_element::<Dimension>()? {
            let outcome = dimension.0.and_then(|dimension| push_dimension(&mut shape, dimension));
            if outcome.is_err() {
                self.members.note(outcome);
                return skip_sequence(sequence);
            }
        }
        self.members.parameters.shape = Some(shape);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        skip_map(map)?;
        self.refuse(OBJECT)
    }
}

/// One dimension of a shape: a whole number.
struct Dimension(Result<usize, WireError>);

impl<'de> Deserialize<'de> for Dimension {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Number;
        impl<'de> Visitor<'de> for Number {
            type Value = Dimension;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_unit<E>(self) -> Result<Dimension, E> {
                Ok(Dimension(parse_dimension("null")))
            }

            fn visit_bool<E>(self, value: bool) -> Result<Dimension, E> {
                Ok(Dimension(parse_dimension(&value.to_string())))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Dimension, E> {
                Ok(Dimension(parse_dimension(&value.to_string())))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Dimension, E> {
                Ok(Dimension(parse_dimension(&value.to_string())))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Dimension, E> {
                Ok(Dimension(parse_dimension(&format!("{value:?}"))))
            }

            fn visit_str<E>(self, _: &str) -> Result<Dimension, E> {
                Ok(Dimension(parse_dimension("\"…\"")))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<Dimension, A::Error> {
                skip_sequence(sequence)?;
                Ok(Dimension(parse_dimension(LIST)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Dimension, A::Error> {
                skip_map(map)?;
                Ok(Dimension(parse_dimension(OBJECT)))
            }
        }
        from.deserialize_any(Number)
    }
}
