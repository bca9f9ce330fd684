//! A certificate for loopback and the authority that signed it.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// Writes `certificate.pem` and `key.pem`, and the authority to trust as `ca.pem`.
pub(crate) fn certify(directory: &Path) -> Result<()> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "the tests' own authority");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
    fs::write(directory.join("ca.pem"), authority.pem())?;
    fs::write(directory.join("certificate.pem"), certificate.pem())?;
    Ok(fs::write(directory.join("key.pem"), key.serialize_pem())?)
}
