//! The value form of JSON.
//!
//! **Invariant:** two texts have the same bytes exactly if they are the same JSON value, where numbers are exact decimals
//! and objects keep duplicate members in their order. No recursion: the depth of a document costs memory, never stack.
//!
//! An object is written in the order of the text; when it ends, its members are put into the order of their keys, if they
//! are not in it already. RFC 8259; PostgreSQL manual, section 8.14.

use super::buffer::RowBuffer;

type Fault = &'static str;
const BAD: Fault = "not JSON";

/// One member of an object: where its key and the whole of it are in the row's buffer.
#[derive(Debug, Clone, Copy)]
struct Member {
    start: usize,
    key: (usize, usize),
    end: usize,
}

/// An array or object that is open.
#[derive(Debug)]
struct Frame {
    is_object: bool,
    /// Of its members, the first in `JsonScratch::members`.
    first_member: usize,
}

/// What the parser keeps from row to row.
#[derive(Debug, Default)]
pub(super) struct JsonScratch {
    frames: Vec<Frame>,
    members: Vec<Member>,
    text: Vec<u8>,
}

/// Appends the body of a JSON cell.
pub(super) fn append_value(text: &[u8], row: &mut RowBuffer) -> Result<(), Fault> {
    let mut scratch = std::mem::take(&mut row.json);
    scratch.frames.clear();
    scratch.members.clear();
    let result = Writer { text, at: 0, row, scratch: &mut scratch }.document();
    row.json = scratch;
    result
}

struct Writer<'a> {
    text: &'a [u8],
    at: usize,
    row: &'a mut RowBuffer,
    scratch: &'a mut JsonScratch,
}

impl Writer<'_> {
    fn document(&mut self) -> Result<(), Fault> {
        loop {
            if self.value()? {
                // An array or an object with something in it was opened: its first value is next.
                continue;
            }
            if !self.after_value()? {
                self.skip_blanks();
                return if self.at == self.text.len() { Ok(()) } else { Err(BAD) };
            }
        }
    }

    /// Writes a scalar or an empty container (false), or opens a container (true).
    fn value(&mut self) -> Result<bool, Fault> {
        self.skip_blanks();
        match self.peek()? {
            b'{' => self.open(true),
            b'[' => self.open(false),
            b'"' => self.string().map(|_| false),
            b'n' => self.word(b"null"),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            _ => self.number().map(|()| false),
        }
    }

    fn open(&mut self, is_object: bool) -> Result<bool, Fault> {
        let (opening, closing) = if is_object { (b'{', b'}') } else { (b'[', b']') };
        self.at += 1;
        self.row.append(&[opening]);
        self.skip_blanks();
        if self.peek()? == closing {
            self.at += 1;
            self.row.append(&[closing]);
            return Ok(false);
        }
        let first_member = self.scratch.members.len();
        self.scratch.frames.push(Frame { is_object, first_member });
        if is_object {
            self.key()?;
        }
        Ok(true)
    }

    /// Goes on behind a value: true if another value follows, false at the end of the document.
    fn after_value(&mut self) -> Result<bool, Fault> {
        while let Some(frame) = self.scratch.frames.last() {
            let (is_object, first_member) = (frame.is_object, frame.first_member);
            if is_object && let Some(member) = self.scratch.members.last_mut() {
                member.end = self.row.len();
            }
            self.skip_blanks();
            match (self.peek()?, is_object) {
                (b',', true) => {
                    self.at += 1;
                    self.skip_blanks();
                    self.key()?;
                    return Ok(true);
                }
                (b',', false) => {
                    self.at += 1;
                    return Ok(true);
                }
                (b'}', true) => {
                    self.sort_members(first_member);
                    self.row.append(b"}");
                }
                (b']', false) => self.row.append(b"]"),
                _ => return Err(BAD),
            }
            self.at += 1;
            self.scratch.members.truncate(first_member);
            self.scratch.frames.pop();
        }
        Ok(false)
    }

    fn key(&mut self) -> Result<(), Fault> {
        let start = self.row.len();
        if self.peek()? != b'"' {
            return Err(BAD);
        }
        let key = self.string()?;
        self.skip_blanks();
        if self.peek()? != b':' {
            return Err(BAD);
        }
        self.at += 1;
        self.scratch.members.push(Member { start, key, end: start });
        Ok(())
    }

    /// Puts the members from `first` on into the order of their keys. The sort is stable, so duplicates stay in order.
    fn sort_members(&mut self, first: usize) {
        let members = &mut self.scratch.members[first..];
        let bytes = self.row.as_slice();
        let key = |member: &Member| &bytes[member.key.0..member.key.1];
        if members.is_sorted_by(|one, two| key(one) <= key(two)) {
            return;
        }
        let start = members[0].start;
        members.sort_by(|one, two| key(one).cmp(key(two)));
        self.scratch.text.clear();
        for member in members.iter() {
            self.scratch.text.extend_from_slice(&bytes[member.start..member.end]);
        }
        self.row.tail_mut(start).copy_from_slice(&self.scratch.text);
    }

    /// Writes a string and says where its bytes are in the row.
    fn string(&mut self) -> Result<(usize, usize), Fault> {
        self.at += 1;
        let start = self.at;
        let mut has_escapes = false;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => {
                    has_escapes = true;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        let raw = &self.text[start..self.at];
        self.at += 1;
        if has_escapes {
            self.scratch.text.clear();
            unescape(raw, &mut self.scratch.text)?;
        }
        let text = if has_escapes { &self.scratch.text[..] } else { raw };
        self.row.room(11);
        self.row.put(*b"\"");
        self.row.put_varint(text.len() as u64);
        let start = self.row.len();
        self.row.append(text);
        Ok((start, self.row.len()))
    }

    fn word(&mut self, word: &[u8]) -> Result<bool, Fault> {
        if !self.text[self.at..].starts_with(word) {
            return Err(BAD);
        }
        self.at += word.len();
        self.row.append(&word[..1]);
        Ok(false)
    }

    /// Writes a number as digits x 10^exponent.
    fn number(&mut self) -> Result<(), Fault> {
        let negative = self.accept(b'-');
        self.scratch.text.clear();
        let whole = self.digits();
        if whole == 0 {
            return Err(BAD);
        }
        let fraction = if self.accept(b'.') { self.digits() } else { 0 };
        let mut exponent = self.exponent()?.checked_sub(fraction as i64).ok_or(BAD)?;
        let mut digits = &self.scratch.text[..];
        while let [b'0', rest @ ..] = digits {
            digits = rest;
        }
        while let [rest @ .., b'0'] = digits {
            digits = rest;
            exponent = exponent.checked_add(1).ok_or(BAD)?;
        }
        let is_zero = digits.is_empty();
        let exponent = if is_zero { 0 } else { exponent };
        self.row.room(20 + digits.len());
        self.row.put([b'#', u8::from(negative && !is_zero)]);
        self.row.put(exponent.to_be_bytes());
        self.row.put_varint(digits.len() as u64);
        self.row.put_slice(digits);
        Ok(())
    }

    fn exponent(&mut self) -> Result<i64, Fault> {
        if !(self.accept(b'e') || self.accept(b'E')) {
            return Ok(0);
        }
        let negative = self.accept(b'-');
        if !negative {
            self.accept(b'+');
        }
        let mut value = 0_i64;
        let start = self.at;
        while let Some(digit @ b'0'..=b'9') = self.text.get(self.at) {
            let digit = i64::from(digit - b'0');
            // The bound leaves room for the number of digits, which is added and subtracted.
            value = value.checked_mul(10).and_then(|value| value.checked_add(digit)).ok_or(BAD)?;
            self.at += 1;
        }
        if self.at == start {
            return Err(BAD);
        }
        Ok(if negative { -value } else { value })
    }

    /// Collects digits and says how many there were.
    fn digits(&mut self) -> usize {
        let rest = &self.text[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.scratch.text.extend_from_slice(&rest[..count]);
        self.at += count;
        count
    }

    fn accept(&mut self, byte: u8) -> bool {
        let is_there = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn peek(&self) -> Result<u8, Fault> {
        self.text.get(self.at).copied().ok_or(BAD)
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
    }
}

fn unescape(raw: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut rest = raw;
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'\\' {
            out.push(byte);
            rest = after;
            continue;
        }
        let (&escape, after) = after.split_first().ok_or(BAD)?;
        rest = after;
        match escape {
            b'"' | b'\\' | b'/' => out.push(escape),
            b'b' => out.push(0x08),
            b'f' => out.push(0x0c),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => rest = unicode_escape(rest, out)?,
            _ => return Err(BAD),
        }
    }
    Ok(())
}

/// Decodes behind `\u`, with the second half of a pair if there is one, and gives the rest.
fn unicode_escape<'a>(rest: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], Fault> {
    let (high, rest) = four_digits(rest)?;
    if (0xd800..0xdc00).contains(&high)
        && let [b'\\', b'u', after @ ..] = rest
        && let (low @ 0xdc00..0xe000, after) = four_digits(after)?
    {
        push_code_point(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00), out);
        return Ok(after);
    }
    push_code_point(high, out);
    Ok(rest)
}

fn four_digits(bytes: &[u8]) -> Result<(u32, &[u8]), Fault> {
    let (digits, rest) = bytes.split_at_checked(4).ok_or(BAD)?;
    let mut value = 0;
    for &digit in digits {
        value = value * 16 + char::from(digit).to_digit(16).ok_or(BAD)?;
    }
    Ok((value, rest))
}

/// UTF-8, and for a surrogate without its other half (json allows it) the three bytes of the same scheme.
fn push_code_point(code: u32, out: &mut Vec<u8>) {
    match char::from_u32(code) {
        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => out.extend_from_slice(&[
            0xe0 | (code >> 12) as u8,
            0x80 | (code >> 6 & 0x3f) as u8,
            0x80 | (code & 0x3f) as u8,
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result<Vec<u8>, Fault> {
        let mut row = RowBuffer::new();
        append_value(text.as_bytes(), &mut row)?;
        Ok(row.as_slice().to_vec())
    }

    fn same(one: &str, two: &str) -> bool {
        value(one).unwrap() == value(two).unwrap()
    }

    #[test]
    fn format_does_not_matter() {
        assert!(same(r#"{"a":1,"b":[1,2]}"#, " { \"b\" : [ 1 ,2 ]\n, \"a\":1 } "));
        assert!(same(r#"{"x":{"d":1,"c":{"b":2,"a":1}}}"#, r#"{"x":{"c":{"a":1,"b":2},"d":1}}"#));
        assert!(same(r#""\u00e9\/\n\ud83d\ude00""#, "\"é/\\n😀\""));
        assert!(same("[1.0, 10, 0.50, -0, 1e2]", "[1,1.0E1,5e-1,0.000,100]"));
        assert!(same("  null ", "null"));
    }

    #[test]
    fn what_differs_differs() {
        let texts = [
            "{}",
            "[]",
            "null",
            "\"\"",
            "0",
            "[[]]",
            "[{}]",
            "1",
            "-1",
            "10",
            "true",
            "false",
            "\"true\"",
            "\"1\"",
            "[1,2]",
            "[12]",
            "[2,1]",
            r#"{"a":1,"a":2}"#,
            r#"{"a":2,"a":1}"#,
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":null}"#,
            "9007199254740993",
            "9007199254740992",
            "[[1],2]",
            "[1,[2]]",
            r#""\ud800""#,
            r#""\udc00""#,
            r#""\u0000""#,
            "1e400",
            "1e401",
        ];
        for (i, one) in texts.iter().enumerate() {
            for two in &texts[..i] {
                assert!(!same(one, two), "{one} and {two}");
            }
        }
    }

    #[test]
    fn what_is_not_json_is_an_error() {
        for text in [
            "",
            " ",
            "{",
            "[",
            "[1,",
            "{\"a\"",
            "{\"a\":}",
            "[1 2]",
            "nul",
            "\"a",
            "\"\\",
            "\"\\u12\"",
            "{a:1}",
            "[1]]",
            "1e",
            "-",
            "{\"a\":1]",
            "[1}",
            "1e99999999999999999999",
            "\"\\x\"",
        ] {
            assert_eq!(value(text), Err(BAD), "{text}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let depth = 200_000;
        let text = "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(value(&text).unwrap().len(), 2 * depth);
        assert_eq!(value(&"[".repeat(depth)), Err(BAD));
    }
}
