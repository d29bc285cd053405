//! `proxy_hop`: the same calls through the proxies that a balancing client replaces.

use crate::Outcome;
use crate::contest::{Contender, Contest};

use super::calls::{self, METRICS};
use super::proxy::{HAPROXY, NGINX, Proxy};
use super::{Job, PEAK_EWMA, ROUND_ROBIN, Stage};

pub(super) const NAME: &str = "proxy_hop";

pub(super) async fn run(stage: &mut Stage) -> Outcome<()> {
    let fleet = super::quick_fleet(stage).await?;
    let mut proxies = Vec::new();
    for name in [NGINX, HAPROXY] {
        match Proxy::start(name, &fleet.addresses).await {
            Ok(proxy) => proxies.push(proxy),
            Err(reason) => stage.report.note(&format!("{name} is left out: {reason}")),
        }
    }
    for concurrency in [1, 64] {
        let mut contenders = vec![Contender::OURS, Contender::floor(ROUND_ROBIN)];
        contenders.extend(proxies.iter().map(|proxy| Contender::peer(proxy.name)));
        let mut contest = Contest::new(NAME, &METRICS, contenders)
            .param("concurrency", concurrency)
            .param("backends", u64::try_from(fleet.addresses.len())?);
        contest
            .run(stage.args.rounds(), async |contender: &Contender, _| {
                let proxy = proxies.iter().find(|proxy| proxy.name == contender.name);
                let backends = match proxy {
                    Some(proxy) => vec![proxy.address.clone()],
                    None => fleet.addresses.clone(),
                };
                let job = Job {
                    bench: NAME.to_owned(),
                    policy: PEAK_EWMA.to_owned(),
                    backends,
                    ..calls::closed_loop(stage, concurrency)?
                };
                stage.measure(contender, job).await
            })
            .await;
        stage.report.show(&contest)?;
    }
    Ok(())
}
