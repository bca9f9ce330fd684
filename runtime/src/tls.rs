//! TLS for connections we make ourselves: the system's certificates, or those that `SSL_CERT_FILE` names.

use std::io;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Speaks TLS on a connection, once its server has proved to be `host`.
///
/// # Errors
/// The network's, or what TLS finds: see [`is_about_tls`].
pub(crate) async fn connect(host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Whether a connection failed for what TLS found, a certificate that nobody vouches for say.
#[must_use]
pub(crate) fn is_about_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    // Its source is the source of what it holds.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || inner.is_some_and(|inner| is_about_tls(inner))
        || error.source().is_some_and(is_about_tls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_tls_is_found_however_deep_it_lies() {
        let tls = || rustls::Error::General("none".into());
        assert!(is_about_tls(&tls()));
        assert!(is_about_tls(&io::Error::other(tls())));
        assert!(is_about_tls(&io::Error::other(io::Error::other(tls()))));
        assert!(!is_about_tls(&io::Error::other(io::Error::other("none"))));
    }
}
