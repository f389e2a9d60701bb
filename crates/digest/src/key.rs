//! The key of a job's digests.
//!
//! **Invariant:** the key is drawn at random once per job, and two sides are compared only under the same key. `Debug`
//! shows an identifier, never the key: who knows the key can make two different tables with the same sum.
//!
//! The 32 bytes are stretched with SHA-256 into the 192 bytes that XXH3 takes as its secret, once per key.

use std::fmt;

use sha2::{Digest as _, Sha256};
use xxhash_rust::xxh3::xxh3_128_with_secret;

use crate::{Error, Result};

/// Length of XXH3's secret.
const SECRET_BYTES: usize = 192;

/// A key for row hashes.
#[derive(Clone)]
pub struct DigestKey {
    key: [u8; 32],
    secret: [u8; SECRET_BYTES],
}

impl DigestKey {
    /// A key of these 32 bytes.
    pub fn new(key: [u8; 32]) -> Self {
        let mut secret = [0; SECRET_BYTES];
        for (number, block) in secret.chunks_exact_mut(32).enumerate() {
            block.copy_from_slice(&stretched(&key, number as u8));
        }
        Self { key, secret }
    }

    /// A new random key.
    pub fn random() -> Self {
        Self::new(rand::random())
    }

    /// Reads what [`DigestKey::to_hex`] wrote.
    ///
    /// # Errors
    /// The text is not 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Result<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(Error::BadKey);
        }
        let mut key = [0; 32];
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| Error::BadKey)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| Error::BadKey)?;
        }
        Ok(Self::new(key))
    }

    /// The key as 64 hexadecimal digits, for the ledger.
    pub fn to_hex(&self) -> String {
        self.key.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A short identifier that tells two keys apart and gives nothing of them away.
    pub fn id(&self) -> String {
        stretched(&self.key, 255)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The keyed hash of one row's bytes.
    #[inline]
    pub fn hash(&self, bytes: &[u8]) -> u128 {
        xxh3_128_with_secret(bytes, &self.secret)
    }
}

fn stretched(key: &[u8; 32], block: u8) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"tidemark digest key")
        .chain_update(key)
        .chain_update([block])
        .finalize()
        .into()
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DigestKey({})", self.id())
    }
}

impl PartialEq for DigestKey {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for DigestKey {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_hexadecimal_and_its_debug_form_hides_it() {
        let key = DigestKey::random();
        let hex = key.to_hex();
        assert_eq!(hex.len(), 64);
        assert_eq!(DigestKey::from_hex(&hex).unwrap(), key);
        assert!(!hex.contains(&key.id()));
        assert_eq!(format!("{key:?}"), format!("DigestKey({})", key.id()));
        assert_eq!(DigestKey::from_hex("+f"), Err(Error::BadKey));
        assert_eq!(DigestKey::from_hex(&"+f".repeat(32)), Err(Error::BadKey));
        assert_eq!(DigestKey::from_hex(&"é".repeat(32)), Err(Error::BadKey));
    }

    #[test]
    fn another_key_gives_other_hashes_of_every_length() {
        let (one, two) = (DigestKey::new([1; 32]), DigestKey::new([2; 32]));
        for len in [0, 1, 3, 8, 16, 17, 128, 240, 241, 1000] {
            let bytes = vec![7; len];
            assert_eq!(one.hash(&bytes), one.clone().hash(&bytes));
            assert_ne!(one.hash(&bytes), two.hash(&bytes), "{len} bytes");
        }
    }
}
