//! The data that binds authentication to the TLS channel (`tls-server-end-point`).
//!
//! **Invariant:** the hash is the one of the certificate's own signature algorithm, with SHA-256 in place of MD5 and SHA-1;
//! where the algorithm names no hash (Ed25519, RSA-PSS here) there is no binding, not a wrong one.
//!
//! RFC 5929 section 4.1; PostgreSQL manual: protocol, "SASL Authentication".

use sha2::{Digest, Sha256, Sha384, Sha512};

/// DER of the OIDs below `1.2.840.113549.1.1` (RSA) and `1.2.840.10045.4` (ECDSA).
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
const ECDSA_SHA1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01];
const ECDSA_SHA2: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03];

/// The hash of a DER certificate for channel binding.
pub(crate) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let algorithm = signature_algorithm(certificate)?;
    let hash = match (algorithm.strip_prefix(RSA), algorithm.strip_prefix(ECDSA_SHA2)) {
        // md5, sha1, sha256
        (Some([4 | 5 | 11]), _) | (_, Some([2])) => Sha256::digest(certificate).to_vec(),
        (Some([12]), _) | (_, Some([3])) => Sha384::digest(certificate).to_vec(),
        (Some([13]), _) | (_, Some([4])) => Sha512::digest(certificate).to_vec(),
        _ if algorithm == ECDSA_SHA1 => Sha256::digest(certificate).to_vec(),
        _ => return None,
    };
    Some(hash)
}

/// The OID of the algorithm that signed a certificate: `SEQUENCE { tbs, SEQUENCE { OID, .. }, .. }`.
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    let (0x30, certificate, _) = element(certificate)? else { return None };
    let (0x30, _, after_tbs) = element(certificate)? else { return None };
    let (0x30, algorithm, _) = element(after_tbs)? else { return None };
    let (0x06, oid, _) = element(algorithm)? else { return None };
    Some(oid)
}

/// Tag, content and what follows of the first DER element.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0_usize, |sum, digit| (sum << 8) | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(oid: &[u8]) -> Vec<u8> {
        let mut algorithm = vec![0x06, u8::try_from(oid.len()).unwrap()];
        algorithm.extend_from_slice(oid);
        let mut body = vec![0x30, 0x00, 0x30, u8::try_from(algorithm.len()).unwrap()];
        body.extend_from_slice(&algorithm);
        let mut der = vec![0x30, 0x81, u8::try_from(body.len()).unwrap()];
        der.extend_from_slice(&body);
        der
    }

    #[test]
    fn the_hash_follows_the_signature_algorithm() {
        for (prefix, last, length) in [
            (RSA, 4, Some(32)),
            (RSA, 5, Some(32)),
            (RSA, 11, Some(32)),
            (RSA, 12, Some(48)),
            (RSA, 13, Some(64)),
            (RSA, 10, None),
            (ECDSA_SHA2, 2, Some(32)),
            (ECDSA_SHA2, 3, Some(48)),
            (ECDSA_SHA2, 4, Some(64)),
            (&[0x2b, 0x65], 0x70, None),
        ] {
            let mut oid = prefix.to_vec();
            oid.push(last);
            let hash = tls_server_end_point(&certificate(&oid));
            assert_eq!(hash.map(|hash| hash.len()), length, "{oid:x?}");
        }
    }

    #[test]
    fn nonsense_has_no_hash() {
        for nonsense in [&[][..], &[0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0x80]] {
            assert!(tls_server_end_point(nonsense).is_none());
        }
    }
}
