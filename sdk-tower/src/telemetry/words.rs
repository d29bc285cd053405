//! What each metric is, for recorders that tell it to whoever reads them.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Says it once per service; a recorder that knows it already takes it for the same.
pub(super) fn describe() {
    let count = Unit::Count;
    describe_counter!(
        "lictor_requests_total",
        count,
        "Requests that are over, by outcome."
    );
    describe_counter!(
        "lictor_attempts_total",
        count,
        "Attempts that are over, by outcome."
    );
    describe_counter!(
        "lictor_retries_total",
        count,
        "Attempts after another, by the outcome of that one."
    );
    describe_counter!("lictor_hedges_total", count, "Attempts beside another.");
    describe_counter!(
        "lictor_retry_budget_exhausted_total",
        count,
        "Retries that the budget had nothing left for."
    );
    describe_counter!(
        "lictor_ejections_total",
        count,
        "Endpoints put out of rotation, by reason."
    );
    describe_histogram!(
        "lictor_attempt_duration_seconds",
        Unit::Seconds,
        "Time from sending to the head of the response."
    );
    describe_gauge!("lictor_endpoints", count, "Endpoints in the set.");
    describe_gauge!(
        "lictor_endpoints_ejected",
        count,
        "Endpoints out of rotation, or on the way back."
    );
    describe_gauge!(
        "lictor_requests_in_flight",
        count,
        "Requests whose response has not ended; of a dialer open connections."
    );
    describe_gauge!(
        "lictor_requests_waiting",
        count,
        "Requests in line for a place, an endpoint or the first resolution."
    );
    describe_gauge!(
        "lictor_source_stale",
        "1 while the source cannot confirm the endpoints."
    );
    describe_gauge!(
        "lictor_endpoint_in_flight",
        count,
        "Requests of one endpoint whose response has not ended."
    );
    describe_gauge!(
        "lictor_endpoint_ejected",
        "1 while the endpoint is out of rotation, or on the way back."
    );
}
