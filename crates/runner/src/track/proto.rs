//! Protocol Buffers' wire format, as much of it as event files need. What is written is read back by
//! the packages that own the formats (`ci/trackers.py`).

/// A message under construction. Fields that hold their default are written all the same: a step 0
/// or an empty text is then there to be seen.
#[derive(Default)]
pub struct Message(Vec<u8>);

impl Message {
    pub fn new() -> Message {
        Message::default()
    }

    /// An integer, a boolean or an enum's number.
    pub fn int(mut self, field: u32, value: u64) -> Message {
        self.tag(field, 0);
        self.varint(value);
        self
    }

    pub fn double(mut self, field: u32, value: f64) -> Message {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn float(mut self, field: u32, value: f32) -> Message {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub fn bytes(mut self, field: u32, value: &[u8]) -> Message {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub fn text(self, field: u32, value: &str) -> Message {
        self.bytes(field, value.as_bytes())
    }

    pub fn message(self, field: u32, value: Message) -> Message {
        self.bytes(field, &value.0)
    }

    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    fn tag(&mut self, field: u32, kind: u64) {
        self.varint(u64::from(field) << 3 | kind);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_own_examples() {
        // protobuf.dev, "Encoding": a varint of 150, a string, an embedded message
        assert_eq!(Message::new().int(1, 150).finish(), [0x08, 0x96, 0x01]);
        let text = Message::new().text(2, "testing").finish();
        assert_eq!(text, b"\x12\x07testing");
        let inner = Message::new().int(1, 150);
        assert_eq!(
            Message::new().message(3, inner).finish(),
            [0x1a, 3, 8, 0x96, 1]
        );
    }
}
