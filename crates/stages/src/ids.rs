//! Expert ids as text: many small numbers, which JSON would write with a comma each. `b` and two
//! hexadecimal digits for each, or `w` and four where one is above 255.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub fn serialize<S: Serializer>(ids: &[u16], serializer: S) -> Result<S::Ok, S::Error> {
    let wide = ids.iter().any(|&id| id > 255);
    let mut text = String::with_capacity(1 + ids.len() * if wide { 4 } else { 2 });
    text.push(if wide { 'w' } else { 'b' });
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for id in ids {
        for shift in if wide { &[12, 8, 4, 0][..] } else { &[4, 0] } {
            text.push(DIGITS[usize::from(id >> shift) & 15].into());
        }
    }
    serializer.serialize_str(&text)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bad = || D::Error::custom("expert ids are 'b' or 'w' and hexadecimal digits");
    let (digits, each) = match text.split_at_checked(1) {
        Some(("b", digits)) => (digits, 2),
        Some(("w", digits)) => (digits, 4),
        _ => return Err(bad()),
    };
    if !digits.is_ascii() || digits.len() % each != 0 {
        return Err(bad());
    }
    let ids = digits.as_bytes().chunks(each).map(|id| {
        let id = std::str::from_utf8(id).map_err(|_| bad())?;
        u16::from_str_radix(id, 16).map_err(|_| bad())
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
    struct One(#[serde(with = "super")] Vec<u16>);

    #[test]
    fn ids_come_back() {
        for (ids, text) in [
            (vec![], "\"b\""),
            (vec![0, 255, 7], "\"b00ff07\""),
            (vec![256, 7, 65535], "\"w01000007ffff\""),
        ] {
            let one = One(ids);
            assert_eq!(serde_json::to_string(&one).unwrap(), text);
            assert_eq!(serde_json::from_str::<One>(text).unwrap(), one);
        }
        for bad in ["\"\"", "\"x00\"", "\"b0\"", "\"bé\"", "\"bzz\""] {
            assert!(serde_json::from_str::<One>(bad).is_err(), "{bad}");
        }
    }
}
