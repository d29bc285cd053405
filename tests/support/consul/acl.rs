//! Tokens and policies of an agent with access control.

use serde_json::json;

use super::{Agent, MANAGEMENT_TOKEN};

/// A token that [`Agent::create_token`] made.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its public name.
    pub accessor: String,
    /// What a client sends.
    pub secret: String,
}

impl Agent {
    /// The token that may do everything.
    ///
    /// # Panics
    ///
    /// When it was started without access control.
    #[must_use]
    pub fn management_token(&self) -> &'static str {
        assert!(self.options.acl, "started without access control");
        MANAGEMENT_TOKEN
    }

    /// Makes a token that may do what `rules` (HCL or JSON) say.
    ///
    /// # Panics
    ///
    /// When the agent refuses; the message holds its answer.
    pub async fn create_token(&self, name: &str, rules: &str) -> Token {
        let policy = json!({ "Name": name, "Rules": rules });
        self.must("/v1/acl/policy", &policy.to_string()).await;
        let token = json!({ "Description": name, "Policies": [{ "Name": name }] });
        let token = self.must("/v1/acl/token", &token.to_string()).await;
        let field = |name: &str| token[name].as_str().unwrap_or_default().to_owned();
        Token {
            accessor: field("AccessorID"),
            secret: field("SecretID"),
        }
    }

    /// Takes a token back.
    ///
    /// # Panics
    ///
    /// When the agent refuses.
    pub async fn revoke_token(&self, token: &Token) {
        let path = format!("/v1/acl/token/{}", token.accessor);
        let answer = self.api("DELETE", &path, "").await;
        let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(answer.is_success(), "{path}: {}", answer.text());
    }

    async fn must(&self, path: &str, body: &str) -> serde_json::Value {
        let answer = self.api("PUT", path, body).await;
        let answer = answer.unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(answer.is_success(), "{path}: {}", answer.text());
        answer.json()
    }
}
