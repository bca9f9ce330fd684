//! Tokens: made once and shown once; what is kept is the digest of the secret in them.

use subtle::ConstantTimeEq;

use crate::effect::Hash;
use crate::store::{Token, now_ms};

/// A token that nobody has seen yet.
pub struct NewToken {
    /// What its owner presents.
    pub text: String,
    /// What is kept of it.
    pub kept: Token,
}

impl NewToken {
    /// A token for a tenant, or for the operator when there is none.
    #[must_use]
    pub fn make(tenant: Option<String>) -> Self {
        let id: u64 = rand::random();
        let id = format!("{id:016x}");
        // All of it is chance; its digest cannot be guessed backwards.
        let secret = Hash::of([&rand::random::<[u8; 32]>()[..]]).to_string();
        let sha256 = Hash::of_bytes(secret.as_bytes());
        Self { text: format!("{PREFIX}{id}_{secret}"), kept: Token { id, sha256, tenant, created_ms: now_ms() } }
    }
}

/// The id and the secret in a token.
pub(super) fn parts(text: &str) -> Option<(&str, &str)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (id.len() == 16 && secret.len() == 64).then_some((id, secret))
}

/// Whether a secret is the one that a token was made with; how long that takes tells nothing.
pub(super) fn fits(kept: &Token, secret: &str) -> bool {
    Hash::of_bytes(secret.as_bytes()).as_bytes().ct_eq(kept.sha256.as_bytes()).into()
}

const PREFIX: &str = "pn_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_fits_itself_and_no_other() {
        let (one, other) = (NewToken::make(None), NewToken::make(Some("red".into())));
        let (id, secret) = parts(&one.text).unwrap();
        assert_eq!(id, one.kept.id);
        assert!(fits(&one.kept, secret) && !fits(&other.kept, secret));
        assert!(!format!("{:?}", one.kept).contains(secret));
        for text in ["", "pn_", "pn__", &one.text[3..], &format!("{}0", one.text), &one.text[..40]] {
            assert!(parts(text).is_none(), "{text}");
        }
    }
}
