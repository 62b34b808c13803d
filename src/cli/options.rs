//! The options that all clients of the API have, and the variables that stand for them.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use http::HeaderValue;

use super::address::ServerAddress;
use super::failure::Failure;
use super::terminal;
use crate::config::client_variables as variables;

/// The address of a node without a configuration file.
const DEFAULT_SERVER: &str = "http://127.0.0.1:6789";

/// Where the API is, and the credentials for it.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
#[command(next_help_heading = "Connection")]
pub(super) struct ServerOptions {
    /// API of any node: http://, https://, ws://, wss://, HOST:PORT or unix:PATH
    /// [env: GRIDCAST_SERVER] [default: http://127.0.0.1:6789]
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,

    /// Name and password of a user, or the name alone to be asked for the password. Others can see the
    /// arguments of a process: prefer the variable [env: GRIDCAST_USER]
    #[arg(long, value_name = "NAME:PASSWORD", conflicts_with = "token")]
    user: Option<SecretArgument>,

    /// Token of a user. Prefer the variable [env: GRIDCAST_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    token: Option<SecretArgument>,

    /// PEM file with the authorities that may vouch for the server, instead of those that the system
    /// trusts [env: GRIDCAST_CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,

    /// Print one JSON object a line, exactly as the API gave it
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
}

/// A secret from the command line. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SecretArgument(String);

impl FromStr for SecretArgument {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for SecretArgument {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("…")
    }
}

/// The server that a command speaks to.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) address: ServerAddress,
    /// The value of the header `Authorization`.
    pub(super) authorization: Option<HeaderValue>,
    /// The PEM file of the trusted authorities. `None`: those that the system trusts.
    pub(super) ca: Option<PathBuf>,
}

impl ServerOptions {
    /// Returns the server that the options and the environment name. An option has precedence over its
    /// variable, and a variable that is empty is not set.
    pub(super) fn server(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Server, Failure> {
        let variable = |name: &str| variable(name).filter(|text| !text.is_empty());
        let (source, text) = match (&self.server, variable(variables::SERVER)) {
            (Some(text), _) => ("--server", text.clone()),
            (None, Some(text)) => (variables::SERVER, text),
            (None, None) => ("--server", DEFAULT_SERVER.to_owned()),
        };
        let address = ServerAddress::parse(&text)
            .map_err(|error| Failure::Usage(format!("{source}: {error}")))?;
        let ca = self.ca.clone().or_else(|| variable(variables::CA).map(PathBuf::from));
        Ok(Server { address, authorization: self.authorization(variable)?, ca })
    }

    fn authorization(
        &self,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let text = |secret: &SecretArgument| secret.0.clone();
        match (self.user.as_ref().map(text), self.token.as_ref().map(text)) {
            (Some(user), _) => basic("--user", user).map(Some),
            (None, Some(token)) => bearer("--token", &token).map(Some),
            (None, None) => match (variable(variables::USER), variable(variables::TOKEN)) {
                (Some(_), Some(_)) => Err(Failure::Usage(format!(
                    "{} and {} are both set: unset one of them",
                    variables::USER,
                    variables::TOKEN
                ))),
                (Some(user), None) => basic(variables::USER, user).map(Some),
                (None, Some(token)) => bearer(variables::TOKEN, &token).map(Some),
                (None, None) => Ok(None),
            },
        }
    }
}

/// The credentials of RFC 7617. A password that is missing is asked for.
fn basic(source: &str, mut user: String) -> Result<HeaderValue, Failure> {
    if !user.contains(':') {
        let password = terminal::ask_password(&format!("Password of {user}, a user of the API: "))
            .map_err(|error| {
                Failure::Usage(format!(
                    "{source}: expected NAME:PASSWORD of a user of the API; {error}"
                ))
            })?;
        user = format!("{user}:{password}");
    }
    header(source, &format!("Basic {}", STANDARD.encode(user)))
}

/// The credentials of RFC 6750.
fn bearer(source: &str, token: &str) -> Result<HeaderValue, Failure> {
    header(source, &format!("Bearer {token}"))
}

fn header(source: &str, value: &str) -> Result<HeaderValue, Failure> {
    let mut value = HeaderValue::from_str(value).map_err(|_| {
        Failure::Usage(format!("{source}: a token has letters, digits and -._~+/ only"))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Option<SecretArgument> {
        Some(SecretArgument(text.to_owned()))
    }

    /// The credentials that these options and variables yield.
    fn credentials(
        options: &ServerOptions,
        variables: &[(&str, &str)],
    ) -> Result<Option<String>, Failure> {
        let variable = |name: &str| {
            let (_, text) = variables.iter().find(|(known, _)| *known == name)?;
            Some((*text).to_owned())
        };
        let server = options.server(variable)?;
        Ok(server.authorization.map(|value| value.to_str().expect("text").to_owned()))
    }

    #[test]
    fn an_option_has_precedence_over_the_variables() {
        let options = ServerOptions { token: secret("t"), ..ServerOptions::default() };
        let variables = [("GRIDCAST_USER", "app:sesame"), ("GRIDCAST_TOKEN", "u")];
        assert_eq!(credentials(&options, &variables), Ok(Some("Bearer t".into())));
        let options = ServerOptions::default();
        assert_eq!(
            credentials(&options, &variables[..1]),
            Ok(Some("Basic YXBwOnNlc2FtZQ==".into()))
        );
        assert_eq!(credentials(&options, &variables[1..]), Ok(Some("Bearer u".into())));
        assert!(matches!(credentials(&options, &variables), Err(Failure::Usage(_))));
    }

    #[test]
    fn an_empty_variable_is_not_set() {
        let variables = [("GRIDCAST_USER", ""), ("GRIDCAST_TOKEN", ""), ("GRIDCAST_SERVER", "")];
        assert_eq!(credentials(&ServerOptions::default(), &variables), Ok(None));
    }

    #[test]
    fn a_secret_is_never_shown() {
        let options = ServerOptions { user: secret("app:sesame"), ..ServerOptions::default() };
        assert!(!format!("{options:?}").contains("sesame"));
        let options = ServerOptions { token: secret("sesame\n"), ..ServerOptions::default() };
        let Err(Failure::Usage(error)) = credentials(&options, &[]) else {
            panic!("it is refused")
        };
        assert!(error.starts_with("--token: ") && !error.contains("sesame"), "{error}");
    }

    #[test]
    fn a_wrong_address_is_named_by_where_it_stands() {
        let found = credentials(&ServerOptions::default(), &[("GRIDCAST_SERVER", "ftp://a")]);
        let Err(Failure::Usage(error)) = found else { panic!("it is refused") };
        assert!(error.starts_with("GRIDCAST_SERVER: expected a URL"), "{error}");
    }
}
