//! When a leader makes way for somebody who is preferred.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::{next_index, since};
use super::line::Line;
use super::ticket::Folder;
use super::waiting::long_wait;
use crate::client::Client;
use crate::error::Result;
use crate::ident::Key;
use crate::proto::backoff::Backoff;

/// The shortest time between two looks at the line: a leader need not follow each that joins it.
const PAUSE: Duration = Duration::from_millis(200);

/// Resolves once the same ticket with more than `own` preference has been seen in line for `after`,
/// without a gap.
///
/// What Consul does not answer is a gap: nothing is given up for somebody who may be gone.
pub(super) async fn preferred(client: &Client, folder: &Folder, own: u8, after: Duration) {
    let mut seen = BTreeMap::new();
    let mut index = 0;
    let mut pause = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    loop {
        let patient = seen.values().min().map(|since: &Instant| *since + after);
        let looked = match patient {
            None => look(client, folder, &mut index).await.map(Some),
            Some(at) => tokio::select! {
                biased;
                () = tokio::time::sleep_until(at) => Ok(None),
                looked = look(client, folder, &mut index) => looked.map(Some),
            },
        };
        let line = match looked {
            Ok(Some(line)) => Ok(line),
            // Its time is over: is it there still?
            Ok(None) => Line::read(client, folder).await,
            Err(err) => Err(err),
        };
        let now = Instant::now();
        match line {
            Ok(line) => {
                pause.reset();
                note(&mut seen, &line, own, now);
                if seen.values().any(|since| now >= *since + after) {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(err) => {
                tracing::debug!(line = folder.as_str(), error = %err, "election: line not seen");
                seen.clear();
                index = 0;
                tokio::time::sleep(pause.next(rand::random())).await;
            }
        }
    }
}

/// Notes since when each of the preferred is there, and forgets those who are not.
fn note(seen: &mut BTreeMap<Key, Instant>, line: &Line, own: u8, now: Instant) {
    let preferred = line.waiters.iter().filter(|one| one.rank.preference > own);
    let keys: Vec<&Key> = preferred.map(|one| &one.key).collect();
    seen.retain(|key, _| keys.contains(&key));
    for key in keys {
        seen.entry(key.clone()).or_insert(now);
    }
}

/// One blocking query.
async fn look(client: &Client, folder: &Folder, index: &mut u64) -> Result<Line> {
    let list = since(client.kv().list(folder.as_str()), *index, long_wait());
    let (pairs, meta) = list.await?.into_parts();
    *index = next_index(meta.index(), *index);
    Ok(Line::of(&pairs))
}
