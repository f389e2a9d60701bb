//! The changes of one transaction on their way: in memory, and beyond a bound in a file without a name.
//!
//! **Invariant:** a body is the sequence of its messages, whatever part of it lies on disk; cutting it off at an earlier
//! length (a sub-transaction that was rolled back) leaves exactly the messages before. The file has no name from the moment
//! it is opened, so that nothing of it is left whatever ends the process.
//!
//! A message is a 32-bit length (big-endian) and that many bytes: the pgoutput message without the xid that it carries
//! inside a streamed transaction. Length and bytes together are a frame.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::{Bytes, BytesMut};

/// Bytes read from the file at once.
const READ_BYTES: usize = 1 << 20;
/// The tag of a Relation message.
pub(super) const DESCRIPTION: u8 = b'R';
/// The length before each message.
const HEADER: usize = 4;

/// The messages of one transaction.
#[derive(Debug, Default)]
pub(crate) struct Body {
    file: Option<Spilled>,
    tail: BytesMut,
    /// The descriptions of relations among the messages, each with where it begins.
    descriptions: Vec<(u64, Bytes)>,
}

#[derive(Debug)]
struct Spilled {
    file: File,
    length: u64,
}

impl Body {
    /// Adds a message: its tag and what follows it.
    pub(crate) fn push(&mut self, tag: u8, rest: &[u8]) {
        if tag == DESCRIPTION {
            self.descriptions.push((self.length(), [&[tag], rest].concat().into()));
        }
        self.tail.reserve(HEADER + 1 + rest.len());
        // A message is a slice of a CopyData, whose own length has 31 bits.
        self.tail.extend_from_slice(&(rest.len() as u32 + 1).to_be_bytes());
        self.tail.extend_from_slice(&[tag]);
        self.tail.extend_from_slice(rest);
    }

    /// Bytes of all frames.
    pub(crate) fn length(&self) -> u64 {
        self.spilled() + self.tail.len() as u64
    }

    /// Bytes of it in memory.
    pub(crate) fn in_memory(&self) -> usize {
        self.tail.len()
    }

    /// Bytes of it on disk.
    pub(crate) fn spilled(&self) -> u64 {
        self.file.as_ref().map_or(0, |spilled| spilled.length)
    }

    /// Moves what is in memory behind what is on disk.
    ///
    /// # Errors
    /// The disk: the body is as it was.
    pub(crate) fn spill(&mut self, directory: &Path) -> io::Result<()> {
        let spilled = match &mut self.file {
            Some(spilled) => spilled,
            None => self.file.insert(Spilled { file: tempfile_in(directory)?, length: 0 }),
        };
        spilled.file.write_all_at(&self.tail, spilled.length)?;
        spilled.length += self.tail.len() as u64;
        self.tail = BytesMut::new();
        Ok(())
    }

    /// Takes everything from `length` on back.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn cut(&mut self, length: u64) -> io::Result<()> {
        self.descriptions.retain(|(at, _)| *at < length);
        let spilled = self.spilled();
        if length >= spilled {
            self.tail.truncate(usize::try_from(length - spilled).unwrap_or(usize::MAX));
            return Ok(());
        }
        self.tail.clear();
        if let Some(part) = &mut self.file {
            part.file.set_len(length)?;
            part.length = length;
        }
        Ok(())
    }

    /// The descriptions of relations in it, as their messages, in order.
    pub(crate) fn descriptions(&self) -> impl Iterator<Item = &Bytes> {
        self.descriptions.iter().map(|(_, message)| message)
    }

    /// Reads the body from its beginning.
    pub(crate) fn read(self) -> BodyReader {
        BodyReader { file: self.file, at: 0, tail: self.tail.freeze() }
    }
}

fn tempfile_in(directory: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    // The directory is ours alone; the number only keeps two bodies of this process apart.
    static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = directory.join(format!("body-{}-{number}", std::process::id()));
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Gives a body block by block.
#[derive(Debug)]
pub(crate) struct BodyReader {
    file: Option<Spilled>,
    at: u64,
    tail: Bytes,
}

impl BodyReader {
    /// A second reader of what is left.
    ///
    /// # Errors
    /// No more files can be opened.
    pub(crate) fn fork(&self) -> io::Result<Self> {
        let fork = |spilled: &Spilled| {
            Ok::<_, io::Error>(Spilled { file: spilled.file.try_clone()?, length: spilled.length })
        };
        let file = self.file.as_ref().map(fork).transpose()?;
        Ok(Self { file, at: self.at, tail: self.tail.clone() })
    }

    /// Whether nothing more of it is on disk.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.file.as_ref().is_none_or(|spilled| self.at >= spilled.length)
    }

    /// The next whole frames, about a MiB of them, more where one frame is larger; `None` at the end.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn next(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(spilled) = &self.file
            && self.at < spilled.length
        {
            let block = read_frames(&spilled.file, self.at, spilled.length)?;
            self.at += block.len() as u64;
            return Ok(Some(block));
        }
        self.file = None;
        let tail = std::mem::take(&mut self.tail);
        Ok((!tail.is_empty()).then_some(tail))
    }
}

/// Reads whole frames from `at` on, at least one.
fn read_frames(file: &File, at: u64, end: u64) -> io::Result<Bytes> {
    let room = |wanted: usize| wanted.min(usize::try_from(end - at).unwrap_or(usize::MAX));
    let mut block = vec![0; room(READ_BYTES)];
    file.read_exact_at(&mut block, at)?;
    let whole = whole_frames(&block);
    if whole == 0 {
        let length = block.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes) as usize);
        block = vec![0; room(HEADER + length)];
        file.read_exact_at(&mut block, at)?;
    } else {
        block.truncate(whole);
    }
    Ok(block.into())
}

/// Bytes of the whole frames at the front.
fn whole_frames(block: &[u8]) -> usize {
    let mut end = 0;
    while let Some(header) = block.get(end..).and_then(<[u8]>::first_chunk::<HEADER>) {
        let next = end + HEADER + u32::from_be_bytes(*header) as usize;
        if next > block.len() {
            break;
        }
        end = next;
    }
    end
}

/// The messages of a block.
pub(crate) fn messages(block: &Bytes) -> impl Iterator<Item = Bytes> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let header = block.get(at..)?.first_chunk::<HEADER>()?;
        let (start, length) = (at + HEADER, u32::from_be_bytes(*header) as usize);
        at = start + length;
        (at <= block.len()).then(|| block.slice(start..at))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(mut reader: BodyReader) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while let Some(block) = reader.next().unwrap() {
            found.extend(messages(&block).map(|message| message.to_vec()));
        }
        found
    }

    #[test]
    fn what_was_spilled_and_what_was_not_come_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let mut body = Body::default();
        let mut expected = Vec::new();
        for number in 0..5000_u32 {
            let size = if number == 17 { READ_BYTES + 5 } else { (number % 1000) as usize };
            let mut message = vec![number as u8; size + 1];
            message[0] = b'I';
            body.push(b'I', &message[1..]);
            expected.push(message);
            if number % 700 == 0 {
                body.spill(directory.path()).unwrap();
            }
        }
        assert!(body.spilled() > 0 && body.in_memory() > 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "it has no name");
        assert_eq!(all(body.read()), expected);
    }

    #[test]
    fn a_cut_takes_back_what_came_after_it_on_disk_or_not() {
        let directory = tempfile::tempdir().unwrap();
        for (spill_at, cut_at) in [(2, 1), (2, 2), (1, 3), (9, 2)] {
            let mut body = Body::default();
            let mut lengths = vec![0];
            for number in 0..4_u8 {
                body.push(number, &[number; 2]);
                lengths.push(body.length());
                if usize::from(number) + 1 == spill_at {
                    body.spill(directory.path()).unwrap();
                }
            }
            body.cut(lengths[cut_at]).unwrap();
            body.push(b'e', b"nd");
            let mut expected: Vec<Vec<u8>> =
                (0..cut_at).map(|number| vec![number as u8; 3]).collect();
            expected.push(b"end".to_vec());
            assert_eq!(all(body.read()), expected, "spilled at {spill_at}, cut at {cut_at}");
        }
    }
}
