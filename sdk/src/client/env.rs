//! Settings from the environment.

use std::ffi::OsString;

use super::builder::{Builder, TokenSetting};
use crate::error::{Error, ErrorKind, Result};

impl Builder {
    /// Settings from the environment variables that Consul's own programs read.
    ///
    /// An unset or empty variable leaves the default. They are read once, here.
    ///
    /// | variable | effect | a bad value |
    /// |---|---|---|
    /// | `CONSUL_HTTP_ADDR` | [`address`](Self::address): `host:port`, `http://…`, `https://…`, `unix://…`, with a path prefix or without | error |
    /// | `CONSUL_HTTP_SSL` | `true`: HTTPS, even where the address says `http://` | error unless one of `1 t T true TRUE True 0 f F false FALSE False` |
    /// | `CONSUL_HTTP_SSL_VERIFY` | `false`: accepts any certificate | error, as above |
    /// | `CONSUL_CACERT` | PEM file of trusted roots, in place of the system's | error where the client is built |
    /// | `CONSUL_CAPATH` | directory of such files; both may be set | error where the client is built |
    /// | `CONSUL_CLIENT_CERT`, `CONSUL_CLIENT_KEY` | PEM files of the certificate that this client shows | error if only one is set |
    /// | `CONSUL_TLS_SERVER_NAME` | the name that the agent's certificate must bear | error if it is no host name |
    /// | `CONSUL_HTTP_TOKEN_FILE` | file with the token, read again when it changes; goes before `CONSUL_HTTP_TOKEN` | error where the client is built |
    /// | `CONSUL_HTTP_TOKEN` | the token | error if it cannot stand in a header; not repeated |
    /// | `CONSUL_HTTP_AUTH` | `user` or `user:password` for HTTP basic authentication; goes beside the token | error if it cannot stand in a header |
    /// | `CONSUL_NAMESPACE` | [`namespace`](Self::namespace) | Consul's own error |
    /// | `CONSUL_PARTITION` | [`partition`](Self::partition) | Consul's own error |
    ///
    /// A setter called afterwards overrides what the environment says. The TLS variables have no
    /// effect on a plain HTTP address, except that their files need not exist.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] naming the variable, what is wrong with it, and what would be right.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let text = |name: &str| match lookup(name) {
            None => Ok(None),
            Some(value) if value.is_empty() => Ok(None),
            Some(value) => value.into_string().map(Some).map_err(|_| {
                Error::new(ErrorKind::Config).context(format!("{name}: is not UTF-8"))
            }),
        };
        let switch = |name: &str| match text(name)? {
            None => Ok(None),
            Some(value) => boolean(&value).map(Some).ok_or_else(|| {
                Error::new(ErrorKind::Config)
                    .context(format!("{name} {value:?}: must be `true` or `false`"))
            }),
        };
        let path = |name: &str| lookup(name).filter(|value| !value.is_empty());

        let mut builder = Self::new();
        if let Some(address) = text("CONSUL_HTTP_ADDR")? {
            builder = builder.address(address);
            builder.address_name = "CONSUL_HTTP_ADDR";
        }
        builder.ssl = switch("CONSUL_HTTP_SSL")?.unwrap_or(false);
        let mut tls = builder.tls.clone();
        if switch("CONSUL_HTTP_SSL_VERIFY")? == Some(false) {
            tls = tls.danger_skip_verification();
        }
        if let Some(file) = path("CONSUL_CACERT") {
            tls = tls.ca_file(file);
        }
        if let Some(dir) = path("CONSUL_CAPATH") {
            tls = tls.ca_dir(dir);
        }
        tls = match (path("CONSUL_CLIENT_CERT"), path("CONSUL_CLIENT_KEY")) {
            (None, None) => tls,
            (Some(certificate), Some(key)) => tls.client_certificate_files(certificate, key),
            (Some(_), None) => return Err(alone("CONSUL_CLIENT_CERT", "CONSUL_CLIENT_KEY")),
            (None, Some(_)) => return Err(alone("CONSUL_CLIENT_KEY", "CONSUL_CLIENT_CERT")),
        };
        if let Some(name) = text("CONSUL_TLS_SERVER_NAME")? {
            tls = tls.server_name(name);
        }
        builder = builder.tls(tls);
        let token = (path("CONSUL_HTTP_TOKEN_FILE"), text("CONSUL_HTTP_TOKEN")?);
        (builder.token, builder.token_name) = match token {
            (Some(file), _) => (TokenSetting::File(file.into()), "CONSUL_HTTP_TOKEN_FILE"),
            (None, Some(secret)) => (TokenSetting::Secret(secret), "CONSUL_HTTP_TOKEN"),
            (None, None) => (TokenSetting::None, "token"),
        };
        if let Some(auth) = text("CONSUL_HTTP_AUTH")? {
            let (user, password) = auth.split_once(':').unwrap_or((&auth, ""));
            builder = builder.basic_auth(user, password);
        }
        if let Some(namespace) = text("CONSUL_NAMESPACE")? {
            builder = builder.namespace(namespace);
        }
        if let Some(partition) = text("CONSUL_PARTITION")? {
            builder = builder.partition(partition);
        }
        Ok(builder)
    }
}

fn alone(set: &str, missing: &str) -> Error {
    Error::new(ErrorKind::Config).context(format!("{set} is set without {missing}: set both"))
}

/// The spellings that Go's `strconv.ParseBool` takes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<Builder> {
        Builder::from_lookup(|name| {
            vars.iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    fn built(vars: &[(&str, &str)]) -> Result<crate::client::Client> {
        from(vars)?.build()
    }

    #[test]
    fn an_empty_environment_is_the_default() {
        let client = built(&[("CONSUL_HTTP_ADDR", ""), ("CONSUL_HTTP_TOKEN", "")]).unwrap();
        assert_eq!(client.address(), "http://127.0.0.1:8500");
        assert!(client.current_token().is_none());
    }

    #[test]
    fn http_in_the_address_does_not_undo_ssl() {
        let vars = [
            ("CONSUL_HTTP_ADDR", "http://c:1"),
            ("CONSUL_HTTP_SSL", "1"),
            ("CONSUL_HTTP_SSL_VERIFY", "false"),
        ];
        assert_eq!(built(&vars).unwrap().address(), "https://c:1");
    }

    #[test]
    fn a_token_file_goes_before_a_token() {
        let builder = from(&[
            ("CONSUL_HTTP_TOKEN", "a"),
            ("CONSUL_HTTP_TOKEN_FILE", "/no/such/file"),
        ])
        .unwrap();
        let err = builder.build().unwrap_err();
        assert!(err.to_string().contains("/no/such/file"), "{err}");
    }

    #[test]
    fn a_setter_overrides_the_environment() {
        let builder = from(&[
            ("CONSUL_HTTP_ADDR", "https://c:1"),
            ("CONSUL_HTTP_TOKEN", "a"),
        ])
        .unwrap();
        let client = builder.address("d:2").token("b").build().unwrap();
        assert_eq!(client.address(), "http://d:2");
        assert_eq!(client.current_token().unwrap().expose(), "b");
    }

    #[test]
    fn a_bad_value_names_its_variable_and_never_a_secret() {
        for (vars, texts) in [
            (
                &[("CONSUL_HTTP_SSL", "yes")][..],
                &["CONSUL_HTTP_SSL", "true"][..],
            ),
            (
                &[("CONSUL_HTTP_SSL_VERIFY", "no")],
                &["CONSUL_HTTP_SSL_VERIFY"],
            ),
            (
                &[("CONSUL_HTTP_ADDR", "gopher://x")],
                &["CONSUL_HTTP_ADDR", "gopher"],
            ),
            (&[("CONSUL_CLIENT_CERT", "c.pem")], &["CONSUL_CLIENT_KEY"]),
            (
                &[("CONSUL_HTTP_TOKEN", "s3cret\u{7}")],
                &["CONSUL_HTTP_TOKEN:", "visible"],
            ),
        ] {
            let err = built(vars).unwrap_err();
            assert_eq!(err.kind(), ErrorKind::Config, "{err}");
            for text in texts {
                assert!(err.to_string().contains(text), "{err}");
            }
            assert!(!format!("{err:?}").contains("s3cret"));
        }
    }

    #[test]
    fn neither_client_nor_builder_prints_a_secret() {
        let vars = [
            ("CONSUL_HTTP_TOKEN", "s3cret"),
            ("CONSUL_HTTP_AUTH", "u:p4ss"),
        ];
        let builder = from(&vars).unwrap();
        let printed = format!("{builder:?}{:?}", builder.clone().build().unwrap());
        assert!(!printed.contains("s3cret") && !printed.contains("p4ss"));
    }
}
