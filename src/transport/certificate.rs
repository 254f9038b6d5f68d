//! The one thing that NSQ wants to know of a client's certificate beside its validity: the common name
//! of its subject. Pure.

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const T61_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const BMP_STRING: u8 = 0x1e;
/// The version of a certificate, which old ones do not have.
const VERSION: u8 = 0xa0;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// Serial number, algorithm, issuer and validity stand before the subject.
const BEFORE_SUBJECT: usize = 4;

/// The common name of the subject of a certificate in DER; the last, if there are several.
pub(super) fn common_name(der: &[u8]) -> Option<String> {
    let mut certificate = Elements(Elements(der).expect(SEQUENCE)?);
    let mut body = Elements(certificate.expect(SEQUENCE)?);
    if body.0.first() == Some(&VERSION) {
        body.next()?;
    }
    let mut subject = Elements(body.nth(BEFORE_SUBJECT)?.1);
    let mut found = None;
    while let Some(names) = subject.expect(SET) {
        let mut names = Elements(names);
        while let Some(name) = names.expect(SEQUENCE) {
            let mut name = Elements(name);
            if name.expect(OBJECT_IDENTIFIER)? == COMMON_NAME {
                let (kind, value) = name.next()?;
                found = text(kind, value).or(found);
            }
        }
    }
    found
}

/// What is left of a list of DER elements.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The contents of the next, if it is one of these.
    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let (kind, contents) = self.next()?;
        (kind == wanted).then_some(contents)
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (kind, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (len, rest) = if first & 0x80 == 0 {
            (usize::from(*first), rest)
        } else {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let len = bytes.iter().try_fold(0_usize, |len, byte| {
                Some(len.checked_mul(256)? | usize::from(*byte))
            })?;
            (len, rest)
        };
        let (contents, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((*kind, contents))
    }
}

fn text(kind: u8, value: &[u8]) -> Option<String> {
    match kind {
        UTF8_STRING | PRINTABLE_STRING | IA5_STRING => String::from_utf8(value.to_vec()).ok(),
        T61_STRING => Some(value.iter().map(|byte| char::from(*byte)).collect()),
        BMP_STRING => {
            let units = value.as_chunks::<2>().0;
            let units: Vec<u16> = units.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};

    use super::*;

    fn certificate(names: &[(DnType, DnValue)]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), value.clone());
        }
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_is_found_among_others() {
        let utf8 = |text: &str| DnValue::Utf8String(text.to_owned());
        let long = "n".repeat(300);
        let der = certificate(&[
            (DnType::OrganizationName, utf8(&long)),
            (DnType::CommonName, utf8("prodücer")),
            (DnType::CountryName, utf8("DE")),
        ]);
        assert_eq!(common_name(&der).as_deref(), Some("prodücer"));
        let printable = DnValue::PrintableString("abc".try_into().unwrap());
        let der = certificate(&[(DnType::CommonName, printable)]);
        assert_eq!(common_name(&der).as_deref(), Some("abc"));
        assert_eq!(common_name(&certificate(&[])), None);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_fall(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _name = common_name(&bytes);
        }
    }
}
