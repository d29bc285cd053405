//! The name that an endpoint has to prove, made from what is known of it.

use std::net::IpAddr;

use tokio_rustls::rustls::pki_types::ServerName;

use crate::connect::Residence;
use crate::endpoint::Target;

/// A template that was understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Part {
    Text(String),
    Address,
    Node,
    Datacenter,
}

/// What placeholders there are, as they are told to somebody who wrote another one.
const KNOWN: &str = "{service}, {node}, {datacenter} and {address}";

impl Template {
    /// Reads a template; the name of the service is the same for all endpoints and is put in.
    pub(super) fn parse(text: &str, service: Option<&str>) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            push(&mut parts, before);
            let Some((name, after)) = after.split_once('}') else {
                return Err(format!(
                    "the server name {text:?} has a {{ that nothing closes; the placeholders are \
                     {KNOWN}"
                ));
            };
            rest = after;
            match name {
                "service" => match service {
                    Some(service) => push(&mut parts, service),
                    None => {
                        return Err(format!(
                            "the server name {text:?} asks for the name of the service, which a \
                             channel over a source does not know; set Builder::host, or a name with \
                             Tls::server_name"
                        ));
                    }
                },
                "address" => parts.push(Part::Address),
                "node" => parts.push(Part::Node),
                "datacenter" => parts.push(Part::Datacenter),
                unknown => {
                    return Err(format!(
                        "the server name {text:?} has the placeholder {{{unknown}}}, which stands \
                         for nothing; there are {KNOWN}"
                    ));
                }
            }
        }
        push(&mut parts, rest);
        let template = Self { parts };
        template.check(text)?;
        Ok(template)
    }

    /// Whether names can come of it: with what is usual in the places of what differs.
    fn check(&self, text: &str) -> Result<(), String> {
        if text.contains('}') && !text.contains('{') {
            return Err(format!("the server name {text:?} has a }} without a {{"));
        }
        let mut sample = String::new();
        for part in &self.parts {
            sample.push_str(match part {
                Part::Text(text) => text,
                Part::Address | Part::Node | Part::Datacenter => "x",
            });
        }
        if sample.is_empty() {
            return Err("the server name is empty; give a name such as web.example.com".to_owned());
        }
        if let Some((_, port)) = sample.rsplit_once(':')
            && sample.parse::<IpAddr>().is_err()
            && port.bytes().all(|b| b.is_ascii_digit())
        {
            return Err(format!("the server name {text:?} has a port; leave it out"));
        }
        match ServerName::try_from(sample.as_str()) {
            Ok(_) => Ok(()),
            Err(_) if sample == text => Err(format!(
                "the server name {text:?} is neither a DNS name nor an IP address"
            )),
            Err(_) => Err(format!(
                "the server name {text:?} makes names such as {sample:?}, which is neither a DNS \
                 name nor an IP address; set another one with Tls::server_name"
            )),
        }
    }

    /// The name of one endpoint.
    pub(super) fn fill(&self, target: &Target, at: &Residence) -> Result<String, String> {
        let mut name = String::new();
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Address => name.push_str(&target.host().to_string()),
                Part::Node => name.push_str(known(&at.node, "node")?),
                Part::Datacenter => name.push_str(known(&at.datacenter, "datacenter")?),
            }
        }
        Ok(name)
    }
}

fn known<'a>(word: &'a Option<std::sync::Arc<str>>, what: &str) -> Result<&'a str, String> {
    word.as_deref().ok_or_else(|| {
        format!(
            "the server name asks for the {what} of the endpoint, which its source does not tell \
             (a HealthSource does after tell_nodes)"
        )
    })
}

fn push(parts: &mut Vec<Part>, text: &str) {
    if text.is_empty() {
        return;
    }
    if let Some(Part::Text(last)) = parts.last_mut() {
        last.push_str(text);
    } else {
        parts.push(Part::Text(text.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str, target: &str) -> Result<String, String> {
        let at = Residence {
            node: Some("n1".into()),
            datacenter: Some("dc1".into()),
        };
        Template::parse(template, Some("web"))?.fill(&target.parse().unwrap(), &at)
    }

    #[test]
    fn a_template_makes_the_name_of_each_endpoint() {
        for (template, target, name) in [
            ("{service}", "10.0.0.1:80", "web"),
            ("api.example.com", "10.0.0.1:80", "api.example.com"),
            (
                "{service}.service.{datacenter}.consul",
                "10.0.0.1:80",
                "web.service.dc1.consul",
            ),
            ("{node}.node.consul", "10.0.0.1:80", "n1.node.consul"),
            ("{address}", "10.0.0.1:80", "10.0.0.1"),
            ("{address}", "[::1]:80", "::1"),
            ("{address}.example.com", "Web-1:80", "web-1.example.com"),
            ("192.0.2.7", "10.0.0.1:80", "192.0.2.7"),
        ] {
            assert_eq!(filled(template, target).as_deref(), Ok(name), "{template}");
        }
    }

    #[test]
    fn a_template_that_cannot_work_is_refused_with_what_would() {
        for (template, says) in [
            ("{servce}.consul", "{servce}"),
            ("{servce}.consul", KNOWN),
            ("{}", "{}"),
            ("{service", "nothing closes"),
            ("service}.x", "without a {"),
            ("", "empty"),
            ("web:443", "leave it out"),
            ("{address}:{service}", "neither a DNS name"),
            ("https://web", "neither a DNS name"),
            ("a b", "neither a DNS name"),
            ("{node}..consul", "makes names such as \"x..consul\""),
        ] {
            let why = Template::parse(template, Some("web")).unwrap_err();
            assert!(why.contains(says), "{template}: {why}");
        }
        let why = Template::parse("{service}", None).unwrap_err();
        assert!(why.contains("Builder::host"), "{why}");
        let why = Template::parse("{service}", Some("my web")).unwrap_err();
        assert!(why.contains("\"my web\""), "{why}");
    }

    #[test]
    fn what_a_source_does_not_tell_is_named() {
        for (template, missing) in [("{node}.x", "node"), ("x.{datacenter}", "datacenter")] {
            let template = Template::parse(template, None).unwrap();
            let target = "10.0.0.1:80".parse().unwrap();
            let why = template.fill(&target, &Residence::default()).unwrap_err();
            assert!(why.contains(missing), "{why}");
        }
    }
}
