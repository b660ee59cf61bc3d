//! TLS by rustls, with libpq's sslmodes: <https://www.postgresql.org/docs/current/libpq-ssl.html>.
//!
//! The cryptography provider is passed explicitly everywhere: a process-wide default belongs to the
//! application.
//!
//! Two things differ from libpq. First, a certificate without subject alternative names fails
//! `verify-full`, because rustls ignores the common name. Second, `prefer` never continues without
//! TLS after a failed handshake.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use postgres::Socket;
use postgres::tls::MakeTlsConnect;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::ssl::{Mode, Roots, Tls};
use crate::error::{BoxError, Error};

/// Returns `~/.postgresql/root.crt`, which libpq uses if no sslrootcert is given.
fn home_roots() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty()).map(|home| home.join(".postgresql/root.crt"))
}

/// Returns the connector, or `None` if TLS is not to be used. Reads the files immediately, so that
/// a wrong file is an error here.
pub(super) fn connector(tls: &Tls) -> Result<Option<Connector>, Error> {
    with_default_roots(tls, home_roots())
}

fn with_default_roots(tls: &Tls, default_roots: Option<PathBuf>) -> Result<Option<Connector>, Error> {
    if tls.mode == Mode::Disable {
        return Ok(None);
    }
    tls.config(default_roots.clone())?;
    Ok(Some(Connector { tls: tls.clone(), default_roots }))
}

impl Tls {
    fn config(&self, default_roots: Option<PathBuf>) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| refuse("no protocol version can be used", error))?
            .dangerous()
            .with_custom_certificate_verifier(self.verifier(&provider, default_roots)?);
        let mut config = match &self.identity {
            Some((certificate, key)) => {
                let chain = read_certificates("sslcert", certificate)?;
                check_access(key)?;
                let pem = read("sslkey", key)?;
                let key_der = PrivateKeyDer::from_pem_slice(&pem)
                    .map_err(|error| refuse(format!("sslkey {} holds no unencrypted PEM key", key.display()), error))?;
                builder.with_client_auth_cert(chain, key_der).map_err(|error| {
                    refuse(
                        format!(
                            "sslcert {} and sslkey {} do not belong together",
                            certificate.display(),
                            key.display()
                        ),
                        error,
                    )
                })?
            }
            None => builder.with_no_client_auth(),
        };
        if self.direct {
            config.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(config)
    }

    fn verifier(&self, provider: &Arc<CryptoProvider>, default_roots: Option<PathBuf>) -> Result<Arc<Verifier>, Error> {
        let default_roots = || default_roots.filter(|path| path.exists()).map(Roots::File);
        let roots = match self.mode {
            Mode::Disable => None,
            Mode::Prefer => self.roots.clone(),
            // libpq's documented rule: `require` acts as `verify-ca` if there is a CA to verify
            // with.
            Mode::Require => self.roots.clone().or_else(default_roots),
            Mode::VerifyCa | Mode::VerifyFull => {
                let Some(roots) = self.roots.clone().or_else(default_roots) else {
                    return Err(Error::Tls {
                        problem: "the sslmode asks to verify the server's certificate, but no CA is given: add \
                                  sslrootcert=/path/to/ca.pem, or sslmode=verify-full&sslrootcert=system for the CAs that the \
                                  system trusts, or create ~/.postgresql/root.crt"
                            .to_owned(),
                        source: None,
                    });
                };
                Some(roots)
            }
        };
        let chain = match roots {
            Some(roots) => {
                let trusted = match &roots {
                    Roots::System => system_certificates()?,
                    Roots::File(path) => read_certificates("sslrootcert", path)?,
                };
                Some(Chain::new(&roots, trusted, provider)?)
            }
            None => None,
        };
        let algorithms = provider.signature_verification_algorithms;
        Ok(Arc::new(Verifier { chain, name: self.mode == Mode::VerifyFull, algorithms }))
    }
}

/// Sets up TLS for each connection from the current content of the files, because certificates that
/// are valid for hours or minutes are replaced while the worker runs. An error names the file, and
/// fails only that connection.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tls: Tls,
    default_roots: Option<PathBuf>,
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = BoxError;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, BoxError> {
        let config = self.tls.config(self.default_roots.clone())?;
        Ok(MakeTlsConnect::<Socket>::make_tls_connect(&mut MakeRustlsConnect::new(config), domain)?)
    }
}

fn refuse(problem: impl Into<String>, source: impl Into<BoxError>) -> Error {
    Error::Tls { problem: problem.into(), source: Some(source.into()) }
}

fn read(parameter: &str, path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|error| refuse(format!("{parameter} {} cannot be read", path.display()), error))
}

/// Refuses a key that others can read or change, by libpq's rule.
#[cfg(unix)]
fn check_access(key: &Path) -> Result<(), Error> {
    use std::os::unix::fs::MetadataExt as _;

    let metadata =
        std::fs::metadata(key).map_err(|error| refuse(format!("sslkey {} cannot be read", key.display()), error))?;
    if metadata.is_file() && is_too_open(metadata.uid(), metadata.mode()) {
        return Err(Error::Tls {
            problem: format!(
                "sslkey {} has mode {:04o}, so others have access to it: it must be 0600 or less, or 0640 or less if root \
                 owns it (chmod 600; in Kubernetes the secret volume's defaultMode: 0400, or 0440 with a fsGroup)",
                key.display(),
                metadata.mode() & 0o7777
            ),
            source: None,
        });
    }
    Ok(())
}

#[cfg(not(unix))]
fn check_access(_key: &Path) -> Result<(), Error> {
    Ok(())
}

/// The group may read a key that root owns, because services read certificates of the system
/// through a group.
#[cfg(unix)]
fn is_too_open(owner: u32, mode: u32) -> bool {
    mode & if owner == 0 { 0o037 } else { 0o077 } != 0
}

fn read_certificates(parameter: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(parameter, path)?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| refuse(format!("{parameter} {} is not a PEM file", path.display()), error))?;
    if certificates.is_empty() {
        return Err(Error::Tls {
            problem: format!(
                "{parameter} {} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)",
                path.display()
            ),
            source: None,
        });
    }
    Ok(certificates)
}

fn system_certificates() -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let problem = "sslrootcert=system, but this system has no trusted CAs: install ca-certificates";
        return Err(match found.errors.into_iter().next() {
            Some(error) => refuse(problem, error),
            None => Error::Tls { problem: problem.to_owned(), source: None },
        });
    }
    Ok(found.certs)
}

/// The CAs that a server's certificate is verified with.
#[derive(Debug)]
struct Chain {
    verifier: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
}

impl Chain {
    fn new(
        roots: &Roots,
        trusted: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        match roots {
            // Some systems have a certificate that cannot be parsed. The others must be usable
            // nevertheless.
            Roots::System => _ = store.add_parsable_certificates(trusted.iter().cloned()),
            Roots::File(path) => {
                for (index, certificate) in trusted.iter().enumerate() {
                    store.add(certificate.clone()).map_err(|error| {
                        refuse(
                            format!(
                                "certificate number {} of sslrootcert {} cannot be used",
                                index + 1,
                                path.display()
                            ),
                            error,
                        )
                    })?;
                }
            }
        }
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider.clone())
            .build()
            .map_err(|error| refuse("the trusted CAs cannot be used", error))?;
        Ok(Self { verifier, trusted })
    }

    /// Whether a certificate that was refused because it is a CA's is itself among the trusted
    /// ones: a self-signed certificate.
    ///
    /// `openssl req -x509` marks its certificates as a CA's, and libpq accepts such a certificate
    /// as its own root. webpki refuses it, but only after it has checked the validity period.
    fn trusts_itself(&self, error: &rustls::Error, certificate: &CertificateDer<'_>) -> bool {
        let rustls::Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
        // webpki's own error type is not part of rustls' interface, so only its name can be
        // compared.
        format!("{:?}", other.0) == "CaUsedAsEndEntity" && self.trusted.iter().any(|trusted| trusted == certificate)
    }
}

/// Verifies what the sslmode asks for: the chain, the chain and the name, or nothing.
#[derive(Debug)]
struct Verifier {
    chain: Option<Chain>,
    name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki checks the name last, so everything else is valid.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.name => Ok(ServerCertVerified::assertion()),
            Err(error) if chain.trusts_itself(&error, end_entity) => {
                if self.name {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            outcome => outcome,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.excuse(certificate, verify_tls12_signature(message, certificate, signature, &self.algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.excuse(certificate, verify_tls13_signature(message, certificate, signature, &self.algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    /// Accepts the signature of a certificate that cannot be parsed, if any certificate is accepted
    /// anyway: then the signature proves nothing either. X.509 version 1 certificates, which older
    /// versions of `openssl x509 -req` create, cannot be parsed.
    fn excuse(
        &self,
        certificate: &CertificateDer<'_>,
        outcome: Result<HandshakeSignatureValid, rustls::Error>,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match outcome {
            Err(_) if self.chain.is_none() && ParsedCertificate::try_from(certificate).is_err() => {
                Ok(HandshakeSignatureValid::assertion())
            }
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn problem(tls: &Tls, default_roots: Option<PathBuf>) -> String {
        match with_default_roots(tls, default_roots) {
            Err(error @ Error::Tls { .. }) => error.with_causes(),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("{tls:?} was accepted"),
        }
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let certificate = write("server.pem", &issued.cert.pem());
        let roots = |path: &Path| Tls {
            mode: Mode::VerifyCa,
            roots: Some(Roots::File(path.into())),
            identity: None,
            direct: false,
        };
        for (path, reason) in [
            (dir.path().join("absent.pem"), "No such file"),
            (dir.path().to_path_buf(), "directory"),
            (write("empty.pem", ""), "holds no certificate"),
            (write("key.pem", &other.serialize_pem()), "holds no certificate"),
            (write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n"), "is not a PEM file"),
            (write("noise.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "cannot be used"),
        ] {
            let shown = problem(&roots(&path), None);
            assert!(shown.contains(reason) && shown.contains(&path.display().to_string()), "{shown}");
        }
        with_default_roots(&roots(&certificate), None).unwrap();

        let identity = |certificate: &Path, key: PathBuf| Tls {
            mode: Mode::Require,
            roots: None,
            identity: Some((certificate.into(), key)),
            direct: false,
        };
        let private = |name: &str, content: &str, mode| {
            let path = write(name, content);
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            path
        };
        let good = private("good.key", &issued.signing_key.serialize_pem(), 0o600);
        with_default_roots(&identity(&certificate, good), None).unwrap();
        let open = private("open.key", &issued.signing_key.serialize_pem(), 0o604);
        let shown = problem(&identity(&certificate, open.clone()), None);
        assert!(shown.contains(&format!("{} has mode 0604", open.display())) && shown.contains("0600"), "{shown}");
        private("key.pem", &other.serialize_pem(), 0o400);
        let no_key = private("no.key", &issued.cert.pem(), 0o600);
        assert!(problem(&identity(&certificate, no_key), None).contains("no unencrypted PEM key"));
        assert!(problem(&identity(&certificate, dir.path().join("key.pem")), None).contains("do not belong together"));
    }

    #[test]
    fn a_key_is_too_open_by_the_rule_of_libpq() {
        for (owner, mode, too_open) in [
            (1000, 0o100_600, false),
            (1000, 0o100_400, false),
            (1000, 0o100_640, true),
            (1000, 0o100_604, true),
            (0, 0o100_640, false),
            (0, 0o100_440, false),
            (0, 0o100_660, true),
            (0, 0o100_650, true),
            (0, 0o100_644, true),
        ] {
            assert_eq!(is_too_open(owner, mode), too_open, "{owner} {mode:o}");
        }
    }

    #[test]
    fn verification_needs_a_ca_and_finds_the_default_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root.crt");
        let tls = |mode| Tls { mode, roots: None, identity: None, direct: false };
        for mode in [Mode::VerifyCa, Mode::VerifyFull] {
            for default in [None, Some(path.clone())] {
                let shown = problem(&tls(mode), default);
                assert!(shown.contains("sslrootcert=system") && shown.contains("sslrootcert=/path"), "{shown}");
            }
        }
        with_default_roots(&tls(Mode::Require), Some(path.clone())).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        // The file is read in these modes, and in no other.
        for mode in [Mode::Require, Mode::VerifyCa, Mode::VerifyFull] {
            assert!(problem(&tls(mode), Some(path.clone())).contains("root.crt"));
        }
        with_default_roots(&tls(Mode::Prefer), Some(path.clone())).unwrap();
        assert!(with_default_roots(&tls(Mode::Disable), Some(path)).unwrap().is_none());
    }
}
