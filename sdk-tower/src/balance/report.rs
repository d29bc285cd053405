//! What a server says of its own load, and the weight that follows from it.

use std::time::Duration;

use http::HeaderMap;
use http::header::HeaderName;

/// A report says nothing of a server that has not reported for so long (gRPC, A58).
pub(crate) const EXPIRES: Duration = Duration::from_secs(180);

/// A server is only judged by its reports after so long: while it warms up its utilisation says
/// little (gRPC, A58).
pub(crate) const BLACKOUT: Duration = Duration::from_secs(10);

/// How far a report may move a weight, up or down: a server that misreports shall neither be
/// flooded nor starved.
const MOST: f32 = 10.0;

/// Longer values are not read.
const LONGEST: usize = 4_096;

/// How servers report their load, so that it decides on their weight.
///
/// A server says in a header of its responses how many requests it serves and how busy it is; the
/// one that serves more per unit of its capacity gets more. The header is that of Envoy and of
/// Open Request Cost Aggregation (ORCA) in its text form:
///
/// ```text
/// endpoint-load-metrics: TEXT cpu_utilization=0.3,rps_fractional=120,eps=0.5
/// ```
///
/// The weight is `rps / (utilisation + eps / rps)`, as in gRPC (A58): requests per second, by how
/// busy the server is with them, and the share of errors counts as work. The utilisation is
/// `application_utilization` if it is reported and above zero, else `cpu_utilization`, else one
/// that [`utilization`](Self::utilization) names. The short names `application`, `cpu`, `mem`,
/// `rps` and `qps` are taken, too; names that are not known are passed over.
///
/// Weights of one service are compared: one that serves twice as much per capacity as the mean
/// counts double, up to ten times and down to a tenth, on top of the weight that the source gives.
/// Reports count after 10 s and for 3 min (A58), and only where two endpoints report. One that
/// cannot be understood is ignored and counted in
/// [`EndpointStatus::bad_reports`](crate::channel::EndpointStatus::bad_reports).
///
/// Reports in gRPC trailers and in the forms `JSON` and `BIN` are not read.
#[derive(Clone, Debug, Eq, PartialEq)]
#[must_use = "options do nothing until a channel is built with them"]
pub struct LoadReport {
    header: HeaderName,
    utilization: Option<Box<str>>,
}

impl Default for LoadReport {
    fn default() -> Self {
        Self {
            header: HeaderName::from_static("endpoint-load-metrics"),
            utilization: None,
        }
    }
}

impl LoadReport {
    /// Sets the header that carries the report.
    ///
    /// Default `endpoint-load-metrics`.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Sets the name of the utilisation that counts, where it is neither the application's nor
    /// the processor's.
    ///
    /// It is looked for as it is, and as `utilization.NAME` and `named_metrics.NAME`, which are
    /// ORCA's maps. `mem_utilization` for the memory. Default none.
    pub fn utilization(mut self, name: impl Into<String>) -> Self {
        self.utilization = Some(name.into().into_boxed_str());
        self
    }

    /// The weight that follows from a response, if it has a report.
    pub(crate) fn read(&self, headers: &HeaderMap) -> Option<Result<f32, Malformed>> {
        let value = headers.get(&self.header)?;
        Some(match value.to_str() {
            Ok(text) => weight(text, self.utilization.as_deref()),
            Err(_) => Err(Malformed),
        })
    }
}

/// A report that cannot be understood.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Malformed;

/// The weight that a report in text form stands for.
pub(crate) fn weight(text: &str, named: Option<&str>) -> Result<f32, Malformed> {
    let metrics = text
        .strip_prefix("TEXT ")
        .filter(|_| text.len() <= LONGEST)
        .ok_or(Malformed)?;
    let (mut rps, mut eps, mut application, mut cpu, mut chosen) = (None, None, None, None, None);
    for metric in metrics.split(',').map(str::trim) {
        if metric.is_empty() {
            continue;
        }
        let (name, value) = metric.split_once('=').ok_or(Malformed)?;
        let name = name.trim();
        let place = match name {
            "rps_fractional" | "rps" | "qps" => &mut rps,
            "eps" => &mut eps,
            "application_utilization" | "application" => &mut application,
            "cpu_utilization" | "cpu" => &mut cpu,
            _ if is_named(name, named) => &mut chosen,
            _ => continue,
        };
        let value: f32 = value.trim().parse().map_err(|_| Malformed)?;
        // Said twice, it is not clear what holds.
        if !value.is_finite() || value < 0.0 || place.replace(value).is_some() {
            return Err(Malformed);
        }
    }
    let used = |busy: &f32| *busy > 0.0;
    let utilization = match named {
        Some(_) => chosen.filter(used),
        None => application.filter(used).or_else(|| cpu.filter(used)),
    };
    let (Some(rps), Some(utilization)) = (rps.filter(used), utilization) else {
        return Err(Malformed);
    };
    let weight = rps / (utilization + eps.unwrap_or(0.0) / rps);
    if weight.is_normal() {
        Ok(weight)
    } else {
        Err(Malformed)
    }
}

fn is_named(name: &str, wanted: Option<&str>) -> bool {
    wanted.is_some_and(|wanted| {
        let short = match wanted {
            "mem_utilization" => "mem",
            other => other,
        };
        name == wanted
            || name == short
            || ["utilization.", "named_metrics."]
                .iter()
                .any(|map| name.strip_prefix(map) == Some(wanted))
    })
}

/// What the weight of each endpoint is multiplied with: its own by the mean of all that report.
///
/// One that does not report counts as one that is like the others. Where fewer than two report
/// there is nothing to compare (A58).
pub(crate) fn factors(weights: &[Option<f32>]) -> Vec<f32> {
    let known: Vec<f32> = weights.iter().copied().flatten().collect();
    #[expect(
        clippy::cast_precision_loss,
        reason = "a number of endpoints; f32 holds it closely enough"
    )]
    let mean = known.iter().sum::<f32>() / known.len() as f32;
    let compared = known.len() >= 2 && mean.is_normal();
    weights
        .iter()
        .map(|weight| match weight {
            Some(weight) if compared => (weight / mean).clamp(MOST.recip(), MOST),
            _ => 1.0,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_weight_is_requests_per_capacity_and_errors_are_work() {
        assert_eq!(weight("TEXT cpu=0.5,rps=100", None), Ok(200.0));
        assert_eq!(
            weight("TEXT cpu_utilization=0.5, rps_fractional=100, eps=50", None),
            Ok(100.0)
        );
        // What the application says goes first, unless it says nothing.
        let both = "TEXT cpu=0.5,application_utilization=0.25,rps=100";
        assert_eq!(weight(both, None), Ok(400.0));
        assert_eq!(
            weight("TEXT cpu=0.5,application=0,rps=100", None),
            Ok(200.0)
        );
        // Soft limits may be passed.
        assert_eq!(weight("TEXT cpu=2,rps=100", None), Ok(50.0));
        assert_eq!(
            weight("TEXT cpu=0.5,qps=100,other=x,foo_bytes=9", None),
            Ok(200.0)
        );
    }

    #[test]
    fn a_named_utilisation_counts_instead() {
        for text in [
            "TEXT cpu=0.1,utilization.queue=0.5,rps=100",
            "TEXT cpu=0.1,named_metrics.queue=0.5,rps=100",
            "TEXT cpu=0.1,queue=0.5,rps=100",
        ] {
            assert_eq!(weight(text, Some("queue")), Ok(200.0), "{text}");
        }
        let memory = weight("TEXT mem=0.8,rps=80", Some("mem_utilization"));
        assert_eq!(memory, Ok(100.0));
        assert_eq!(
            weight("TEXT cpu=0.1,rps=100", Some("queue")),
            Err(Malformed)
        );
    }

    #[test]
    fn what_cannot_be_understood_is_no_report() {
        let long = format!("TEXT cpu=0.5,rps=100,{}", "x=1,".repeat(2_000));
        for text in [
            "",
            "TEXT",
            "TEXT ",
            "TEXT ,,,",
            "cpu=0.5,rps=100",
            "JSON {\"cpu_utilization\":0.5}",
            "BIN CQAAAAAAAPA/",
            "TEXT cpu=0.5",
            "TEXT rps=100",
            "TEXT cpu=0,rps=100",
            "TEXT cpu=0.5,rps=0",
            "TEXT cpu=0.5,rps",
            "TEXT cpu=half,rps=100",
            "TEXT cpu=-0.5,rps=100",
            "TEXT cpu=NaN,rps=100",
            "TEXT cpu=0.5,rps=inf",
            "TEXT cpu=0.5,rps=1e39",
            "TEXT cpu=0.5,cpu=0.6,rps=100",
            "TEXT cpu=0.5,rps=100,qps=100",
            "TEXT cpu=1e38,rps=1e-38",
            &long,
        ] {
            assert_eq!(weight(text, None), Err(Malformed), "{text:.60}");
        }
    }

    #[test]
    fn a_response_without_the_header_has_no_report() {
        let mut headers = HeaderMap::new();
        let plain = LoadReport::default();
        assert_eq!(plain.read(&headers), None);
        let value = HeaderValue::from_static("TEXT cpu=0.5,rps=100");
        headers.insert("endpoint-load-metrics", value);
        assert_eq!(plain.read(&headers), Some(Ok(200.0)));
        let own = LoadReport::default().header(HeaderName::from_static("x-load"));
        assert_eq!(own.read(&headers), None);
        headers.insert("x-load", HeaderValue::from_bytes(b"TEXT \xff").unwrap());
        assert_eq!(own.read(&headers), Some(Err(Malformed)));
    }

    #[test]
    fn weights_are_compared_with_the_mean_and_bounded() {
        assert_eq!(factors(&[Some(100.0), Some(300.0), None]), [0.5, 1.5, 1.0]);
        assert_eq!(factors(&[Some(100.0), None]), [1.0, 1.0]);
        assert_eq!(factors(&[]), Vec::<f32>::new());
        let wild = factors(&[Some(1e30), Some(1e-30), Some(1.0)]);
        assert_eq!(wild[1..], [0.1, 0.1]);
        assert!(wild.iter().all(|factor| (0.1..=10.0).contains(factor)));
    }
}
