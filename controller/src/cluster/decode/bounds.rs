//! What a document may cost to parse.

use std::{cell::Cell, fmt};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

use super::Syntax;

/// Twice what etcd takes for an object, for YAML is wordier; lists beyond it must be split. In memory a parser takes up to fifty times it.
const MAX_DOCUMENT: usize = 4 << 20;
/// No object of the API nests half as deep. libyaml's cost for each token grows with the depth.
const MAX_DEPTH: usize = 128;
/// Values after every alias has been replaced by what it stands for.
const MAX_VALUES: usize = 500_000;

pub(super) fn check(text: &str, syntax: Syntax) -> Result<(), String> {
    if text.len() > MAX_DOCUMENT {
        let message = "is larger than 4 MiB, more than any object can be; split a list into several documents";
        return Err(message.to_owned());
    }
    if depth(text) > MAX_DEPTH {
        return Err(format!("nests deeper than {MAX_DEPTH} levels, as no object does; look for brackets that are not closed"));
    }
    let may_repeat = syntax == Syntax::Yaml && text.contains('&') && text.contains('*');
    if may_repeat && is_too_much(text) {
        return Err(format!("holds more than {MAX_VALUES} values once its aliases are written out; write fewer"));
    }
    Ok(())
}

/// At least the depth to which brackets and `- - -` on a line nest, whether they are quoted or not.
fn depth(text: &str) -> usize {
    let mut open: usize = 0;
    let mut deepest = 0;
    let mut leading = 0;
    let mut is_leading = true;
    for byte in text.bytes() {
        match byte {
            b'\n' => (is_leading, leading) = (true, 0),
            b'-' | b'?' | b':' if is_leading => {
                leading += 1;
                deepest = deepest.max(leading);
            }
            b' ' => {}
            b'[' | b'{' => {
                open += 1;
                deepest = deepest.max(open);
                is_leading = false;
            }
            b']' | b'}' => open = open.saturating_sub(1),
            _ => is_leading = false,
        }
    }
    deepest
}

/// Whether a document with aliases amounts to too many values. One that cannot be parsed doesn't: whoever parses it next says why.
fn is_too_much(text: &str) -> bool {
    let left = Cell::new(MAX_VALUES);
    let _ = Weigh(&left).deserialize(serde_yaml::Deserializer::from_str(text));
    left.get() == 0
}

/// Visits every value, aliases followed, keeping none, until the count is used up.
#[derive(Clone, Copy)]
struct Weigh<'a>(&'a Cell<usize>);

impl Weigh<'_> {
    fn count<E: Error>(self) -> Result<(), E> {
        let left = self.0.get().saturating_sub(1);
        self.0.set(left);
        if left == 0 { Err(E::custom("too many values")) } else { Ok(()) }
    }
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! scalars {
    ($($visit:ident($ty:ty)),+) => { $( fn $visit<E: Error>(self, _: $ty) -> Result<(), E> { self.count() } )+ };
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    scalars!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.count()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.count()?;
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.count()?;
        while map.next_key_seed(self)?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bombs_are_refused_before_they_are_parsed() {
        let quadratic = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(2_000), "*a,".repeat(2_000));
        for (what, text) in [
            ("brackets", "[".repeat(MAX_DOCUMENT)),
            ("braces", "{a: ".repeat(MAX_DOCUMENT / 4)),
            ("dashes", "- ".repeat(MAX_DOCUMENT / 2)),
            ("keys", "? ".repeat(MAX_DOCUMENT / 2)),
            ("aliases", quadratic),
            ("size", "a".repeat(MAX_DOCUMENT + 1)),
        ] {
            assert!(check(&text, Syntax::Yaml).is_err(), "{what}");
        }
        assert_eq!(check("labels: &l {app: web}\nselector: *l\nglob: '*.yaml & more'\n", Syntax::Yaml), Ok(()));
    }
}
