//! Finds the reply whose loss is asked for in the bytes that a server sends.
//!
//! **Invariant:** it only watches: what it has taken is given back unchanged, at most one short message
//! later.
//!
//! After the single byte that answers a request for encryption, everything from the server is a type
//! byte, a length that counts itself, and a body (manual, "Message Formats").

/// Bytes that may pass, and whether the reply that was looked for comes right after them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Framed {
    pub(super) pass: Vec<u8>,
    pub(super) found: bool,
}

/// The state between two reads.
#[derive(Debug, Default)]
pub(super) struct Framer {
    /// The start of a message that is not decided yet.
    held: Vec<u8>,
    /// Bytes left of a message that passes.
    body: usize,
}

const COMMAND_COMPLETE: u8 = b'C';
/// No tag of a command is longer; what is, comes from a corrupted stream and passes.
const TAG_BYTES_MAX: usize = 256;

impl Framer {
    /// Gives back what it holds, at the end of the stream.
    pub(super) fn release(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Takes bytes from the server; stops at a CommandComplete whose tag starts with `tag`.
    pub(super) fn push(&mut self, mut bytes: &[u8], tag: Option<&str>) -> Framed {
        let mut framed = Framed::default();
        loop {
            let direct = self.body.min(bytes.len());
            let (body, rest) = bytes.split_at(direct);
            framed.pass.extend_from_slice(body);
            self.body -= direct;
            bytes = rest;
            let Some((&byte, rest)) = bytes.split_first() else { return framed };
            self.held.push(byte);
            bytes = rest;
            let Some(header) = self.held.first_chunk::<5>() else { continue };
            let [kind, length @ ..] = *header;
            let length = u32::from_be_bytes(length) as usize + 1;
            let is_reply = kind == COMMAND_COMPLETE && length <= TAG_BYTES_MAX;
            if is_reply && self.held.len() < length {
                continue;
            }
            if is_reply && tag.is_some_and(|tag| self.held[5..].starts_with(tag.as_bytes())) {
                framed.found = true;
                return framed;
            }
            self.body = length.saturating_sub(self.held.len());
            framed.pass.append(&mut self.held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn bytes_pass_unchanged_however_they_are_split() {
        let stream = [
            message(b'R', b"\0\0\0\0"),
            message(b'C', b"BEGIN\0"),
            message(b'D', &[7; 300]),
            message(b'Z', b"I"),
        ]
        .concat();
        for size in 1..stream.len() {
            let mut framer = Framer::default();
            let mut passed = Vec::new();
            for part in stream.chunks(size) {
                let framed = framer.push(part, Some("COMMIT"));
                assert!(!framed.found);
                passed.extend(framed.pass);
            }
            assert_eq!(passed, stream, "in parts of {size}");
        }
    }

    #[test]
    fn the_reply_is_found_and_held_back() {
        let before = [message(b'C', b"INSERT 0 1\0"), message(b'Z', b"T")].concat();
        let stream = [before.clone(), message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat();
        for size in 1..stream.len() {
            let mut framer = Framer::default();
            let mut passed = Vec::new();
            let mut found = false;
            for part in stream.chunks(size) {
                let framed = framer.push(part, Some("COMMIT"));
                passed.extend(framed.pass);
                found = framed.found;
                if found {
                    break;
                }
            }
            assert!(found, "in parts of {size}");
            assert_eq!(passed, before, "in parts of {size}");
        }
    }
}
